"""Puts on a page what its lines ``<!-- generate: NAME -->`` ask for: made of the code, so that it can't be stale."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from benchmark_figures import benchmarks
from fields import configuration
from mkdocs.exceptions import PluginError
from options import algorithms, scorers, terms

MARK = re.compile(r"^<!-- generate: (?P<name>\w+) -->$", re.MULTILINE)
GENERATORS: dict[str, Callable[[], str]] = {
    "algorithms": algorithms,
    "benchmarks": benchmarks,
    "configuration": configuration,
    "scorers": scorers,
    "terms": terms,
}


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by MkDocs for every page.

    Raises:
        PluginError: the page asks for something that there is not.
    """

    def generate(mark: re.Match[str]) -> str:
        if mark["name"] not in GENERATORS:
            raise PluginError(f"{page.file.src_uri} asks for {mark['name']!r}; expected one of {', '.join(GENERATORS)}")
        return GENERATORS[mark["name"]]()

    return MARK.sub(generate, markdown)
