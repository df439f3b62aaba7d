"""Whether a forward is one of all processes."""

from __future__ import annotations

from typing import Any

import torch


def is_sharded(model: Any) -> bool:
    """Whether processes gather a model's weights together, layer by layer as it runs (FSDP2, ZeRO-3).

    They then have to make as many forwards, whatever each of them has to read.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    )
