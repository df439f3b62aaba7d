"""Drawing a token: a pure function of logits and one uniform number a row.

Inverse-CDF sampling with given numbers makes what is sampled independent of which rows share a batch and of
which process a row is on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from astra_accel.config import SamplingConfiguration
from astra_accel.core.seeding import seed_sequence


def uniforms(seed: Sequence[int], count: int) -> np.ndarray:
    """``count`` numbers in [0, 1), float64, that follow from ``seed`` (ints in [0, 2**64)) alone."""
    return np.random.Generator(np.random.Philox(seed_sequence(seed))).random(count)


def exact_device(device: torch.device) -> torch.device:
    """Where a model's tokens are drawn: on its device, or on the CPU where that has no float64 (Apple's MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def filtered_probs(logits_BV: torch.Tensor, sampling: SamplingConfiguration) -> torch.Tensor:
    """The distribution that is sampled from, float64 ``[batch, vocabulary]``.

    Temperature first, then top-k, then top-p on what top-k left; equal logits at the edge of top-k stay.
    Temperature 0 puts everything on the likeliest token.
    """
    logits_BV = logits_BV.double()
    if sampling.temperature == 0:
        return torch.zeros_like(logits_BV).scatter_(-1, logits_BV.argmax(-1, keepdim=True), 1.0)
    logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        edge_B1 = logits_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < edge_B1, -torch.inf)
    probs_BV = logits_BV.softmax(-1)
    if sampling.top_p < 1:
        sorted_BV, order_BV = probs_BV.sort(dim=-1, descending=True)
        # A token stays while those before it hold less than top_p, so the first always does.
        drop_BV = sorted_BV.cumsum(-1) - sorted_BV >= sampling.top_p
        probs_BV = probs_BV.masked_fill(torch.zeros_like(drop_BV).scatter_(-1, order_BV, drop_BV), 0.0)
        probs_BV = probs_BV / probs_BV.sum(-1, keepdim=True)
    return probs_BV


def sample(logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: SamplingConfiguration) -> torch.Tensor:
    """One token id a row: the first whose cumulative probability exceeds the row's number. Shape ``[batch]``."""
    cdf_BV = filtered_probs(logits_BV, sampling).cumsum(-1)
    total_B1 = cdf_BV[:, -1:]
    # Rounding must not lift a number to the very end, behind which there is no token.
    point_B1 = torch.minimum(uniform_B.double()[:, None] * total_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
    return torch.searchsorted(cdf_BV, point_B1, right=True).squeeze(-1)
