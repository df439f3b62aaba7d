"""Collecting experiences (``collect``), giving out their micro-batches (``loader``), and the ``replay``."""
