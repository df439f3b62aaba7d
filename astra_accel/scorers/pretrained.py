"""What scorers with Hugging Face models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from astra_accel.errors import ConfigurationError
from astra_accel.files.model_places import check_place, local_folder, why_not_had
from astra_accel.files.saved_models import damage_of_settings, damage_of_weights
from astra_accel.whole_models import loaded_whole


def load_frozen(auto_class: Any, name: str, device: str | torch.device, dtype: str | torch.dtype | None) -> Any:
    """Load the model of a hub id or folder onto a device, in eval mode and without gradients.

    Args:
        auto_class: A transformers class with ``from_pretrained``.
        name: A hub id or a local folder.
        device: Where the model goes.
        dtype: The dtype of the weights; None and "auto" keep the checkpoint's.

    Raises:
        ValueError: The checkpoint lacks weights of this architecture. Transformers would initialise them at
            random, and the scores of a random head are noise.
    """
    with loaded_whole():
        model, info = auto_class.from_pretrained(
            name, dtype="auto" if dtype is None else dtype, output_loading_info=True, trust_remote_code=False
        )
    if info["missing_keys"]:
        raise ValueError(
            f"{name} has no weights for {', '.join(sorted(info['missing_keys']))} of {type(model).__name__}"
        )
    return freeze(model, device)


def find_saved(load: Callable[..., Any], name: str) -> Any:
    """Load the configuration or the tokenizer of a hub id or folder, never running its own code.

    Args:
        load: The ``from_pretrained`` of an auto class.
        name: A hub id or a local folder.

    Raises:
        ConfigurationError: The folder's files are damaged, or the hub does not serve it; the message names the option
            ``model``.
        FileNotFoundError: There is no such folder.
    """
    field = "the scorer's option model"
    check_place(name, field, "a saved model")
    folder = local_folder(name, None, "config.json")
    damage = None if folder is None else damage_of_settings(folder) or damage_of_weights(folder)
    if damage is not None:
        raise ConfigurationError(f"{field} is {name!r}, in whose folder {damage}")
    try:
        return load(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{field} is {name!r}, which can't be had: {why_not_had(error, name)}") from error


def freeze(model: Any, device: str | torch.device) -> Any:
    """Move a model to the device, in eval mode and without gradients, and return it."""
    return model.to(device).eval().requires_grad_(False)


def longest_input(model: Any, tokenizer: Any, max_length: int | None = None) -> int | None:
    """The most tokens that the model takes, including special ones; None if nothing limits it.

    The minimum of the tokenizer's ``model_max_length`` (1e30 if never set), the config's
    ``max_position_embeddings``, the positions that the embedding table actually has, and ``max_length``.

    Raises:
        ValueError: ``max_length`` is below 1 or above the model's limit.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or -1
    limits = [n for n in (tokenizer.model_max_length, positions, *_table_positions(model)) if 0 < n < 1e9]
    limit = int(min(limits)) if limits else None
    if max_length is None:
        return limit
    if max_length < 1 or (limit is not None and max_length > limit):
        raise ValueError(f"max_length is {max_length}, expected from 1 to {limit or 'any number'} tokens")
    return max_length


def _table_positions(model: Any) -> list[int]:
    # RoBERTa and similar models number positions from padding_idx + 1, so their table holds fewer than its size.
    return [
        module.num_embeddings - module.padding_idx - 1
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None
    ]


def label_index(names: Sequence[str], label: str) -> int:
    """The index of a label, ignoring case; if there is none of that name, a ValueError lists the labels."""
    folded = [name.casefold() for name in names]
    if label.casefold() not in folded:
        raise ValueError(f"unknown label {label!r}: the model has {', '.join(map(repr, names))}")
    return folded.index(label.casefold())
