"""Figures of held-out rollouts, and their uncertainty.

``nodes`` (rows as columns), ``metrics`` (which figures), ``tries`` and ``goals`` (those of several tries with a prompt,
and by goal), ``statistics`` and ``diversity`` (how they are computed),
``missing`` (what missing scores do to them), ``bootstrap`` (their intervals), ``summary`` (all of them),
``dev_figures`` (those also available to evaluations during training).
"""
