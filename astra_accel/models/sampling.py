"""Drawing a token: a pure function of logits and one uniform number a row.

Inverse-CDF sampling with given numbers makes what is sampled independent of which rows share a batch and of
which process a row is on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from astra_accel.config import SamplingConfiguration
from astra_accel.core.seeding import seed_sequence

BLOCK = 256
NUM_CANDIDATES = 1024


def uniforms(seed: Sequence[int], count: int) -> np.ndarray:
    """``count`` numbers in [0, 1), float64, that follow from ``seed`` (ints in [0, 2**64)) alone."""
    return np.random.Generator(np.random.Philox(seed_sequence(seed))).random(count)


def exact_device(device: torch.device) -> torch.device:
    """Where a model's tokens are drawn: on its device, or on the CPU where that has no float64 (Apple's MPS)."""
    return torch.device("cpu") if device.type == "mps" else device


def sample(
    logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: SamplingConfiguration
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token a row: the first whose cumulative probability, in the order of the vocabulary, exceeds the number.

    Temperature first, then top-k, then top-p on what top-k left, as transformers does; equal logits at the edge of
    top-k stay. Temperature 0 takes the likeliest token.

    Args:
        logits_BV: ``[batch, vocabulary]``, any float type.
        uniform_B: a number in [0, 1) for each row, float64.
        sampling: what of the distribution is drawn from.

    Returns:
        The token ids, and their log-probs under the whole distribution at temperature 1, float32; both ``[batch]``.
    """
    logits_BV = logits_BV.float()
    largest_B1 = logits_BV.amax(-1, keepdim=True)
    if sampling.temperature == 0:
        tokens_B = logits_BV.argmax(-1)
        return tokens_B, _logprobs(logits_BV, tokens_B)
    weights_BV = logits_BV.sub(largest_B1).div_(max(sampling.temperature, torch.finfo(torch.float32).tiny)).exp_()
    if _limits_k(weights_BV, sampling) or sampling.top_p < 1:
        tokens_B = _draw_filtered(weights_BV, uniform_B, sampling)
        return tokens_B, _logprobs(logits_BV, tokens_B)
    tokens_B, total_B = _draw(weights_BV, uniform_B)
    if sampling.temperature != 1:
        return tokens_B, _logprobs(logits_BV, tokens_B)
    chosen_B = logits_BV.gather(-1, tokens_B[:, None]) - largest_B1
    return tokens_B, chosen_B.squeeze(-1) - total_B.log().float()


def _draw(weights_BV: torch.Tensor, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens by unnormalised weights, and the weights' sums in float64.

    A block of the vocabulary first, then a token of it, so that float64 is needed for the blocks' sums alone.
    """
    num_missing = -weights_BV.shape[-1] % BLOCK
    blocks_BNM = (F.pad(weights_BV, (0, num_missing)) if num_missing else weights_BV).unflatten(-1, (-1, BLOCK))
    ends_BN = blocks_BNM.sum(-1, dtype=torch.float64).cumsum(-1)
    point_B1 = uniform_B.double()[:, None] * ends_BN[:, -1:]
    block_B1 = _first_beyond(ends_BN, point_B1)
    row_B1 = torch.arange(len(weights_BV), device=weights_BV.device)[:, None]
    start_B1 = F.pad(ends_BN, (1, 0)).gather(-1, block_B1)
    within_BM = blocks_BNM[row_B1, block_B1].squeeze(1).double().cumsum(-1)
    token_B1 = block_B1 * BLOCK + _first_beyond(within_BM, point_B1 - start_B1)
    return token_B1.squeeze(-1), ends_BN[:, -1]


def _draw_filtered(weights_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: SamplingConfiguration) -> torch.Tensor:
    """Tokens by unnormalised weights, of those that top-k and top-p leave."""
    kept_BK, ids_BK = _candidates(weights_BV, sampling)
    probs_BK = kept_BK.double()
    if sampling.top_p < 1:
        all_of_it = probs_BK if _limits_k(weights_BV, sampling) else weights_BV
        total_B1 = all_of_it.sum(-1, keepdim=True, dtype=torch.float64)
        # A token stays while those before it hold less than top_p, so the first always does.
        before_BK = probs_BK.cumsum(-1) - probs_BK
        probs_BK = probs_BK.masked_fill(before_BK >= sampling.top_p * total_B1, 0.0)
    # Equally likely tokens may come in any order; by their ids a number always finds the same one.
    ids_BK, order_BK = ids_BK.sort(dim=-1)
    ends_BK = probs_BK.gather(-1, order_BK).cumsum(-1)
    place_B1 = _first_beyond(ends_BK, uniform_B.double()[:, None] * ends_BK[:, -1:])
    return ids_BK.gather(-1, place_B1).squeeze(-1)


def _candidates(weights_BV: torch.Tensor, sampling: SamplingConfiguration) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights and ids of at least all tokens that may be drawn, likeliest first; 0 for those that may not."""
    if _limits_k(weights_BV, sampling):
        # A weight of 0 is drawn by nobody, and where the edge is 0 all of the vocabulary equals it.
        edge_B1 = weights_BV.topk(sampling.top_k).values[:, -1:].clamp(min=torch.finfo(weights_BV.dtype).tiny)
        num_kept = int((weights_BV >= edge_B1).sum(-1).max())
        kept_BK, ids_BK = weights_BV.topk(num_kept)
        return kept_BK.masked_fill(kept_BK < edge_B1, 0.0), ids_BK
    vocabulary = weights_BV.shape[-1]
    total_B = weights_BV.sum(-1, dtype=torch.float64)
    num_kept = min(NUM_CANDIDATES, vocabulary)
    while True:
        kept_BK, ids_BK = weights_BV.topk(num_kept)
        if num_kept == vocabulary or bool((kept_BK.sum(-1, dtype=torch.float64) > sampling.top_p * total_B).all()):
            return kept_BK, ids_BK
        num_kept = min(8 * num_kept, vocabulary)


def _limits_k(weights_BV: torch.Tensor, sampling: SamplingConfiguration) -> bool:
    return 0 < sampling.top_k < weights_BV.shape[-1]


def _first_beyond(ends_BN: torch.Tensor, point_B1: torch.Tensor) -> torch.Tensor:
    """The first place of each row whose cumulated weight exceeds a point, ``[batch, 1]``."""
    total_B1 = ends_BN[:, -1:]
    # Rounding must not lift a point to the very end, behind which there is nothing.
    point_B1 = torch.minimum(point_B1, total_B1.nextafter(torch.zeros_like(total_B1)))
    return torch.searchsorted(ends_BN, point_B1, right=True)


def _logprobs(logits_BV: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
    return logits_BV.gather(-1, tokens_B[:, None]).squeeze(-1) - logits_BV.logsumexp(-1)
