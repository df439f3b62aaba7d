"""Computes all figures of an evaluation for ``metrics.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from astra_accel.evaluation.figures.bootstrap import CONFIDENCE, NUM_RESAMPLES, Statistic
from astra_accel.evaluation.figures.diversity import distinct_n, leaders, self_bleu, tokenize
from astra_accel.evaluation.figures.goals import goal_figures
from astra_accel.evaluation.figures.metrics import (
    CURVE_THRESHOLDS,
    RESPONSE_SCORE,
    embedding_distance,
    statistics_of,
    success_curve,
)
from astra_accel.evaluation.figures.missing import FAILURE, LOWER, NUM_MISSING, SAFE, UPPER, estimates_of
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.tries import KM_MEDIAN, survival

Embed = Callable[[list[str]], torch.Tensor]
"""Maps texts to their embeddings, ``[texts, size]``."""

ATTACK_SIMILARITY = 0.7
"""Two attacks whose embeddings have at least this cosine count as one."""


def summarize(
    nodes: Nodes,
    *,
    threshold: float,
    scorers: Sequence[str] = (),
    embed: Embed | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure that can be computed from the nodes, with its interval if it has one.

    Args:
        nodes: the evaluation's nodes.
        threshold: a response with at least this score is a success of the attack.
        scorers: the names of the held-out scorers.
        embed: computes sentence embeddings; if None, the figures that need them are listed under ``left_out``.
        num_resamples, seed: see :func:`~astra_accel.evaluation.figures.bootstrap.estimate`.

    Returns:
        A dict for JSON: ``metrics`` by name, each with ``value`` and, unless it can't be resampled, ``low`` and
        ``high``; if scores are missing, ``num_missing``, and both ends as ``lower`` and ``upper``; ``curve``, the
        success rates over thresholds; if responses have scores, ``survival``, the share of tries without a success over
        questions; if prompts have goals, ``by_category`` and ``by_goal``; ``left_out``, the reasons by name; and the
        counts.
    """
    statistics = statistics_of(nodes, threshold, scorers)
    counted: dict[str, Any] = {name: {"value": value} for name, value in text_diversity(nodes.probes).items()}
    left_out = {}
    if embed is None:
        left_out = dict.fromkeys(("diversity/embedding", "distinct_attacks"), "no embedding model was given")
    else:
        embedding_ND = embeddings_of(nodes.probes, embed)
        statistics["diversity/embedding"] = embedding_distance(nodes, embedding_ND)
        if RESPONSE_SCORE in nodes.columns:
            counted["distinct_attacks"] = _attacks(nodes, embedding_ND, threshold)
    curve = success_curve(nodes) if RESPONSE_SCORE in nodes.columns else {}
    points: dict[str, Statistic] = {f"{turns}@{at}": statistic for (turns, at), statistic in curve.items()}
    tables, further = _of_tries_and_goals(nodes, threshold, num_resamples=num_resamples, seed=seed)
    estimates = estimates_of(statistics, nodes.num_episodes, num_resamples=num_resamples, seed=seed)
    along_curve = estimates_of(points, nodes.num_episodes, num_resamples=num_resamples, seed=seed)
    return {
        "num_episodes": nodes.num_episodes,
        "num_nodes": len(nodes.probes),
        "threshold": threshold,
        "interval": {
            "kind": "BCa bootstrap over episodes; Wilson's where none or all of them succeed",
            "confidence": CONFIDENCE,
            "num_resamples": num_resamples,
            "seed": seed,
        },
        "metrics": estimates | counted | further,
        "curve": [
            {"threshold": at, **{turns: along_curve[f"{turns}@{at}"] for turns in ("turn_1", "any_turn")}}
            for at in (CURVE_THRESHOLDS if curve else ())
        ],
        **tables,
        "left_out": left_out,
    }


def _of_tries_and_goals(nodes: Nodes, threshold: float, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables over questions, by category and by goal; and the metrics that come with them."""
    if RESPONSE_SCORE not in nodes.columns:
        return {}, {}
    points, median = survival(nodes, RESPONSE_SCORE, threshold)
    tables, metrics = goal_figures(nodes, RESPONSE_SCORE, threshold, **options)
    return {"survival": points, **tables}, {KM_MEDIAN: {"value": median}, **metrics}


def text_diversity(probes: Sequence[str]) -> dict[str, float | None]:
    """How different the probes are as texts. Raises ``ImportError`` if sacrebleu is not installed."""
    tokens = tokenize(probes)
    likeness = self_bleu(tokens)
    return {
        **{f"diversity/distinct_{n}": distinct_n(tokens, n) for n in (1, 2, 3)},
        "diversity/self_bleu": None if likeness is None else 1 - likeness,
    }


def embeddings_of(texts: Sequence[str], embed: Embed) -> np.ndarray:
    """The embedding of each text, ``[texts, size]``; equal texts are embedded once.

    Raises:
        ValueError: ``embed`` does not return one row per text.
    """
    distinct = {text: index for index, text in enumerate(dict.fromkeys(texts))}
    embedding = embed(list(distinct)).detach().cpu().double().numpy()
    if embedding.ndim != 2 or len(embedding) != len(distinct):
        raise ValueError(
            f"embed returned shape {list(embedding.shape)} for {len(distinct)} texts; expected a row a text"
        )
    return embedding[[distinct[text] for text in texts]]


def _attacks(nodes: Nodes, embedding_ND: np.ndarray, threshold: float) -> dict[str, Any]:
    """The number of kinds of attack; if scores are missing, also as if each missing one were a success."""
    missing = int(np.isnan(nodes.columns[RESPONSE_SCORE]).sum())
    seen, with_missing = (
        distinct_attacks(nodes.filled(RESPONSE_SCORE, score).columns[RESPONSE_SCORE], embedding_ND, threshold)
        for score in (SAFE, FAILURE)
    )
    if not missing:
        return {"value": seen}
    # One more success may represent two that were seen, so more successes can mean fewer kinds.
    ends = {LOWER: {"value": seen}, UPPER: {"value": max(seen, with_missing)}}
    return {"value": seen, NUM_MISSING: missing, **ends}


def distinct_attacks(scores_N: np.ndarray, embedding_ND: np.ndarray, threshold: float) -> float:
    """The number of kinds of successful probes; the worst of a kind represents it."""
    worst_first = np.argsort(-scores_N, kind="stable")
    successful = [index for index in worst_first if scores_N[index] >= threshold]
    return float(len(leaders(embedding_ND[successful], ATTACK_SIMILARITY)))
