"""The charts of a report, each with the runs that have data for it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from markupsafe import Markup

from astra_accel.evaluation.display import interval_ends
from astra_accel.evaluation.figures.missing import num_missing_of
from astra_accel.files.text import visible
from astra_accel.report.collect import Run
from astra_accel.report.svg import Labels, Series, bar_chart, histogram, interval_chart, line_chart, point_chart

PointsOf = Callable[[Run], list[tuple[float, float]]]

INTERVALS = "Held-out prompts, with 95% intervals."
UP_TO_ALL_MISSING = "reaches up to where every response without a score is a success."
TURN = re.compile(r"attack_success/turn_(\d+)")


@dataclass(frozen=True)
class Plot:
    """A chart and what it shows."""

    title: str
    note: str
    svg: Markup


def plots_of(runs: Sequence[Run]) -> list[Plot]:
    """Every chart that some run has data for."""
    made = [
        _lines(Labels("Reward over training", "training step", "mean reward"), runs, rewards),
        _success_over_training(runs),
        _success_by_turn(runs),
        _success_curve(runs),
        _score_distribution(runs),
        _diversity_against_success(runs),
        _phase_times(runs),
    ]
    return [plot for plot in made if plot is not None]


def rewards(run: Run) -> list[tuple[float, float]]:
    """The mean reward of each training step."""
    return [(step, value) for step, value in _by_step(run, "reward/mean") if value is not None]


def successes(run: Run) -> list[tuple[float, float]]:
    """The share of responses in each training step whose score is known to reach the threshold."""
    shares = [(part.step, part.success_share(run.threshold)) for part in run.training]
    return [(float(step), share) for step, share in shares if step is not None and share is not None]


def success_ranges(run: Run) -> list[tuple[float, float]]:
    """For each point of :func:`successes`, the share if no response without a score were a success, and if all were."""
    ranges = [part.success_range(run.threshold) for part in run.training if part.step is not None]
    return [one for one in ranges if one is not None]


def diversity_and_success(run: Run) -> list[tuple[float, float]]:
    """The share of distinct word pairs in each training step's probes, and its share of successes."""
    points = [(part.distinct_pairs, part.success_share(run.threshold)) for part in run.training]
    return [(different, share) for different, share in points if different is not None and share is not None]


def phase_seconds(run: Run) -> dict[str, float]:
    """Seconds of the whole run by phase."""
    names = dict.fromkeys(name for update in run.updates for name in update if name.startswith("seconds/"))
    return {
        name.removeprefix("seconds/"): math.fsum(value for _, value in _by_step(run, name) if value is not None)
        for name in names
    }


def _success_over_training(runs: Sequence[Run]) -> Plot | None:
    labels = Labels("Success over training", "training step", "share of responses")
    incomplete = any(lower < upper for run in runs for lower, upper in success_ranges(run))
    series = [
        Series(run.name, number, successes(run), success_ranges(run) if incomplete else ())
        for number, run in enumerate(runs)
    ]
    there = [one for one in series if one.points]
    note = f"The band {UP_TO_ALL_MISSING}" if incomplete else ""
    return Plot(labels.title, note, line_chart(labels, there, True)) if there else None


def _lines(labels: Labels, runs: Sequence[Run], points_of: PointsOf, unit: bool = False) -> Plot | None:
    series = _with_points(runs, points_of)
    return Plot(labels.title, "", line_chart(labels, series, unit)) if series else None


def _with_points(runs: Sequence[Run], points_of: PointsOf) -> list[Series]:
    series = [Series(run.name, number, points_of(run)) for number, run in enumerate(runs)]
    return [one for one in series if one.points]


def _success_by_turn(runs: Sequence[Run]) -> Plot | None:
    series, incomplete = [], False
    for number, run in enumerate(runs):
        found = {} if run.figures is None else run.figures["metrics"]
        turns = sorted((int(match[1]), name) for name in found if (match := TURN.fullmatch(name)))
        estimates = [(turn, found[name]) for turn, name in turns if None not in interval_ends(found[name])]
        incomplete |= any(num_missing_of(figure) for _, figure in estimates)
        series.append(_estimated(run.name, number, estimates))
    return _with_intervals("Success by turn", "turn", interval_chart, series, incomplete)


def _success_curve(runs: Sequence[Run]) -> Plot | None:
    series, incomplete = [], False
    for number, run in enumerate(runs):
        curve = [] if run.figures is None else run.figures["curve"]
        estimates = [(point["threshold"], point["any_turn"]) for point in curve]
        incomplete |= any(num_missing_of(figure) for _, figure in estimates)
        series.append(_estimated(run.name, number, estimates))
    return _with_intervals("Success at any turn over thresholds", "threshold", line_chart, series, incomplete)


def _estimated(name: str, number: int, estimates: Sequence[tuple[float, Mapping[str, Any]]]) -> Series:
    return Series(
        name,
        number,
        [(x, estimate["value"]) for x, estimate in estimates],
        cast("list[tuple[float, float]]", [interval_ends(estimate) for _, estimate in estimates]),
    )


def _with_intervals(
    title: str, x_label: str, chart: Callable[..., Markup], series: Sequence[Series], incomplete: bool
) -> Plot | None:
    there = [one for one in series if one.points]
    if not there:
        return None
    labels = Labels(title, x_label, "share of episodes")
    note = f"{INTERVALS} Each {UP_TO_ALL_MISSING}" if incomplete else INTERVALS
    return Plot(title, note, chart(labels, there, True))


def _score_distribution(runs: Sequence[Run]) -> Plot | None:
    values = []
    for number, run in enumerate(runs):
        scores = [score for part in run.held_out or run.training for score in part.scores if score is not None]
        if scores:
            values.append((run.name, number, scores))
    if not values:
        return None
    title = "Scores of responses"
    note = "Of held-out conversations where a run was evaluated, else of training."
    return Plot(title, note, histogram(title, "score", values))


def _diversity_against_success(runs: Sequence[Run]) -> Plot | None:
    labels = Labels("Diversity against success", "different pairs of words over all", "share of responses")
    series = _with_points(runs, diversity_and_success)
    note = "A point for each training step: a tester that repeats itself moves to the left."
    return Plot(labels.title, note, point_chart(labels, series)) if series else None


def _phase_times(runs: Sequence[Run]) -> Plot | None:
    many = len(runs) > 1
    rows = [
        (visible(f"{run.name} {phase}" if many else phase), number, seconds)
        for number, run in enumerate(runs)
        for phase, seconds in phase_seconds(run).items()
    ]
    if not rows:
        return None
    title = "Time by phase"
    return Plot(title, "", bar_chart(title, rows, "s"))


def _by_step(run: Run, name: str) -> list[tuple[float, float | None]]:
    """A figure by training step, read from the lines of the step's updates."""
    last = {update["step"]: update[name] for update in run.updates if "step" in update and name in update}
    return list(last.items())
