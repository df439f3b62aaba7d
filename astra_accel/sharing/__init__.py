"""Sharing what a run produced: the tester, what it found, and what one must know before using either.

``model_card`` and ``dataset_card`` write the README of each (``evaluated``, ``base_model`` and ``markdown`` are pieces
of it), ``rollouts`` the conversations as a data set, ``merged`` a LoRA tester as a model of its own; ``hub`` uploads a
folder, and ``push`` makes of a run the folders to upload.
"""
