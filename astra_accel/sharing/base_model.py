"""Which hub model a tester was trained from, and its licence, as far as known without asking the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from astra_accel.config.models import TINY_NAME
from astra_accel.files.text import markdown_line
from astra_accel.models.loading.embedded import EMBEDDED_NAME, HUB_ID
from astra_accel.sharing.markdown import without_place

EMBEDDED_LICENSE = "apache-2.0"


def hub_id(model: Mapping[str, Any] | None) -> str | None:
    """The hub's name for the model of a configuration's section; None for a folder or a model not on the hub."""
    if model is None:
        return None
    path = str(model["path"])
    if path == EMBEDDED_NAME:
        return HUB_ID
    return None if is_tiny(path) or Path(path).exists() or not _may_be_on_hub(path) else path


def name_of(model: Mapping[str, Any]) -> str:
    """A model's name in a card, as Markdown text: the hub's name, its folder's name, or its name at an endpoint."""
    if model.get("endpoint") is not None:
        return markdown_line(str(model["model"]))
    return markdown_line(hub_id(model) or without_place(str(model["path"])))


def license_of(model: Mapping[str, Any] | None) -> str | None:
    """The licence that a model's own card names, if the card is available."""
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
        return None  # an unreadable card names none, and is no reason to lose a trained tester


def _may_be_on_hub(path: str) -> bool:
    try:
        validate_repo_id(path)
    except HFValidationError:
        return False
    return True


def is_tiny(path: str) -> bool:
    """Whether a model's path names a model built in code."""
    return path.partition(":")[0] == TINY_NAME
