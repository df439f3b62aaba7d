"""Figures of held-out rollouts, and how sure they are."""
