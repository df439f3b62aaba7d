"""Checkpoints that are complete or absent: what they contain, and how they are written."""
