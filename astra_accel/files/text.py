"""Text of models and users, so that it is looked at and nothing else.

A text may hold what a terminal, a browser or a renderer acts on: escape sequences, marks that turn the direction of
what follows, half characters. They are shown by name here; markup is escaped where the text is put.
"""

from __future__ import annotations

import json
import re
from typing import Any

_PICTURES = {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: "\u2421"}
_NAMED = [
    *range(0x80, 0xA0),  # more controls
    0x061C,
    *range(0x200B, 0x2010),  # no width; left-to-right and right-to-left marks
    *range(0x2028, 0x202F),  # separators of lines; embeddings and overrides of direction
    *range(0x2066, 0x206A),  # isolates
    0xFEFF,
    *range(0xD800, 0xE000),  # half characters
]
_SHOWN_AS = {chr(code): text for code, text in _PICTURES.items()} | {chr(code): f"[U+{code:04X}]" for code in _NAMED}
_ACTING = re.compile(f"[{re.escape(''.join(_SHOWN_AS))}]")


def visible(text: str) -> str:
    """The text with everything that would act shown by a picture or its name (``␛``, ``[U+202E]``)."""
    return _ACTING.sub(lambda found: _SHOWN_AS[found[0]], text)  # most texts have none, which a search sees at once


def shortened(text: str, limit: int) -> str:
    """The text, or its beginning and how much more there is."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit:,} more characters)"


def embedded_json(value: Any) -> str:
    """JSON for a script element: plain ASCII without a character that ends the element or begins a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def markdown_line(text: str) -> str:
    """The text on one line of Markdown, with every mark escaped that could begin markup or a link."""
    return re.sub(r"([\\`*_{}\[\]<>#+!|~&:@])", r"\\\1", " ".join(visible(text).split()))


def markdown_block(text: str) -> str:
    """The text as a code block of Markdown by indentation, which nothing in it can end."""
    return "\n".join(f"    {line}" for line in visible(text).split("\n"))


def valid_text(text: str) -> str:
    """The text with what UTF-8 can't hold (lone surrogates) replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")
