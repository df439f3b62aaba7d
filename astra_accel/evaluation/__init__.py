"""Evaluations: how often, how badly and in how many ways the target failed, and how sure that is.

Follow the data through the files: ``judging`` (a row for each node), ``loop`` (all prompts, on all processes, to a
folder), ``nodes`` (rows as columns), ``metrics`` (which figures), ``statistics`` and ``diversity`` (how they are
computed), ``bootstrap`` (their intervals), ``summary`` (all of them), ``compare`` (two testers), ``run`` (one
evaluation from its configuration).
"""
