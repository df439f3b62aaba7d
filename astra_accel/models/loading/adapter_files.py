"""Check that a LoRA adapter is complete and fits its model, before the weights of either load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from transformers.pytorch_utils import Conv1D

from astra_accel.errors import ConfigurationError
from astra_accel.files.model_places import check_place, local_folder
from astra_accel.files.saved_models import (
    ADAPTER_WEIGHTS,
    damage_of_settings,
    damage_of_weights,
    tensors_of,
)
from astra_accel.models.loading.saved_adapters import check_adapter
from astra_accel.whole_models import build_skeleton

ADAPTER_CONFIG = "adapter_config.json"
_A, _B = ".lora_A.weight", ".lora_B.weight"
_WRAPPED = "base_model.model."


def check_adapter_files(adapter: str, field: str, config: Any, base: str, *, trust_remote_code: bool = False) -> None:
    """Check that the roles can take an adapter, that it is complete, and that it was made for this model.

    The files of a hub adapter that is not cached are not checked.

    Args:
        adapter: a hub id or a folder.
        field: the field that names it, such as "tester.adapter".
        config: the configuration of the model that it adapts.
        base: that model's name in the run's configuration.
        trust_remote_code: whether that model may run its own code.

    Raises:
        FileNotFoundError, ConfigurationError: a check fails; the message names the field, what was found and what was
            expected.
    """
    check_place(adapter, field, "a LoRA adapter")
    folder = local_folder(adapter, None, ADAPTER_CONFIG)
    if folder is not None:
        _check_settings(folder, adapter, field)
    check_adapter(adapter, field)
    if folder is None:
        return
    damage = damage_of_weights(folder, ADAPTER_WEIGHTS)
    if damage is not None:
        raise ConfigurationError(f"{field} is {adapter!r}, in whose folder {damage}")
    made_with = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    misfit = _misfit(folder, made_with, build_skeleton(config, trust_remote_code=trust_remote_code))
    if misfit is not None:
        raise ConfigurationError(
            f"{field} is {adapter!r}, which was made for {made_with.get('base_model_name_or_path')!r} and does not fit "
            f"{base!r}: {misfit}"
        )


def _check_settings(folder: Path, adapter: str, field: str) -> None:
    if not (folder / ADAPTER_CONFIG).is_file():
        whole = ", but the config.json of a whole model" if (folder / "config.json").is_file() else ""
        raise FileNotFoundError(
            f"{field} is the folder {folder}, which has no {ADAPTER_CONFIG}{whole}: expected a LoRA adapter"
        )
    damage = damage_of_settings(folder)
    if damage is not None:
        raise ConfigurationError(f"{field} is {adapter!r}, in whose folder {damage}")


def _misfit(folder: Path, made_with: Mapping[str, Any], skeleton: torch.nn.Module) -> str | None:
    modules = dict(skeleton.named_modules())
    targets = _own_targets(made_with, skeleton)
    if targets and not any(_is_meant(name, target) for name in modules for target in targets):
        return f"it adapts {', '.join(sorted(targets))}, and there is no layer of that name"
    weights = folder / ADAPTER_WEIGHTS[0]
    if not weights.is_file():
        return None  # the other format lists its tensors only as they load
    for name, size in _sizes(tensors_of(weights)):
        there = _size_of(modules.get(name))
        if there is not None and there != size:
            return f"its {name} takes {size[0]} numbers to {size[1]}, the model's {there[0]} to {there[1]}"
    return None


def _own_targets(made_with: Mapping[str, Any], skeleton: torch.nn.Module) -> list[str]:
    """The layers that an adapter names, if PEFT keeps these names in this version of transformers; else none.

    This version keeps a layer's experts in one parameter, and PEFT maps their old names to parts of it.
    """
    targets = made_with.get("target_modules")
    if not isinstance(targets, list):
        return []
    renamed = LoraConfig(target_modules=list(targets))
    try:
        convert_peft_config_for_transformers(renamed, skeleton, None)
    except ValueError:  # PEFT wants all parts of the experts named.
        return []
    return targets if set(renamed.target_modules or ()) == set(targets) else []


def _sizes(tensors: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, tuple[int, int]]]:
    """The layers that an adapter is on, with the input and output size of each."""
    for name, shape in tensors.items():
        after = tensors.get(name.removesuffix(_A) + _B)
        if name.endswith(_A) and after is not None and len(shape) == len(after) == 2:
            yield name.removesuffix(_A).removeprefix(_WRAPPED), (shape[1], after[0])


def _size_of(layer: torch.nn.Module | None) -> tuple[int, int] | None:
    if isinstance(layer, torch.nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return None


def _is_meant(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)
