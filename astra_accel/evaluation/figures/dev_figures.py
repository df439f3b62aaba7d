"""Figures of `astra-accel evaluate` that an evaluation during training also computes on request.

They need more than the rollouts contain: a pass of the baseline, a score of the probes alone, sacrebleu. ``self_bleu``
is self-BLEU itself, from 0 to 1 and lower where probes differ more; ``diversity/self_bleu`` is 1 minus that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from statistics import fmean, median
from typing import Any

from astra_accel.core.optional import HasBaseline, offers
from astra_accel.core.sampler import Graph, walk
from astra_accel.core.scorer import check_scores
from astra_accel.evaluation.figures.diversity import tokenize
from astra_accel.evaluation.figures.metrics import PERPLEXITY, PROBE_SCORE
from astra_accel.evaluation.figures.summary import text_diversity
from astra_accel.evaluation.judging import baseline_perplexities

MEDIAN_PERPLEXITY, MEAN_PROBE_SCORE, SELF_BLEU = f"{PERPLEXITY}/median", f"{PROBE_SCORE}/mean", "self_bleu"
PROBE = "probe"
OF_TEXTS = (SELF_BLEU, "diversity/self_bleu", "diversity/distinct_1", "diversity/distinct_2", "diversity/distinct_3")
DEV_FIGURES = (MEDIAN_PERPLEXITY, MEAN_PROBE_SCORE, *OF_TEXTS)
"""The figures that can be requested."""

Row = Mapping[str, Any]
"""The values of a node."""


def check_dev_figures(names: Collection[str]) -> None:
    """Reject a figure that can't be computed.

    Raises:
        ValueError: there is no figure of that name.
        ImportError: a package is missing; names the extra.
    """
    for name in names:
        if name not in DEV_FIGURES:
            raise ValueError(f"no figure {name!r} can be asked for; expected some of {', '.join(DEV_FIGURES)}")
    if any(name in OF_TEXTS for name in names):
        tokenize([])


def rows_of(names: Collection[str], graphs: Sequence[Graph], system: Any) -> list[list[Row]]:
    """What the figures are computed from: for each graph, one row per node, without values the system can't provide.

    Raises:
        ScorerError: the scorer did not return one number from 0 to 1, or None, per probe.
    """
    by_graph = [[node for _, node in walk(graph)] for graph in graphs]
    nodes = [node for of_graph in by_graph for node in of_graph]
    probes = [str(node.probe) for node in nodes]
    columns: dict[str, Sequence[Any]] = {PROBE: probes}
    scorer = getattr(system, "scorer", None)
    if MEDIAN_PERPLEXITY in names and nodes and offers(system, HasBaseline):
        columns[PERPLEXITY] = baseline_perplexities(system, nodes)
    if MEAN_PROBE_SCORE in names and nodes and scorer is not None:
        columns[PROBE_SCORE] = check_scores(scorer, probes, scorer.score(probes))
    rows = iter([dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)])
    return [list(islice(rows, len(of_graph))) for of_graph in by_graph]


def dev_figures(names: Collection[str], rows: Sequence[Row]) -> dict[str, float]:
    """The figures of all nodes; nan if no node has a value, and without those that no row has a column for."""
    found: dict[str, float | None] = {}
    for name, column, mean in ((MEDIAN_PERPLEXITY, PERPLEXITY, median), (MEAN_PROBE_SCORE, PROBE_SCORE, fmean)):
        values = [row[column] for row in rows if row.get(column) is not None]
        if any(column in row for row in rows):
            found[name] = mean(values) if values else None
    if any(name in OF_TEXTS for name in names):
        found |= text_diversity([row[PROBE] for row in rows])
        different = found["diversity/self_bleu"]
        found[SELF_BLEU] = None if different is None else 1 - different
    asked = {name: found[name] for name in names if name in found}
    return {name: math.nan if value is None else float(value) for name, value in asked.items()}
