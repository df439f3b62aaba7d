"""The value of a state, read off a language model's hidden state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

FILE_NAME = "value_head.safetensors"


class ValueHead(torch.nn.Module):
    """A linear layer from the body's output to one number, in float32 whatever the model's type.

    It begins at 0: every state is worth nothing, and neither is there a gradient to the model, until rewards say more.

    Args:
        model: a transformers model; the head is on its device.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        size = model.config.get_text_config().hidden_size
        self.weight = torch.nn.Parameter(torch.zeros(size, dtype=torch.float32, device=model.device))
        # Not a scalar, which FSDP can't spread over processes.
        self.bias = torch.nn.Parameter(torch.zeros(1, dtype=torch.float32, device=model.device))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values ``[...]`` of hidden states ``[..., hidden]``."""
        # Mixed precision would multiply in its own type.
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.weight[None]).squeeze(-1) + self.bias

    def save(self, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the head beside a model's files, from a state dict where its own is spread over processes."""
        state = self.state_dict() if state_dict is None else state_dict
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        save_file(tensors, Path(folder) / FILE_NAME)

    def load(self, folder: str | Path) -> None:
        """Take the weights that a folder holds, if it holds any."""
        if (Path(folder) / FILE_NAME).is_file():
            self.load_state_dict(load_file(Path(folder) / FILE_NAME))
