"""Evaluations: how often, how badly and in how many ways the target failed, and how sure that is.

Follow the data through the files: ``judging`` (a row for each node), ``loop`` (all prompts, on all processes, to a
``folder``), ``figures`` (what is computed of the rows, with intervals), ``display``, ``compare`` (two testers) and
``verdict`` (in a sentence). ``evaluator`` is what training and programs call.
"""
