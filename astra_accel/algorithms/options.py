"""What algorithms share: checks of their options, and the mask of log-probs that belong to a token."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Any

import torch

from astra_accel.core.optional import num_probe_tokens


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ``ValueError`` if the value is not one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def check_positive(name: str, value: float) -> None:
    """Raise ``ValueError`` if the value is not a finite number above 0."""
    if not 0 < value < inf:
        raise ValueError(f"{name} is {value}, expected more than 0")


def check_not_negative(name: str, value: float) -> None:
    """Raise ``ValueError`` if the value is not a finite number of at least 0."""
    if not 0 <= value < inf:
        raise ValueError(f"{name} is {value}, expected at least 0")


def check_fraction(name: str, value: float) -> None:
    """Raise ``ValueError`` if the value is not from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}, expected from 0 to 1")


def token_mask(system: Any, probes: Sequence[Any], logprobs_BT: torch.Tensor) -> torch.Tensor:
    """``[batch, tokens]`` bool: whether a position holds a token of its row's probe.

    See :func:`~astra_accel.core.optional.num_probe_tokens`.
    """
    num_tokens_B = num_probe_tokens(system, probes, logprobs_BT)
    return torch.arange(logprobs_BT.shape[-1], device=logprobs_BT.device) < num_tokens_B[:, None]
