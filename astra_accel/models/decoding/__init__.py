"""Sampling of continuations, with or without caches that are carried from turn to turn."""
