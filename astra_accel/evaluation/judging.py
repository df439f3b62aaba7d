"""Makes a row for each node: texts, place in the tree, and what the scorers and the baseline say about them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch

from astra_accel.core.optional import HasBaseline, offers
from astra_accel.core.outcomes import ANSWERED, judged_where_answered
from astra_accel.core.prompt import Goal
from astra_accel.core.sampler import Graph, Node, walk
from astra_accel.core.scorer import Turn, check_scores, judges_texts, response_categories, response_scores
from astra_accel.evaluation.figures.metrics import (
    PERPLEXITY,
    PROBE_SCORE,
    RESPONSE_SCORE,
    REWARD_SCORER,
    category_column,
    column,
)
from astra_accel.files.tables import rollout_rows

LARGEST_EXPONENT = 700.0
"""exp of much more overflows a float."""


def judge(graphs: Sequence[Graph], system: Any, scorers: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """The rows of the nodes of each graph, parents before children.

    A row has what a rollout's row has (including the reward's parts, so the reward's scorer does not score a response
    again), the score of the probe and, if the scorer has categories, those of the response; the same by each held-out
    scorer; and the perplexity of the probe under the baseline.

    Args:
        graphs: the rollouts.
        system: the system that made them. Its ``scorer`` and ``get_baseline_logprobs`` are used if it has them.
        scorers: the held-out scorers by name.

    Raises:
        ScorerError: a scorer did not return one number from 0 to 1, or None, per text.
    """
    by_graph = [list(rollout_rows([graph])) for graph in graphs]
    nodes = [node for graph in graphs for _, node in walk(graph)]
    rows = [row for of_graph in by_graph for row in of_graph]
    if not nodes:
        return by_graph
    columns: dict[str, Sequence[Any]] = {}
    trained_by = getattr(system, "scorer", None)
    if trained_by is not None:
        columns |= _probe_scores(REWARD_SCORER, trained_by, rows)
        columns |= category_columns(REWARD_SCORER, trained_by, rows)
    for name, scorer in scorers.items():
        columns |= held_out_columns(name, scorer, rows)
    if offers(system, HasBaseline):
        columns[PERPLEXITY] = baseline_perplexities(system, nodes)
    for name, values in columns.items():
        for row, value in zip(rows, values, strict=True):
            row[name] = value
    return by_graph


def held_out_columns(name: str, scorer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[float | None]]:
    """The columns of a held-out scorer: its scores of probes and responses, and of kinds of harm.

    Args:
        name: the scorer's name, with which its columns begin.
        scorer: the held-out scorer.
        rows: the turns as they are written to files.
    """
    turns = [Turn(row["probe"], row["response"], row["context"], Goal.from_row(row)) for row in rows]

    def judge(places: Sequence[int]) -> list[float | None]:
        return response_scores(scorer, [turns[place] for place in places])

    return {
        **_probe_scores(name, scorer, rows),
        column(RESPONSE_SCORE, name): judged_where_answered(_outcomes(rows), judge),
        **category_columns(name, scorer, rows),
    }


def category_columns(name: str, scorer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """A column for each kind of harm that a scorer distinguishes in responses."""
    found = response_categories(scorer, [row["probe"] for row in rows], [row["response"] for row in rows])
    return {
        category_column(name, label): judged_where_answered(_outcomes(rows), partial(_chosen, scores))
        for label, scores in found.items()
    }


def _outcomes(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return [row.get("outcome") or ANSWERED for row in rows]


def _probe_scores(name: str, scorer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Sequence[float | None]]:
    """The column of a scorer's scores of probes, if it judges texts."""
    if not judges_texts(scorer):
        return {}
    probes = [row["probe"] for row in rows]
    return {column(PROBE_SCORE, name): check_scores(scorer, probes, scorer.score(probes))}


def _chosen(scores: Sequence[float | None], places: Sequence[int]) -> list[float | None]:
    return [scores[place] for place in places]


@torch.no_grad()
def baseline_perplexities(system: Any, nodes: Sequence[Node]) -> list[float | None]:
    """exp(-mean log-prob per token) of each probe under the baseline; None for a probe without tokens."""
    logprobs_BT = system.get_baseline_logprobs([node.context for node in nodes], [node.probe for node in nodes])
    counted_B = (logprobs_BT != 0).sum(-1).tolist()
    found: list[float | None] = []
    for node, total, counted in zip(nodes, logprobs_BT.double().sum(-1).tolist(), counted_B, strict=True):
        # A certain token has log-prob 0, as padding does, so the node's own count is better.
        num_tokens = getattr(node, "info", {}).get("probe_tokens") or counted
        found.append(math.exp(min(-total / num_tokens, LARGEST_EXPONENT)) if num_tokens else None)
    return found
