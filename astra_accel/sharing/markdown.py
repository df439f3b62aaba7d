"""Pieces of the READMEs for models and data sets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_accel.files.text import markdown_line, visible

AUDIENCE_TAG = "not-for-all-audiences"
"""The hub's own tag: a page with it asks for confirmation before showing anything."""


def fenced(text: str, language: str = "") -> str:
    """A code block that nothing in the text can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{visible(text).rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table, with every cell as plain text."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    lines += [f"| {' | '.join(markdown_line(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines)


def prompt_sources(config: Mapping[str, Any]) -> str:
    """A table of the sources of a run's prompts; empty if there is no section of prompts."""
    sources = {name: source for name, source in config.get("prompts", {}).items() if source is not None}
    if not sources:
        return ""
    purposes = {"train": "training", "dev": "choosing the best checkpoint", "test": "the figures on held-out prompts"}
    rows = [
        (purposes.get(name, name), without_place(source["source"]), source["split"], source.get("revision") or "")
        for name, source in sources.items()
    ]
    return table(("prompts for", "source", "split", "revision"), rows)


def without_places(value: Any) -> Any:
    """Values of a configuration with this machine's folders shortened to their names, since paths are private."""
    if isinstance(value, Mapping):
        return {name: without_places(item) for name, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    return without_place(value) if isinstance(value, str) else value


def without_place(text: str) -> str:
    """A path of this machine as its name; any other text as it is."""
    return Path(text).name if Path(text).is_absolute() and "\n" not in text else text
