"""Evaluations: how often, how badly and in how many ways the target failed, and with what certainty.

Follow the data through the files: ``judging`` (a row for each node), ``loop`` (all prompts, on all processes, to a
``folder``), ``figures`` (computed from the rows, with intervals), ``display``, ``compare`` (two testers) and
``verdict`` (in one sentence). Training and programs call ``evaluator``.
"""
