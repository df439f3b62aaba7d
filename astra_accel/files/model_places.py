"""Where a model's files are: in a folder, in the hub's cache, or not here yet."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

LOCAL = ("/", "./", "../", "~", "\\")


def check_place(source: str, field: str, expected: str) -> None:
    """Reject a path that doesn't exist or is a file.

    Raises:
        FileNotFoundError, NotADirectoryError: the path is such a path; names the field.
    """
    path = Path(source)
    if path.is_dir():
        return
    if path.is_file():
        raise NotADirectoryError(
            f"{field} is {source!r}, which is a file; expected the folder of {expected}, or a hub id"
        )
    if source.startswith(LOCAL) or source in (".", "..") or source.count("/") > 1 or path.is_absolute():
        raise FileNotFoundError(
            f"{field} is {source!r}, and there is no such folder (looked for {path.absolute()}); expected the folder "
            f"of {expected}, or a hub id"
        )


def local_folder(source: str, revision: str | None, config_name: str) -> Path | None:
    """The folder of a model's files: its own, or the hub cache's if nothing can be downloaded.

    Args:
        source: a folder or a hub id.
        revision: a hub model's revision.
        config_name: the file that every such folder contains.
    """
    if Path(source).is_dir():
        return Path(source)
    if not huggingface_hub.constants.HF_HUB_OFFLINE:
        return None  # files not cached yet will be downloaded
    try:
        cached = huggingface_hub.try_to_load_from_cache(
            source, config_name, revision=revision, cache_dir=huggingface_hub.constants.HF_HUB_CACHE
        )
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def why_not_had(error: BaseException, source: str) -> str:
    """Why the hub did not provide something, in one line."""
    causes, cause = [], error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    for cause in causes:
        if isinstance(cause, GatedRepoError):
            return f"its owner lets in those who asked: do so at https://huggingface.co/{source}, then `hf auth login`"
        if isinstance(cause, RevisionNotFoundError):
            return "the hub has no such revision of it"
        if isinstance(cause, RepositoryNotFoundError):
            return "the hub has none of that name (one that is private takes `hf auth login`)"
        if isinstance(cause, OfflineModeIsEnabled | LocalEntryNotFoundError):
            offline = huggingface_hub.constants.HF_HUB_OFFLINE
            why = "HF_HUB_OFFLINE is set" if offline else "the hub can't be reached"
            return f"{why}, and it is not in the cache {huggingface_hub.constants.HF_HUB_CACHE}"
    return " ".join(str(error).split())
