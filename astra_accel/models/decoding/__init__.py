"""Sampling continuations, with caches that are carried from turn to turn, or without."""
