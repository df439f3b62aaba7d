"""Docstrings as Markdown: the roles and literal blocks of reStructuredText in them, written as a page has them."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:class|func|meth|data|attr|mod):`~?(?P<target>[^`]+)`")
LINK = re.compile(r"`(?P<text>[^`<]+?)\s*<(?P<url>https?://[^>]+)>`_")
LITERAL = re.compile(r"::$", re.MULTILINE)


def to_markdown(text: str) -> str:
    """A docstring as Markdown."""
    text = ROLE.sub(lambda role: f"`{role['target'].rpartition('.')[2]}`", text)
    text = LINK.sub(r"[\g<text>](\g<url>)", text)
    return LITERAL.sub(":", text)


class MarkdownDocstrings(griffe.Extension):
    """Tells mkdocstrings of docstrings what :func:`to_markdown` makes of them."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        """Called for every object of a package."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value)
