"""Loads models whole on each process, whatever the launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed as _settings


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Make transformers build models whole in the block, on the meta device too, even with DeepSpeed's stage 3.

    Accelerate reports the stage to transformers as soon as there is an accelerator, whatever ``zero3_init_flag`` says,
    and transformers then shards every model as it is built. But a target, baseline or scorer is never gathered again,
    models on the meta device can't be sharded, and inspecting a model as it loads takes whole weights. DeepSpeed shards
    the tester when it is prepared for training. A stage left on by an earlier run of the process says nothing about
    this run either.
    """
    before = None if _settings._hf_deepspeed_config_weak_ref is None else _settings._hf_deepspeed_config_weak_ref()
    _settings.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if before is not None:
            _settings.set_hf_deepspeed_config(before)


def build_skeleton(config: PreTrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """A causal language model without weights, on the meta device: its layers by name, and their sizes."""
    with loaded_whole(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
