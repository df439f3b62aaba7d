"""Which layers of a model a new adapter is put on."""

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
    """PEFT's configuration of a new adapter, with what it is put on by name.

    ``all-linear`` is every linear layer that a forward on text calls, but for the head, routers, and those of which
    PEFT knows that fused kernels read their weights. Other target modules are those of them that the forward calls. A
    name in a list that no linear layer has is that of a parameter.

    Args:
        lora: what was asked for.
        model: a transformers model that carries no adapter yet.
        source: its name, for messages.

    Raises:
        ValueError: target modules that no forward on text calls, or that PEFT refuses.
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
    """Those of some target modules that match none of the names."""
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
    """The layers that were named, all of which a forward on text calls and PEFT adapts."""
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
    """Why PEFT refuses to adapt a layer."""
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.rpartition(".")[2])
    except ValueError as error:
        return str(error)
    return None


def _renamed_by_peft(names: Sequence[str], model: Any) -> list[str]:
    """Those layers whose names PEFT takes for the experts of old checkpoints, and would put the adapter on those.

    transformers 5 has the experts of a layer in one parameter. PEFT reads ``gate_proj`` as a part of it, also where it
    is the layer of a shared expert or of a dense one. By their parameters' names they are found all the same.
    """
    kept = {}
    for leaf in {name.rpartition(".")[2] for name in names}:
        probe = LoraConfig(target_modules=[leaf])
        try:
            convert_peft_config_for_transformers(probe, model, None)
        except ValueError:  # It wants all parts of the experts named.
            kept[leaf] = False
        else:
            kept[leaf] = leaf in (probe.target_modules or ())
    return [name for name in names if not kept[name.rpartition(".")[2]]]


def _spelled(modules: Sequence[str], model: Any, asked: str | Sequence[str]) -> str | list[str]:
    """A way to name these layers to PEFT, and no others: as they were asked for, if that is one."""
    for targets in (asked, list(modules)):
        patterns = [targets] if isinstance(targets, str) else targets
        matched = {name for name, _ in model.named_modules() if any(_matches(targets, one, name) for one in patterns)}
        if matched == set(modules):
            return targets if isinstance(targets, str) else list(targets)
    return "|".join(re.escape(name) for name in modules)
