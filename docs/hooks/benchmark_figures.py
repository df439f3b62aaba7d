"""What the last runs of the benchmarks measured, from ``benchmarks/results``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from markdown_parts import code, table

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def benchmarks() -> str:
    """One section per result: its machine and options, medians and ratios."""
    paths = sorted(RESULTS.glob("*.json"))
    return "\n\n".join(_part(path.stem, json.loads(path.read_text(encoding="utf-8"))) for path in paths)


def _part(title: str, result: dict[str, Any]) -> str:
    machine, unit = result["machine"], result["unit"]
    options = ", ".join(f"{name}: {value}" for name, value in result["options"].items())
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    rows = [(name, f"{value:.4g} {unit}") for name, value in result["medians"].items()]
    rows += [(name, _shown(value)) for name, value in {**result["figures"], **result["ratios"]}.items()]
    return "\n\n".join(
        [
            f"### {title}",
            f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
            f"{machine['memory_gb']:g} GB, {machine['system']}, {machine['accelerator']}; {versions}.",
            f"Options: {code(options)}.",
            table(("measured", "median, or figure"), rows),
        ]
    )


def _shown(value: float | str | list[float] | dict[str, float]) -> str:
    """A number, a number with its interval, several numbers, or words."""
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, dict):
        interval = f" [{_shown(value['low'])}, {_shown(value['high'])}]" if value.get("low") is not None else ""
        return _shown(value["value"]) + interval
    return value if isinstance(value, str) else f"{value:.4g}"
