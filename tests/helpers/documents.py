"""What the documents for users say: their pages, the blocks of code in them, and the names in their texts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"(?P<left_out><!-- not run: .+ -->\n)?^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)
INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        language: as its fence names it; "" where it names none.
        code: its text.
        line: of the page, on which the code begins.
        run: whether the page does not say that it can't be run.
    """

    language: str
    code: str
    line: int
    run: bool


def name_of(page: Path) -> str:
    """The path of a page in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[Block]:
    """The blocks of code of a page in a language, in their order."""
    text = page.read_text(encoding="utf-8")
    return [
        Block(language, found["code"], text.count("\n", 0, found.start("code")) + 1, not found["left_out"])
        for found in FENCE.finditer(text)
        if found["language"] == language
    ]


def inline_code(page: Path) -> list[str]:
    """What stands in the type of code in the text of a page, outside of blocks."""
    return INLINE.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
