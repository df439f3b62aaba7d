"""Figures as a person reads them on a screen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from astra_accel.evaluation.metrics import headlines


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
    for name, why in metrics["left_out"].items():
        console.print(f"left out: {name}: {why}", markup=False)
    console.print(f"all figures and every conversation are in {folder}", markup=False)


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """How the figures of two evaluations differ."""
    console = Console()
    console.print(f"first:  {comparison['first']}\nsecond: {comparison['second']}", markup=False)
    for line in comparison["differing"]:
        console.print(f"different: {line}", markup=False)
    title = f"{comparison['num_episodes']} held-out prompts, success from a score of {comparison['threshold']}"
    table = Table("", "first", "second", "difference", "95% interval", title=title)
    for name in headlines(comparison["metrics"]):
        figure = comparison["metrics"][name]
        difference = figure["difference"]
        values = (figure["first"], figure["second"], difference["value"])
        table.add_row(name, *map(number, values), interval_of(difference))
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
