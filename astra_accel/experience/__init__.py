"""Collects experiences (``collect``), splits them into micro-batches (``loader``), and keeps the ``replay``."""
