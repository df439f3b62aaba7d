"""Saved adapters: which of them the roles can take, and how their weights load into a model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, PeftType, get_peft_model, get_peft_model_state_dict
from peft.utils import load_peft_weights, set_peft_model_state_dict
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

from astra_accel.errors import ConfigurationError

CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Initialisations that subtract a part from the base's weights, as PEFT does again when it loads such an adapter."""

BY_THEMSELVES = ("trainable_token_indices", "ensure_weight_tying")
"""Adapter fields that PEFT can't keep apart for two adapters on one model."""


def check_adapter(adapter: str, field: str) -> PeftConfig:
    """The configuration of a saved adapter, after checking that it can be switched off and on around its base.

    The roles share a base, so an adapter may change only its own weights. No weights are read.

    Args:
        adapter: a hub id or folder.
        field: the field of the run's configuration, for messages.

    Raises:
        ConfigurationError: there is no adapter, or it is of a kind that changes the base itself or needs more than the
            tokens.
    """
    try:
        config = PeftConfig.from_pretrained(adapter)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigurationError(f"{field} is {adapter!r}, where no adapter can be read: {error}") from error
    if config.peft_type != PeftType.LORA:
        kind = getattr(config.peft_type, "value", config.peft_type)
        raise ConfigurationError(f"{field}: the adapter {adapter} is of type {kind}; expected LORA")
    assert isinstance(config, LoraConfig)
    for name, found, reason in _refused(config):
        raise ConfigurationError(f"{field}: the adapter {adapter} has {name} = {found!r}, {reason}")
    return config


def _refused(config: LoraConfig) -> Iterator[tuple[str, Any, str]]:
    if config.bias != "none":
        reason = "so it changes biases of its base model, which the roles share; expected 'none'"
        yield "bias", config.bias, reason
    if config.layer_replication:
        reason = "which makes another model of its base, which the roles share; expected null"
        yield "layer_replication", config.layer_replication, reason
    if str(config.init_lora_weights).startswith(CHANGE_BASE):
        yield (
            "init_lora_weights",
            config.init_lora_weights,
            "which changes weights of its base model, which the roles share; expected it saved as a plain LoRA (PEFT: "
            "save_pretrained with path_initial_model_for_weight_conversion)",
        )
    if getattr(config, "kasa_config", None):
        reason = "which changes weights of its base model, which the roles share; expected null"
        yield "kasa_config", config.kasa_config, reason
    for name in ("alora_invocation_tokens", "arrow_config", "monteclora_config", "megatron_config"):
        if getattr(config, name, None):
            yield (
                name,
                getattr(config, name),
                "with which a layer computes more than its input and weights say; expected null",
            )


def share_a_base(adapter: str, others: Iterable[PeftConfig], model: Any) -> bool:
    """Whether PEFT can switch between a saved adapter and others on one model.

    Several adapters on parameters that are targeted by name (fused experts) must all have the same ones. An adapter
    that trains some tokens, or keeps tied weights tied, can't share a model.
    """
    config = PeftConfig.from_pretrained(adapter)
    convert_peft_config_for_transformers(config, model, None)
    named = set(getattr(config, "target_parameters", None) or ())
    for other in others:
        also_named = set(getattr(other, "target_parameters", None) or ())
        if named and also_named and named != also_named:
            return False
        if any(getattr(one, name, None) for one in (config, other) for name in BY_THEMSELVES):
            return False
    return True


def load_adapter(model: Any, peft: PeftModel | None, adapter: str, name: str, *, trained: bool) -> PeftModel:
    """Add a saved adapter to a model, in addition to those that it has.

    Args:
        model: a transformers model.
        peft: PEFT's wrapper of the model; None if it has none yet.
        adapter: a hub id or folder that :func:`check_adapter` accepted.
        name: the adapter's name in this model.
        trained: whether it continues training.

    Raises:
        ValueError: the adapter is for other layers, or includes base weights that differ from the model's.
    """
    config = PeftConfig.from_pretrained(adapter)
    config.inference_mode = not trained
    base_name = config.base_model_name_or_path
    with peft_asks_by_old_names():
        if peft is None:
            peft = get_peft_model(model, config, name)
        else:
            peft.add_adapter(name, config)
    assert peft is not None
    config.base_model_name_or_path = base_name
    weights = load_peft_weights(adapter, device="cpu")
    expected = set(get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False))
    for key in _of_base(weights, expected, peft, adapter):
        del weights[key]
    lacking = [key for key in sorted(expected - set(weights)) if "lora_" not in key]
    unknown: list[str] = []
    if not lacking:
        try:
            result = set_peft_model_state_dict(peft, weights, name)
        except RuntimeError as error:
            (*_, reason) = str(error).splitlines()
            raise ValueError(f"the adapter {adapter} does not fit its model: {reason.strip()}") from error
        lacking = sorted(key for key in result.missing_keys if "lora_" in key and f".{name}" in key)
        unknown = sorted(result.unexpected_keys)
    if lacking or unknown:
        raise ValueError(
            f"the adapter {adapter} does not fit its model: it lacks {len(lacking)} of {len(expected)} tensors and has "
            f"{len(unknown)} that have no place there, such as {(lacking + unknown)[0]}"
        )
    return peft


def _of_base(weights: dict[str, torch.Tensor], expected: set[str], peft: PeftModel, adapter: str) -> list[str]:
    """The tensors of an adapter that belong to its base, which PEFT saves too where embeddings were adapted."""
    own = peft.state_dict()
    found = [key for key in weights if key not in expected and "lora_" not in key and key in own]
    for key in found:
        mine, its = own[key], weights[key]
        if mine.shape != its.shape or not torch.equal(mine.cpu(), its.to(mine.dtype)):
            raise ValueError(
                f"the adapter {adapter} brings weights of its base model along ({key}, {list(its.shape)}) that differ "
                f"from the model's ({list(mine.shape)}), which the roles share; expected an adapter of this model as "
                f"it is, with such weights in modules_to_save"
            )
    return found


@contextmanager
def peft_asks_by_old_names() -> Iterator[None]:
    """Silence warnings about renamed attributes, from transformers to PEFT and from PEFT about itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", "The PEFT config's `base_model_name_or_path` was renamed")
        yield
