"""The noise that tokens are drawn with, made of 64-bit integers and floats, and what it draws."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from astra_accel.config import SamplingConfiguration
from astra_accel.core.seeding import seed_sequence

MASK = 2**32 - 1


def token_hashes(low: int, high: int, tokens: np.ndarray) -> np.ndarray:
    """31 bits of each token, by the two halves of a key; in uint64, of which the lower half counts."""
    bits = (tokens ^ low) * 0x31848BAB & MASK
    bits = (bits ^ bits >> 16) * 0x7FEB352D & MASK ^ high
    bits = (bits ^ bits >> 15) * 0x846CA68B & MASK
    return np.where(bits >> 31, bits ^ bits >> 16 ^ 0xFFFF0000, bits ^ bits >> 16) & (2**31 - 1)


def exponentials(seed: Sequence[int], position: int, vocabulary: int) -> np.ndarray:
    """The number of each token, float64."""
    key = int(np.random.Philox(seed_sequence(seed)).random_raw(position + 1)[-1])
    hashes = token_hashes(key & MASK, key >> 32, np.arange(vocabulary, dtype=np.uint64))
    return -np.log1p(-(hashes + 0.5) / 2**31)


def warped_logprobs(logits_1V: torch.Tensor, sampling: SamplingConfiguration) -> np.ndarray:
    """Those that transformers samples from, of one row of logits, float64 ``[vocabulary]``."""
    logits_1V = TemperatureLogitsWarper(sampling.temperature)(None, logits_1V.double())
    if sampling.top_k:
        logits_1V = TopKLogitsWarper(sampling.top_k)(None, logits_1V)
    if sampling.top_p < 1:
        logits_1V = TopPLogitsWarper(sampling.top_p)(None, logits_1V)
    return logits_1V.log_softmax(-1)[0].numpy()


def drawn(logprobs_V: np.ndarray, seed: Sequence[int], position: int) -> tuple[int, float]:
    """The token that a position's noise draws, and by how many nats the next one would have had to be likelier."""
    scores_V = logprobs_V - np.log(exponentials(seed, position, len(logprobs_V)))
    next_one, best = np.argsort(scores_V)[-2:]
    return int(best), float(scores_V[best] - scores_V[next_one])
