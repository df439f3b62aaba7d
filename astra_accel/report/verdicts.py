"""Compares before and after training for the runs in a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from astra_accel.evaluation.compare import compare, is_trained
from astra_accel.evaluation.figures.metrics import ANY_TURN
from astra_accel.evaluation.folder import (
    EVALUATION_UNTRAINED,
    FIGURES,
    EvaluationError,
    EvaluationFolder,
    find_evaluation,
)
from astra_accel.evaluation.verdict import verdict
from astra_accel.report.collect import Run


def verdicts(runs: Sequence[Run]) -> list[str]:
    """A sentence for each run whose tester was also evaluated before training, on the same prompts.

    The evaluation of the untrained tester is one of the ``runs``, or lies next to that of the trained one, where
    ``astra-accel evaluate --untrained`` writes it. If the two can't be compared, the sentence says why.
    """
    evaluations = [find_evaluation(run.path) for run in runs]
    given = [path for path in evaluations if _of_trained(path) is False]
    found = []
    for run, path in zip(runs, evaluations, strict=True):
        if _of_trained(path):
            sentence = _sentence(path, [*given, path.resolve().parent / EVALUATION_UNTRAINED])
            found += [] if sentence is None else [(run.name, sentence)]
    return [sentence if len(found) == 1 else f"{name}: {sentence}" for name, sentence in found]


def _sentence(trained: Path, candidates: Sequence[Path]) -> str | None:
    """The verdict from the first candidate that the trained tester can be compared with."""
    refused = None
    for untrained in candidates:
        if _of_trained(untrained) is not False:
            continue
        try:
            return verdict(compare(untrained, trained, figures=[ANY_TURN]))
        except (EvaluationError, FileNotFoundError) as error:
            refused = refused or f"Before and after training can't be compared: {error}."
    return refused


def _of_trained(path: Path) -> bool | None:
    """Whether an evaluation is of a trained tester; None if it does not say, has not ended, or doesn't exist."""
    folder = EvaluationFolder(path)
    try:
        return is_trained(folder.identity()) if (path / FIGURES).is_file() else None
    except FileNotFoundError:
        return None
