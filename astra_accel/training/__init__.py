"""The trainer: ``trainer`` is the loop, ``update`` makes the updates on an experience.

``optim`` has optimizers and schedules, ``metrics`` computes figures, ``resume`` reports what has changed since a
checkpoint, and ``run_context`` holds what these share. ``checkpoint`` writes and reads checkpoints. ``callbacks`` watch
a run: its files, the screen, trackers, the best checkpoint, and when to stop.
"""
