"""Callbacks that watch a run: its files, the screen, trackers, the best checkpoint, and when to stop."""
