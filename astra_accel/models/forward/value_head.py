"""The value of a state, read from what a language model computes its logits from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from astra_accel.models.forward.output_layer import state_width

FILE_NAME = "value_head.safetensors"


class ValueHead(torch.nn.Module):
    """A linear layer from the output layer's input to one number, in float32 whatever the model's type.

    A launch may provide the weights in the type of the forward (FSDP2 and DeepSpeed do, and keep float32 ones for the
    optimizer); the arithmetic is still in float32.

    It starts at 0: until rewards train it, every state has the value 0 and the model gets no gradient.

    Args:
        model: a transformers model; the head is on its device, and as wide as the states that one forward shows, which
            may differ from ``config.hidden_size`` (OPT-350m).

    Raises:
        UnsupportedModelError: the forward shows no states.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        size = state_width(model)
        self.weight = torch.nn.Parameter(torch.zeros(size, dtype=torch.float32, device=model.device))
        # Not a scalar, which FSDP can't shard over processes.
        self.bias = torch.nn.Parameter(torch.zeros(1, dtype=torch.float32, device=model.device))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values ``[...]`` of hidden states ``[..., hidden]``."""
        # Mixed precision would multiply in its own type.
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight.float()[None]).squeeze(-1) + self.bias.float()

    def save(self, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the head beside a model's files, from a state dict if its own is sharded over processes."""
        state = self.state_dict() if state_dict is None else state_dict
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, Path(folder) / FILE_NAME)

    def load(self, folder: str | Path) -> None:
        """Load the weights from a folder, if it has any.

        Raises:
            ValueError: they have another width.
        """
        file = Path(folder) / FILE_NAME
        if not file.is_file():
            return
        state = load_file(file)
        if state["weight"].shape != self.weight.shape:
            raise ValueError(
                f"{file} has a value head for states of {len(state['weight'])} numbers; expected {len(self.weight)}, "
                f"which the model makes its logits of"
            )
        self.load_state_dict(state)
