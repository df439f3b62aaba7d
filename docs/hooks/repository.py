"""Links from pages to files of the repository, which work where the repository is read and in the built site too.

A page links to ``../examples/train.py`` as it would on a code host. The site gets a copy of the file, as a text that a
browser shows, and the link leads there. A file that is not there is left to MkDocs, which warns.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
COPIES = "repository"
LINK = re.compile(r"(?<=\]\()\.\./[^)\s#]+")


def on_files(files: Any, *, config: Any) -> Any:
    """Called by MkDocs once: add the files that pages link to."""
    pages = list(files.documentation_pages())
    linked = {path for page in pages for link in LINK.findall(page.content_string) if (path := _path(page, link))}
    for path in sorted(linked):
        files.append(File.generated(config, _copy(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called by MkDocs for every page: lead its links to the copies."""

    def to_copy(link: re.Match[str]) -> str:
        path = _path(page.file, link[0])
        here = posixpath.dirname(page.file.src_uri)
        return posixpath.relpath(_copy(path), here or ".") if path else link[0]

    return LINK.sub(to_copy, markdown)


def _path(page: Any, link: str) -> str | None:
    """The path in the repository of a file that a page links to; None for pages, and for what is not there."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.src_uri), link))
    return None if path.startswith(("docs/", "..")) or not (ROOT / path).is_file() else path


def _copy(path: str) -> str:
    return f"{COPIES}/{path}.txt"
