"""Models load whole on each process, whatever the launch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.integrations import deepspeed as _settings


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Have transformers build models whole in the block, on the meta device too, where DeepSpeed's stage 3 is on.

    Accelerate tells transformers of the stage as soon as there is an accelerator, whatever ``zero3_init_flag`` says,
    and transformers then spreads every model as it is built. Nobody gathers a target, a baseline or a scorer again,
    models on the meta device can't be spread, and what is found out of a model as it loads takes whole weights.
    DeepSpeed spreads the tester when it is prepared for training. A stage that an earlier run of the process left
    switched on says nothing of this run's either.
    """
    before = None if _settings._hf_deepspeed_config_weak_ref is None else _settings._hf_deepspeed_config_weak_ref()
    _settings.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if before is not None:
            _settings.set_hf_deepspeed_config(before)


def build_skeleton(config: PreTrainedConfig, *, trust_remote_code: bool) -> PreTrainedModel:
    """A causal language model without numbers, on the meta device: its layers by name, and their sizes."""
    with loaded_whole(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
