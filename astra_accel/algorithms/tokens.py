"""Which places of a system's log-probs hold a token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def token_mask(system: Any, probes: Sequence[Any], logprobs_BT: torch.Tensor) -> torch.Tensor:
    """``[batch, tokens]`` bool: whether a place holds a token of its row's probe.

    A system that has ``num_probe_tokens`` says how many each probe has. Of any other, the contract's zeros behind the
    last log-prob that is not 0 are padding: so a last token that is certain is taken for none, which leaves its
    gradient of 0 out.
    """
    count = getattr(system, "num_probe_tokens", None)
    if count is None:
        return (logprobs_BT != 0).flip(-1).cumsum(-1).flip(-1) > 0
    num_tokens_B = torch.tensor(count(probes), device=logprobs_BT.device)
    return torch.arange(logprobs_BT.shape[-1], device=logprobs_BT.device) < num_tokens_B[:, None]
