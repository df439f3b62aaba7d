"""Makes text of models and users safe to display.

A text may contain what a terminal, a browser or a renderer acts on: escape sequences, marks that change the text
direction, lone surrogates. They are shown by name here; markup is escaped where the text is inserted.
"""

from __future__ import annotations

import json
import re
from typing import Any

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_NAMED = [
    *range(0x80, 0xA0),  # more controls
    0x061C,
    *range(0x200B, 0x2010),  # zero width; left-to-right and right-to-left marks
    *range(0x2028, 0x202F),  # line separators; direction embeddings and overrides
    *range(0x2066, 0x206A),  # isolates
    0xFEFF,
    *range(0xD800, 0xE000),  # lone surrogates
]
_SHOWN_AS = {chr(code): text for code, text in _PICTURES.items()} | {chr(code): f"[U+{code:04X}]" for code in _NAMED}
_ACTING = re.compile(f"[{re.escape(''.join(_SHOWN_AS))}]")


def visible(text: str) -> str:
    """The text with every active character shown as a symbol or its name (``␛``, ``[U+202E]``)."""
    return _ACTING.sub(lambda found: _SHOWN_AS[found[0]], text)  # most texts have none, which a search finds quickly


def shortened(text: str, limit: int) -> str:
    """The text, or its beginning and how much was cut."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def embedded_json(value: Any) -> str:
    """JSON for a script element: plain ASCII without characters that could end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def markdown_line(text: str) -> str:
    """The text as one line of Markdown, with every character escaped that could begin markup or a link."""
    return re.sub(r"([\\`*_{}\[\]<>#+!|~&:@])", r"\\\1", " ".join(visible(text).split()))


def markdown_block(text: str) -> str:
    """The text as an indented Markdown code block, which nothing in it can end."""
    return "\n".join(f"    {line}" for line in visible(text).split("\n"))


def valid_text(text: str) -> str:
    """The text with what UTF-8 can't hold (lone surrogates) replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
