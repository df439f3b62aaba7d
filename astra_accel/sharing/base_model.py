"""Which model of the hub a tester was made of, and under which licence, as far as that is known without asking it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from astra_accel.files.text import markdown_line
from astra_accel.models.loading.embedded import EMBEDDED_NAME, HUB_ID
from astra_accel.sharing.markdown import without_place

EMBEDDED_LICENSE = "apache-2.0"
TINY_NAME = "tiny"


def hub_id(model: Mapping[str, Any] | None) -> str | None:
    """The hub's name for the model of a configuration's section; None for a folder, and for one that is on no hub."""
    if model is None:
        return None
    path = str(model["path"])
    if path == EMBEDDED_NAME:
        return HUB_ID
    return None if is_tiny(path) or Path(path).exists() or not _may_be_on_hub(path) else path


def name_of(model: Mapping[str, Any]) -> str:
    """What a card calls a model, as text of Markdown: the hub's name, or that of its folder."""
    return markdown_line(hub_id(model) or without_place(str(model["path"])))


def license_of(model: Mapping[str, Any] | None) -> str | None:
    """The licence that a model's own card names, where it is at hand."""
    if model is None:
        return None
    if model["path"] == EMBEDDED_NAME:
        return EMBEDDED_LICENSE
    card = Path(model["path"]) / "README.md"
    if not card.is_file():
        return None
    try:
        return ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    except (ValueError, yaml.YAMLError):
        return None  # a card that can't be read names none, and is no reason to lose a trained tester


def _may_be_on_hub(path: str) -> bool:
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def is_tiny(path: str) -> bool:
    """Whether a model's path names one that is built in code."""
    return path.partition(":")[0] == TINY_NAME
