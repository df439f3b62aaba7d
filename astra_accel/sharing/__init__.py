"""Sharing what a run produced: the tester, what it found, and what users must know before using either.

``model_card`` and ``dataset_card`` write the README of each (``evaluated``, ``base_model`` and ``markdown`` are pieces
of it), ``rollouts`` the conversations as a data set, ``merged`` a LoRA tester as a stand-alone model; ``hub`` uploads a
folder, and ``push`` makes the folders to upload from a run.
"""
