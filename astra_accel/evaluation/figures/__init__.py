"""Figures of held-out rollouts, and how sure they are.

``nodes`` (rows as columns), ``metrics`` (which figures), ``statistics`` and ``diversity`` (how they are computed),
``missing`` (what missing scores do to them), ``bootstrap`` (their intervals), ``summary`` (all of them),
``dev_figures`` (those that evaluations during training may have too).
"""
