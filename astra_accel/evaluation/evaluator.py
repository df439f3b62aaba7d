"""The evaluator of adaptive stress testing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from accelerate import Accelerator

from astra_accel.core.evaluator import Evaluator
from astra_accel.core.sampler import Graph, Sampler, missing_terms, term_values, walk

if TYPE_CHECKING:
    from astra_accel.evaluation.benign import Benign
    from astra_accel.evaluation.figures.summary import Embed


RESPONSE_SCORE = "response_score"
SUCCESS, SUCCESS_UPPER, NUM_UNDETERMINED = "attack_success", "attack_success/upper", "attack_success/num_undetermined"
REWARD = "reward/mean"
ROWS = "rows"
"""The key in an episode's metrics for the rows that the requested figures are computed from."""


class ASTEvaluator(Evaluator):
    """Measures rewards, and how often, how badly and in how many ways the target failed.

    During training, a trainer calls :meth:`compute_metrics` and :meth:`aggregate_metrics` on its evaluation rollouts:
    scores come from the nodes (an ``ASTSystem`` stores them there), so nothing is scored twice. For evidence use
    :meth:`evaluate_to`, which writes every node and figures with intervals to a folder::

        evaluator = ASTEvaluator(sampler, held_out_prompts, scorers={"insult": DetoxifyScorer(label="insult")})
        metrics = evaluator.evaluate_to("runs/demo/evaluation")["metrics"]
        print(metrics["attack_success/any_turn"])    # {"value": 0.25, "low": 0.15, "high": 0.39}

    Args:
        sampler: makes the evaluation rollouts.
        seeds: one per episode; None counts from 0.
        threshold: a response with at least this score is a failure of the target.
        scorers: further scorers by name, not used to train the tester.
        embed: maps texts to sentence embeddings ``[texts, size]``, to measure how different the probes are in meaning.
        num_resamples: the number of resamples for bootstrap intervals.
        figures: the figures of ``evaluate_to`` that :meth:`aggregate_metrics` also computes, from
            :data:`~astra_accel.evaluation.figures.dev_figures.DEV_FIGURES` (``probe_perplexity/median``, ``self_bleu``,
            …). They cost a pass of the baseline, or of the scorer on the probes; figures not requested cost nothing.

        benign: harmless requests that ``evaluate_to`` asks the target, to measure how often it refuses them.

    Raises:
        ValueError: a scorer's name is taken, or contains "/" or "~", which separate the parts of figures' names; or
            there is no such figure.
        ImportError: a package that a figure needs is not installed.
    """

    def __init__(
        self,
        sampler: Sampler,
        seeds: Sequence[Any] | None = None,
        threshold: float = 0.5,
        *,
        scorers: Mapping[str, Any] | None = None,
        embed: Embed | None = None,
        num_resamples: int = 2000,
        figures: Sequence[str] = (),
        benign: Benign | None = None,
    ) -> None:
        super().__init__(sampler, seeds)
        self.threshold = threshold
        self.scorers = dict(scorers or {})
        self.embed = embed
        self.num_resamples = num_resamples
        self.figures = list(figures)
        self.benign = benign
        check_scorer_names(self.scorers)
        if self.figures:
            from astra_accel.evaluation.figures.dev_figures import check_dev_figures

            check_dev_figures(self.figures)

    def compute_metrics(self, graph: Graph) -> dict[str, float]:
        """The metrics of one episode: means over the nodes that have them, and the worst response's score.

        ``attack_success`` is 1 if a scored response is a success, whatever is missing. If none is and a score is
        missing, the outcome is unknown: it is 0, and ``attack_success/upper`` is 1. The mean of a term that is missing
        at every node is nan.
        """
        nodes = [node for _, node in walk(graph)]
        terms = term_values(nodes)
        figures = {"reward": [node.reward for node in nodes if node.reward is not None], **terms}
        metrics = {f"{name}/mean": fmean(values) for name, values in figures.items() if values}
        scores = terms.get(RESPONSE_SCORE, [])
        missing = [node for node in nodes if getattr(node, "info", {}).get(RESPONSE_SCORE, 0.0) is None]
        metrics |= {f"{name}/mean": math.nan for name in missing_terms(nodes) if name not in terms}
        if scores:
            metrics["response_score/max"] = max(scores)
        elif missing:
            metrics["response_score/max"] = math.nan
        if scores or missing:
            succeeded = max(scores, default=-math.inf) >= self.threshold
            metrics[SUCCESS] = float(succeeded)
            if missing and not succeeded:
                metrics[SUCCESS_UPPER] = 1.0
        return metrics

    def compute_metrics_many(self, graphs: Sequence[Graph]) -> list[dict[str, Any]]:
        """The metrics of each episode, with the rows that ``figures`` are computed from."""
        metrics: list[dict[str, Any]] = [dict(self.compute_metrics(graph)) for graph in graphs]
        if self.figures:
            from astra_accel.evaluation.figures.dev_figures import rows_of

            for episode, rows in zip(metrics, rows_of(self.figures, graphs, self.sampler.system), strict=True):
                episode[ROWS] = rows
        return metrics

    def aggregate_metrics(self, metrics: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The mean of each metric over the episodes that have it, nan if all lack it; and ``figures``.

        ``attack_success`` is over all episodes whose responses were to be scored: the lower end, which counts no
        response without a score as a success. Only if that leaves episodes undetermined, there are also
        ``attack_success/upper``, which counts each of those as a success, and ``attack_success/num_undetermined``,
        their number.
        """
        names = dict.fromkeys(name for episode in metrics for name in episode if name not in (SUCCESS_UPPER, ROWS))
        if metrics:
            names.setdefault(REWARD)
        found = {name: _mean([episode[name] for episode in metrics if name in episode]) for name in names}
        undetermined = sum(SUCCESS_UPPER in episode for episode in metrics)
        if undetermined:
            found[SUCCESS_UPPER] = fmean(
                episode.get(SUCCESS_UPPER, episode[SUCCESS]) for episode in metrics if SUCCESS in episode
            )
            found[NUM_UNDETERMINED] = float(undetermined)
        if self.figures:
            from astra_accel.evaluation.figures.dev_figures import dev_figures

            found |= dev_figures(self.figures, [row for episode in metrics for row in episode.get(ROWS, ())])
        return found

    def evaluate_to(
        self, folder: str | Path, *, accelerator: Accelerator | None = None, **options: Any
    ) -> dict[str, Any]:
        """Evaluate on all seeds, write nodes and figures to a folder, and return the figures.

        All processes of the accelerator must call it; it is resumable. See
        :func:`astra_accel.evaluation.loop.evaluate_to` for options, files and errors.
        """
        from astra_accel.evaluation.loop import evaluate_to

        return evaluate_to(folder, self, accelerator=accelerator, **options)

    def describe(self) -> dict[str, Any]:
        """What the nodes depend on in this evaluator, except the seeds; JSON values."""
        trained_by = getattr(self.sampler.system, "scorer", None)
        judges = {"reward": trained_by, **self.scorers}
        tries = getattr(self.sampler, "eval_tries", 1)
        return {
            "scorers": {name: type(scorer).__name__ for name, scorer in judges.items() if scorer is not None},
            "tree_width": getattr(self.sampler, "eval_width", None),
            "tree_depth": getattr(self.sampler, "eval_depth", None) or getattr(self.sampler, "tree_depth", None),
            **({"tries": tries} if tries != 1 else {}),
        }

    def judge(self, graphs: Sequence[Graph]) -> list[list[dict[str, Any]]]:
        """The rows of the nodes of each graph; see :func:`astra_accel.evaluation.judging.judge`."""
        from astra_accel.evaluation.judging import judge

        return judge(graphs, self.sampler.system, self.scorers)

    def measure(self, rows: Sequence[Mapping[str, Any]], benign: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
        """All figures of the rows; see :func:`astra_accel.evaluation.figures.summary.summarize`.

        Args:
            rows: the nodes.
            benign: the target's answers to harmless requests, if it was asked any.
        """
        from astra_accel.evaluation.figures.nodes import Nodes
        from astra_accel.evaluation.figures.summary import summarize

        width = getattr(self.sampler, "eval_width", None)
        nodes = Nodes.from_rows(rows, 1 + max(row["episode"] for row in rows), width)
        figures = summarize(
            nodes,
            threshold=self.threshold,
            scorers=list(self.scorers),
            embed=self.embed,
            num_resamples=self.num_resamples,
        )
        if benign:
            from astra_accel.evaluation.benign import refusal_figure

            figures["metrics"] |= refusal_figure(benign, num_resamples=self.num_resamples)
            figures["num_benign"] = len(benign)
        return figures


def metric_names(terms: Sequence[str]) -> list[str]:
    """The metrics of every evaluation in training, given the reward's terms."""
    means = [f"{name}/mean" for name in terms]
    return [REWARD, *means, *([f"{RESPONSE_SCORE}/max", SUCCESS] if RESPONSE_SCORE in terms else [])]


def figures_among(names: Sequence[str]) -> list[str]:
    """Those of the given metrics that must be requested from an evaluator through ``figures``."""
    from astra_accel.evaluation.figures.dev_figures import DEV_FIGURES

    return [name for name in dict.fromkeys(names) if name in DEV_FIGURES]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan


def check_scorer_names(names: Mapping[str, Any]) -> None:
    """Raise ``ValueError`` for a scorer's name that can't be part of a figure's name."""
    for name in names:
        if name in ("", "reward") or "/" in name or "~" in name:
            raise ValueError(
                f"a held-out scorer is called {name!r}; expected a name other than 'reward', without / and ~"
            )
