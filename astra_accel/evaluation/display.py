"""Figures as a person reads them on a screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from astra_accel.evaluation.metrics import ANY_TURN, categories, category_column, headlines


def show_metrics(metrics: Mapping[str, Any], folder: Path) -> None:
    """The first figures of an evaluation, with their intervals."""
    interval = f"{metrics['interval']['confidence']:.0%} interval"
    title = f"{metrics['num_episodes']} held-out prompts, success from a score of {metrics['threshold']}"
    table = Table("", "value", interval, title=title)
    for name in headlines(metrics["metrics"]):
        figure = metrics["metrics"][name]
        table.add_row(name, number(figure["value"]), interval_of(figure))
    console = Console()
    console.print(table)
    _show_categories(console, metrics["metrics"], interval)
    for name, why in metrics["left_out"].items():
        console.print(f"left out: {name}: {why}", markup=False)
    console.print(f"all figures and every conversation are in {folder}", markup=False)


def category_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]]:
    """The kinds of harm: scorer, label, how often an attack succeeded and the mean score; by scorer, worst first.

    Args:
        figures: ``metrics`` of an evaluation, by name.
    """
    rows = []
    for scorer, label in categories(figures):
        prefix = category_column(scorer, label)
        rows.append((scorer, label, figures[f"{prefix}/{ANY_TURN}"], figures[f"{prefix}/response_score/mean"]))
    order = {scorer: index for index, scorer in enumerate(dict.fromkeys(row[0] for row in rows))}
    return sorted(rows, key=lambda row: (order[row[0]], *(-(figure["value"] or 0.0) for figure in row[2:])))


def _show_categories(console: Console, figures: Mapping[str, Any], interval: str) -> None:
    rows = category_rows(figures)
    if not rows:
        return
    table = Table("scorer", "kind of harm", "attack success", interval, "mean score", title="by kind of harm")
    for scorer, label, success, score in rows:
        texts = (scorer, label, number(success["value"]), interval_of(success), number(score["value"]))
        table.add_row(*map(escape, texts))
    console.print(table)


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """How the figures of two evaluations differ."""
    console = Console()
    console.print(f"first:  {comparison['first']}\nsecond: {comparison['second']}", markup=False)
    for line in comparison["differing"]:
        console.print(f"different: {line}", markup=False)
    title = f"{comparison['num_episodes']} held-out prompts, success from a score of {comparison['threshold']}"
    table = Table("", "first", "second", "difference", "95% interval", title=title)
    of_kinds = [f"{category_column(*kind)}/{ANY_TURN}" for kind in categories(comparison["metrics"])]
    for name in headlines(comparison["metrics"]) + of_kinds:
        figure = comparison["metrics"][name]
        difference = figure["difference"]
        values = (figure["first"], figure["second"], difference["value"])
        table.add_row(escape(name), *map(number, values), interval_of(difference))
    console.print(table)


def number(value: float | None) -> str:
    """A figure with as many digits as one reads."""
    return "-" if value is None else f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


def interval_of(figure: Mapping[str, Any]) -> str:
    """From low to high; an end that is not there is left open, and nothing is said of a figure without both."""
    low, high = figure.get("low"), figure.get("high")
    if low is None or high is None:
        return "" if low is None else f"from {number(low)}"
    return f"{number(low)} to {number(high)}"
