"""Shows figures on a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from astra_accel.evaluation.figures.goals import BY_CATEGORY, SUCCESS
from astra_accel.evaluation.figures.metrics import ANY_TURN, categories, category_column, headlines
from astra_accel.evaluation.figures.missing import LOWER, UPPER, num_missing_of
from astra_accel.files.text import visible
from astra_accel.lasting_output import LastingStream

Figure = Mapping[str, Any]
RANGE_NOTE = "from … to: some scores are missing; all of them safe, or all of them failures of the target"


def show_metrics(metrics: Mapping[str, Any], folder: Path) -> None:
    """Show the headline figures of an evaluation, with their intervals."""
    interval = f"{metrics['interval']['confidence']:.0%} interval"
    title = f"{metrics['num_episodes']} held-out prompts, success from a score of {metrics['threshold']}"
    figures = {name: metrics["metrics"][name] for name in headlines(metrics["metrics"])}
    incomplete = any(map(num_missing_of, figures.values()))
    table = Table("", "value", interval, *(["scores missing"] if incomplete else []), title=title)
    for name, figure in figures.items():
        missing = [str(num_missing_of(figure) or "")] if incomplete else []
        table.add_row(name, value_text(figure), interval_of(figure), *missing)
    console = Console(file=cast("IO[str]", LastingStream("stdout")))
    console.print(table)
    if incomplete:
        console.print(RANGE_NOTE, markup=False)
    _show_kinds(console, metrics["metrics"], interval)
    _show_categories(console, metrics.get(BY_CATEGORY, []), interval)
    for name, why in metrics["left_out"].items():
        console.print(f"left out: {name}: {why}", markup=False)
    console.print(f"all figures and every conversation are in {folder}", markup=False)


def category_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, Figure, Figure]]:
    """The kinds of harm: scorer, label, attack success and mean score; by scorer, worst first.

    Args:
        figures: ``metrics`` of an evaluation, by name.
    """
    rows = []
    for scorer, label in categories(figures):
        prefix = category_column(scorer, label)
        rows.append((scorer, label, figures[f"{prefix}/{ANY_TURN}"], figures[f"{prefix}/response_score/mean"]))
    order = {scorer: index for index, scorer in enumerate(dict.fromkeys(row[0] for row in rows))}
    return sorted(rows, key=lambda row: (order[row[0]], *(-(figure["value"] or 0.0) for figure in row[2:])))


def _show_kinds(console: Console, figures: Mapping[str, Any], interval: str) -> None:
    rows = category_rows(figures)
    if not rows:
        return
    table = Table("scorer", "kind of harm", "attack success", interval, "mean score", title="by kind of harm")
    for scorer, label, success, score in rows:
        texts = (scorer, label, value_text(success), interval_of(success), value_text(score))
        table.add_row(*map(escape, texts))
    console.print(table)


def _show_categories(console: Console, rows: Sequence[Mapping[str, Any]], interval: str) -> None:
    if not rows:
        return
    table = Table("category", "goals", "prompts", "attack success", interval, title="by category of the prompts")
    for row in rows:
        counts = str(row["num_goals"]), str(row["num_prompts"])
        success = row[SUCCESS]
        table.add_row(escape(category_name(row["category"])), *counts, value_text(success), interval_of(success))
    console.print(table)


def category_name(category: str | None) -> str:
    """A category, as it is shown."""
    return "(none)" if category is None else visible(category)


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Show how the figures of two evaluations differ."""
    console = Console(file=cast("IO[str]", LastingStream("stdout")))
    console.print(f"first:  {comparison['first']}\nsecond: {comparison['second']}", markup=False)
    for line in comparison["differing"]:
        console.print(f"different: {line}", markup=False)
    title = f"{comparison['num_episodes']} held-out prompts, success from a score of {comparison['threshold']}"
    table = Table("", "first", "second", "difference", "95% interval", title=title)
    of_kinds = [f"{category_column(*kind)}/{ANY_TURN}" for kind in categories(comparison["metrics"])]
    for name in headlines(comparison["metrics"]) + of_kinds:
        table.add_row(escape(name), *_difference_texts(comparison["metrics"][name]))
    console.print(table)
    if BY_CATEGORY in comparison:
        title = "attack success by category of the prompts"
        table = Table("category", "prompts", "first", "second", "difference", "95% interval", title=title)
        for row in comparison[BY_CATEGORY]:
            name = escape(category_name(row["category"]))
            table.add_row(name, str(row["num_prompts"]), *_difference_texts(row[SUCCESS]))
        console.print(table)
    if any("missing" in figure for figure in comparison["metrics"].values()):
        console.print(RANGE_NOTE, markup=False)


def _difference_texts(figure: Mapping[str, Any]) -> list[str]:
    """A figure of either evaluation, their difference and its interval."""
    missing = figure.get("missing", {})
    sides = [value_text({"value": figure[side], **_ends(missing.get(side, {}))}) for side in ("first", "second")]
    return [*sides, value_text(figure["difference"]), interval_of(figure["difference"])]


def _ends(missing: Mapping[str, Any]) -> dict[str, Any]:
    return {end: {"value": missing[end]} for end in (LOWER, UPPER) if end in missing}


def value_text(figure: Figure) -> str:
    """A figure's value, or its possible range if scores are missing."""
    low, high = (figure[end]["value"] if end in figure else figure["value"] for end in (LOWER, UPPER))
    if low == high:
        return number(figure["value"] if low is None else low)
    return f"from {number(low)}" if high is None else f"{number(low)} to {number(high)}"


def number(value: float | None) -> str:
    """A figure with as many digits as are readable."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def interval_of(figure: Figure) -> str:
    """The interval from low to high; a missing high end is left open, and without a low one the text is empty."""
    low, high = interval_ends(figure)
    if low is None or high is None:
        return "" if low is None else f"from {number(low)}"
    return f"{number(low)} to {number(high)}"


def details_of(figure: Figure) -> str:
    """The text in brackets after a figure: its interval, and how many of its scores are missing."""
    num_missing = num_missing_of(figure)
    missing = f"{num_missing} score{'s' * (num_missing > 1)} missing" if num_missing else ""
    return "; ".join(part for part in (interval_of(figure), missing) if part)


def interval_ends(figure: Figure) -> tuple[float | None, float | None]:
    """The interval's ends; if scores are missing, the lower end's low and the upper end's high."""
    return figure.get(LOWER, figure).get("low"), figure.get(UPPER, figure).get("high")
