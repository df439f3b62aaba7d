"""Which layers of a model a new adapter targets."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from peft import LoraConfig
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

from astra_accel.config import LoRAConfiguration
from astra_accel.models.loading.text_forward import adaptable_layers, is_linear

ALL_LINEAR = "all-linear"


def new_adapter_config(lora: LoRAConfiguration, model: Any, source: str) -> LoraConfig:
    """PEFT's configuration of a new adapter, with its targets by name.

    ``all-linear`` is every linear layer that a forward on text calls, except the head, routers, and layers that PEFT
    refuses because fused kernels read their weights. Other target modules match only layers that the forward calls. A
    listed name that no linear layer has is that of a parameter.

    Args:
        lora: the adapter's settings.
        model: a transformers model without an adapter.
        source: the model's name, for messages.

    Raises:
        ValueError: a forward on text does not call a target module, or PEFT refuses it.
    """
    reached, routers = adaptable_layers(model)
    asked = [lora.target_modules] if isinstance(lora.target_modules, str) else lora.target_modules
    by_name: str | list[str] = [name for name in asked if name != ALL_LINEAR]
    if isinstance(lora.target_modules, str):
        by_name = "" if lora.target_modules == ALL_LINEAR else lora.target_modules
    chosen = set(_named(by_name, reached, model, source))
    if ALL_LINEAR in asked:
        head = model.get_output_embeddings()
        usual = [name for name in reached if name not in routers and model.get_submodule(name) is not head]
        chosen |= {name for name in usual if _refusal(name, model) is None}
    ordered = [name for name in reached if name in chosen]
    renamed = _renamed_by_peft(ordered, model)
    parameters: list[str] = []
    if isinstance(by_name, list):
        parameters = unmatched(by_name, _linear_names(model))
        by_name = [name for name in by_name if name not in parameters]
    return LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        target_modules=_spelled([name for name in ordered if name not in renamed], model, by_name),
        target_parameters=[f"{name}.weight" for name in renamed] + parameters or None,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )


def unmatched(targets: str | Sequence[str], names: Iterable[str]) -> list[str]:
    """The target modules that match none of the names."""
    patterns = [targets] if isinstance(targets, str) else targets
    return [pattern for pattern in patterns if not any(_matches(targets, pattern, name) for name in names)]


def other_parameters(model: Any) -> list[str]:
    """The names of matrices, and of stacks of them, that belong to no linear layer (fused experts, embeddings)."""
    layers = set(_linear_names(model))
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.dim() in (2, 3) and name.rpartition(".")[0] not in layers
    ]


def _linear_names(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if is_linear(module)]


def _named(targets: str | list[str], reached: Sequence[str], model: Any, source: str) -> list[str]:
    """The layers that the targets name; a forward on text calls all of them and PEFT can adapt them."""
    if not targets:
        return []
    idle = unmatched(targets, reached)
    if isinstance(targets, list):
        idle = unmatched(idle, other_parameters(model))
    if idle:
        raise ValueError(
            f"lora.target_modules: {idle} match no linear layer of {source} that a forward on text calls: they belong "
            f"to another part of the model, or their weights are read past the layer, and an adapter does nothing. It "
            f"calls {', '.join(sorted({name.rpartition('.')[2] for name in reached}))}"
        )
    patterns = [targets] if isinstance(targets, str) else targets
    chosen = [name for name in reached if any(_matches(targets, one, name) for one in patterns)]
    for reason in filter(None, (_refusal(name, model) for name in chosen)):
        raise ValueError(f"lora.target_modules is {targets!r}: {reason}")
    return chosen


def _matches(targets: str | Sequence[str], pattern: str, name: str) -> bool:
    """PEFT's own rule: a string is a regular expression for the whole name, a list names the ends of names."""
    if isinstance(targets, str):
        return re.fullmatch(pattern, name) is not None
    return name == pattern or name.endswith("." + pattern)


def _refusal(name: str, model: Any) -> str | None:
    """Why PEFT refuses to adapt a layer; None if it does not."""
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError as error:
        return str(error)
    return None


def _renamed_by_peft(names: Sequence[str], model: Any) -> list[str]:
    """The layers whose names PEFT mistakes for experts of old checkpoints, which it would adapt instead.

    transformers 5 keeps the experts of a layer in one parameter. PEFT reads ``gate_proj`` as a part of it, even where
    it is a layer of a shared expert or a dense one. Targeting their parameters by name still reaches them.
    """
    kept = {}
    for leaf in {name.rpartition(".")[2] for name in names}:
        probe = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(probe, model, None)
        except ValueError:  # PEFT wants all parts of the experts named.
            kept[leaf] = False
        else:
            kept[leaf] = leaf in (probe.target_modules or ())
    return [name for name in names if not kept[name.rpartition(".")[2]]]


def _spelled(modules: Sequence[str], model: Any, asked: str | Sequence[str]) -> str | list[str]:
    """Target modules that match exactly these layers in PEFT: those asked for, if they do."""
    for targets in (asked, list(modules)):
        patterns = [targets] if isinstance(targets, str) else targets
        matched = {name for name, _ in model.named_modules() if any(_matches(targets, one, name) for one in patterns)}
        if matched == set(modules):
            return targets if isinstance(targets, str) else list(targets)
    return "|".join(re.escape(name) for name in modules)
