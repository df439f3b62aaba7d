"""Judges an evaluation anew: by other scorers, without asking the target again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_accel.config import RunConfiguration
from astra_accel.core.optional import KeepsJournal, offers
from astra_accel.endpoints.client import keeping
from astra_accel.endpoints.journal import Journal
from astra_accel.errors import ConfigurationError
from astra_accel.evaluation.evaluator import check_scorer_names
from astra_accel.evaluation.figures.metrics import REWARD_SCORER
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.summary import summarize
from astra_accel.evaluation.folder import EvaluationFolder
from astra_accel.evaluation.judging import held_out_columns
from astra_accel.files.run_folder import JOURNAL
from astra_accel.methods.ast.rewards.sentence_embedder import SentenceEmbedder
from astra_accel.scorers import build_scorer, check_scorer, needs_goal


def judge_anew(evaluation: Path, output: Path, config: RunConfiguration, *, overwrite: bool = False) -> dict[str, Any]:
    """Write an evaluation's nodes and figures to another folder, with the verdicts of the configured scorers.

    The conversations, and the verdicts of scorers of other names, stay what they are.

    Args:
        evaluation: the folder of an evaluation that has ended.
        output: the folder to write to.
        config: the configuration whose ``evaluation.scorers`` judge, within its ``budget``.
        overwrite: whether to write to a folder that holds another evaluation.

    Returns:
        the figures.

    Raises:
        ConfigurationError, FileNotFoundError, ValueError: there is no such evaluation, or no scorer; or the folder
            holds another evaluation.
        EndpointError, BudgetReached: a scorer's endpoint does not answer, or may not be asked any more.
    """
    files, scorers = EvaluationFolder(evaluation), config.evaluation.scorers
    identity, rows = files.identity(), files.rows()
    if not scorers:
        raise ConfigurationError("evaluation.scorers is empty; expected the scorers to judge by, each under a name")
    if output.absolute() == evaluation.absolute():
        raise ConfigurationError(f"--output is {output}, the evaluation itself; expected another folder")
    check_scorer_names(scorers)
    for name, scorer in scorers.items():
        check_scorer(scorer.name, scorer.options, f"evaluation.scorers.{name}")
        if needs_goal(scorer.name, scorer.options) and not all(row.get("goal") for row in rows):
            raise ConfigurationError(
                f"evaluation.scorers.{name} judges by the goal of a conversation, but those of {evaluation} have none"
            )
    judges = {**identity["scorers"], **{name: scorer.model_dump() for name, scorer in scorers.items()}}
    written = EvaluationFolder(output)
    written.begin({**identity, "scorers": judges, "judged": str(evaluation)}, overwrite)
    journal = Journal(output / JOURNAL, budget=config.budget)
    journal.join()
    for name, chosen in scorers.items():
        with keeping(journal):
            built = build_scorer(chosen.name, **{"device": "cpu", **chosen.options})
        if offers(built, KeepsJournal):
            built.keep_journal(journal)
        for column, values in held_out_columns(name, built, rows).items():
            for row, value in zip(rows, values, strict=True):
                row[column] = value
    written.write_part(0, rows)
    nodes = Nodes.from_rows(rows, 1 + max(row["episode"] for row in rows), identity.get("tree_width"))
    metrics = _measured(nodes, config, [name for name in judges if name != REWARD_SCORER])
    written.write_metrics(metrics)
    return metrics


def _measured(nodes: Nodes, config: RunConfiguration, scorers: list[str]) -> dict[str, Any]:
    model = config.evaluation.embedding_model
    embedder = None if model is None else SentenceEmbedder(model, device="cpu", field="evaluation.embedding_model")
    return summarize(
        nodes,
        threshold=config.evaluation.threshold,
        scorers=scorers,
        embed=None if embedder is None else embedder.embed,
        num_resamples=config.evaluation.num_resamples,
    )
