"""Draw tokens: a pure function of the logits, and of noise that depends on a row's seed, the position and the token.

Each token of the vocabulary gets its own number from the exponential distribution, and the token with the largest ratio
of probability to number is drawn. That is the Gumbel-max trick (Maddison et al. 2014, https://arxiv.org/abs/1411.0030),
since ``-log`` of such a number is Gumbel noise. The noise does not depend on the batch, the process or the device.
Rounding changes few draws: another token wins only if two were tied up to that rounding. Looking a number up in
cumulative probabilities would add the rounding of all tokens before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isnan

import numpy as np
import torch

from astra_accel.config import SamplingConfiguration
from astra_accel.core.seeding import seed_sequence

NUM_CANDIDATES = 1024
"""The largest weights that top-p looks at first; eight times as many if they don't suffice. It was not measured."""
RUN = 128
"""Most vocabulary sizes are multiples of it."""
CPU_BLOCK, DEVICE_BLOCK = 2**18, 2**24
"""The number of logits processed at once. On a CPU, what is computed from them must stay in its cache: noise of 64 rows
of 49152 takes 9 ms in blocks of 4 or 8 rows, and 13 ms row by row or all at once (one thread). Elsewhere memory
limits it: top-p sorts the whole vocabulary, some 30 bytes a logit."""

STEPS_AT_ONCE = {"cpu": 1}
MOST_STEPS_AT_ONCE = 8
"""The decoding steps between the host's checks for finished rows, on a CPU and elsewhere."""

_FACTORS = (0x31848BAB, 0x7FEB352D, 0x846CA68B - 2**32)
"""The factors of the hash, as int32: from C. Wellons's triple32 and lowbias32
(https://nullprogram.com/blog/2018/07/31/)."""


Seed = Sequence[int]
"""Ints in [0, 2**64), which determine random numbers."""


class NonFiniteLogitsError(FloatingPointError):
    """A model's logits hold nan or inf, so that no token can be drawn from them."""


def uniforms(seed: Seed, count: int) -> np.ndarray:
    """``count`` numbers in [0, 1), float64, that depend only on ``seed``."""
    return np.random.Generator(np.random.Philox(seed_sequence(seed))).random(count)


def noise_keys(seed: Seed, count: int) -> np.ndarray:
    """The noise keys of ``count`` positions, int32 ``[count, 2]``, which depend only on the seed.

    The keys of the first positions do not depend on ``count``.
    """
    return np.random.Philox(seed_sequence(seed)).random_raw(count).astype("<u8").view("<i4").reshape(count, 2)


def exponential_noise(keys_B2: torch.Tensor, tokens_BK: torch.Tensor) -> torch.Tensor:
    """Exponential noise of mean 1 for each token, which depends only on its row's key and its id.

    It is ``-log(1 - u)`` with ``u = (k + 1/2) / 2**31``, and ``k`` a 31-bit hash computed with integers, so with the
    same bits on every device. It is never 0 or infinite: from 2.3e-10 to 16.6. The smallest ones are 4.7e-10 apart, so
    a token of probability 1e-9 is drawn 1% too rarely, one of 1e-10 half as often as it should, and one of 1e-11 never:
    of a vocabulary of 100,000, at most one draw in 100,000 goes elsewhere.

    Args:
        keys_B2: the int32 key of each row.
        tokens_BK: the int32 ids of each row, or ``[1, K]`` for all rows.
    """
    hash_BK = (tokens_BK ^ keys_B2[:, :1]).mul_(_FACTORS[0])
    shifted_BK = torch.empty_like(hash_BK)
    hash_BK.bitwise_xor_(_shifted(hash_BK, 16, shifted_BK)).mul_(_FACTORS[1])
    # With only one key, some rows would have the noise of others, in another order of tokens.
    hash_BK.bitwise_xor_(keys_B2[:, 1:])
    hash_BK.bitwise_xor_(_shifted(hash_BK, 15, shifted_BK)).mul_(_FACTORS[2])
    # Here the sign is shifted in, which clears the top bit: the hash is not negative.
    hash_BK.bitwise_xor_(torch.bitwise_right_shift(hash_BK, 16, out=shifted_BK))
    # The factor is a little less than 1 / 2**31, or the largest u would be rounded to 1.
    return hash_BK.float().add_(0.5).mul_(2.0**-55 - 2.0**-31).log1p_().neg_()


def _shifted(hash_BK: torch.Tensor, bits: int, out_BK: torch.Tensor) -> torch.Tensor:
    """Shift to the right, with zeros from the left, into ``out_BK``."""
    return torch.bitwise_right_shift(hash_BK, bits, out=out_BK).bitwise_and_(2 ** (32 - bits) - 1)


def steps_at_once(device: torch.device) -> int:
    """The decoding steps between two looks of the host at what was drawn: a GPU would wait at each."""
    return STEPS_AT_ONCE.get(device.type, MOST_STEPS_AT_ONCE)


def draw_on_device(
    logits_BV: torch.Tensor, keys_B2: torch.Tensor, sampling: SamplingConfiguration, num_ids: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`sample` gives, drawn only from the first ``num_ids`` ids if there are more.

    Log-probs are those of the whole distribution, as with top-k.
    """
    if num_ids is None or num_ids >= logits_BV.shape[-1]:
        return sample(logits_BV, keys_B2, sampling)
    tokens_B, _ = sample(logits_BV[:, :num_ids], keys_B2, sampling)
    return tokens_B, _logprobs(logits_BV.float(), tokens_B)


def looked_at(
    drawn: Sequence[tuple[torch.Tensor, torch.Tensor]], end_ids: frozenset[int]
) -> list[tuple[list[int], list[float]]]:
    """What each row drew in some steps, up to a token that ends its turn, as Python numbers: ids and log-probs.

    Raises:
        NonFiniteLogitsError: the logits of a row were not finite.
    """
    both_2BT = (torch.stack(values, dim=1).tolist() for values in zip(*drawn, strict=True))
    rows = []
    for tokens, logprobs in zip(*both_2BT, strict=True):
        length = next((place for place, token in enumerate(tokens, start=1) if token in end_ids), len(tokens))
        check_finite(logprobs[:length])
        rows.append((tokens[:length], logprobs[:length]))
    return rows


def check_finite(logprobs: Sequence[float]) -> None:
    """Check that log-probs come from finite logits. A single token may have ``-inf``.

    Raises:
        NonFiniteLogitsError: a log-prob is nan.
    """
    if any(map(isnan, logprobs)):
        raise NonFiniteLogitsError("logits are not finite (nan or inf)")


def sample(
    logits_BV: torch.Tensor, keys_B2: torch.Tensor, sampling: SamplingConfiguration
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token a row: the one with the largest ratio of probability to noise.

    Temperature applies first, then top-k, then top-p on what top-k left, as in transformers; logits that tie at the
    edge of top-k all stay, of those at the edge of top-p the first. Temperature 0 takes the likeliest token. A logit of
    ``-inf`` excludes a token.

    Args:
        logits_BV: ``[batch, vocabulary]``, any float type.
        keys_B2: the int32 key of each row, on the same device; see :func:`noise_keys`.
        sampling: temperature, top-k and top-p.

    Returns:
        The token ids, and their log-probs under the whole distribution at temperature 1, float32; both ``[batch]``. A
        row whose logits are not finite (``nan``, ``inf``, or all ``-inf``) has the log-prob ``nan`` and an arbitrary
        token.
    """
    # A decoding step's logits may be stored column by column, which costs each operation below more than this copy
    # does.
    logits_BV = logits_BV.float().contiguous()
    size = CPU_BLOCK if logits_BV.device.type == "cpu" else DEVICE_BLOCK
    num_rows = max(1, size // logits_BV.shape[-1])
    blocks = zip(logits_BV.split(num_rows), keys_B2.split(num_rows), strict=True)
    tokens, logprobs = zip(*(_sample_block(*block, sampling) for block in blocks), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _sample_block(
    logits_BV: torch.Tensor, keys_B2: torch.Tensor, sampling: SamplingConfiguration
) -> tuple[torch.Tensor, torch.Tensor]:
    if sampling.temperature == 0:
        tokens_B = _argmax(logits_BV)
        return tokens_B, _logprobs(logits_BV, tokens_B)
    largest_B1 = logits_BV.amax(-1, keepdim=True)
    weights_BV = logits_BV - largest_B1
    if sampling.temperature != 1:
        weights_BV.div_(max(sampling.temperature, torch.finfo(torch.float32).tiny))
    weights_BV.exp_()
    if 0 < sampling.top_k < weights_BV.shape[-1] or sampling.top_p < 1:
        kept_BK, ids_BK = _filtered(weights_BV, sampling)
        place_B1 = kept_BK.div_(exponential_noise(keys_B2, ids_BK.int())).argmax(-1, keepdim=True)
        tokens_B = ids_BK.gather(-1, place_B1).squeeze(-1)
        return tokens_B, _logprobs(logits_BV, tokens_B)
    total_B = weights_BV.sum(-1)
    ids_1V = torch.arange(weights_BV.shape[-1], dtype=torch.int32, device=weights_BV.device)[None]
    tokens_B = _argmax(weights_BV.div_(exponential_noise(keys_B2, ids_1V)))
    if sampling.temperature != 1:
        return tokens_B, _logprobs(logits_BV, tokens_B)
    chosen_B = logits_BV.gather(-1, tokens_B[:, None]) - largest_B1
    return tokens_B, chosen_B.squeeze(-1) - total_B.log()


def _filtered(weights_BV: torch.Tensor, sampling: SamplingConfiguration) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights and ids of at least all tokens that top-k and top-p keep; the weights of others are 0.

    How many they keep depends on the weights, so a GPU, which would wait for the host, gets the whole vocabulary.
    """
    if steps_at_once(weights_BV.device) > 1:
        return _filtered_on_device(weights_BV, sampling)
    if 0 < sampling.top_k < weights_BV.shape[-1]:
        kept_BK, ids_BK = _top_k(weights_BV, sampling.top_k)
        return _top_p(kept_BK, ids_BK, kept_BK, sampling.top_p) if sampling.top_p < 1 else (kept_BK, ids_BK)
    vocabulary, num_candidates = weights_BV.shape[-1], NUM_CANDIDATES
    while True:
        num_candidates = min(num_candidates, vocabulary)
        kept_BK, ids_BK = weights_BV.topk(num_candidates)
        edge_B1, _ = _nucleus_edge(kept_BK, weights_BV, sampling.top_p)
        if num_candidates == vocabulary or bool((kept_BK[:, -1:] < edge_B1).all()):
            return _top_p(kept_BK, ids_BK, weights_BV, sampling.top_p)
        num_candidates *= 8


def _filtered_on_device(weights_BV: torch.Tensor, sampling: SamplingConfiguration) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole vocabulary's weights, 0 for those that top-k and top-p leave out, and its ids; the host never waits."""
    if 0 < sampling.top_k < weights_BV.shape[-1]:
        weights_BV = weights_BV.masked_fill(weights_BV < _top_k_edge(weights_BV, sampling.top_k), 0.0)
    if sampling.top_p < 1:
        edge_B1, num_at_edge_B1 = _nucleus_edge(weights_BV.sort(-1, descending=True)[0], weights_BV, sampling.top_p)
        weights_BV = _within_nucleus(weights_BV, edge_B1, num_at_edge_B1)
    return weights_BV, torch.arange(weights_BV.shape[-1], device=weights_BV.device).expand_as(weights_BV)


def _top_k_edge(weights_BV: torch.Tensor, top_k: int) -> torch.Tensor:
    """The smallest weight of each row that top-k keeps, ``[batch, 1]``."""
    # A weight of 0 is never drawn, and with an edge of 0 the whole vocabulary would stay.
    return weights_BV.topk(top_k).values[:, -1:].clamp(min=torch.finfo(weights_BV.dtype).tiny)


def _top_k(weights_BV: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest weights and their ids, the largest first, and 0 for others; ties with the last one stay."""
    edge_B1 = _top_k_edge(weights_BV, top_k)
    num_kept = max(top_k, int((weights_BV >= edge_B1).sum(-1).max()))  # comparisons with nan are false
    kept_BK, ids_BK = weights_BV.topk(num_kept)
    return kept_BK.masked_fill(kept_BK < edge_B1, 0.0), ids_BK


def _top_p(
    kept_BK: torch.Tensor, ids_BK: torch.Tensor, all_BV: torch.Tensor, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weights, sorted by id, with 0 outside of the smallest set that holds ``top_p`` of the total, and the ids."""
    edge_B1, num_at_edge_B1 = _nucleus_edge(kept_BK, all_BV, top_p)
    ids_BK, order_BK = ids_BK.sort(dim=-1)
    return _within_nucleus(kept_BK.gather(-1, order_BK), edge_B1, num_at_edge_B1), ids_BK


def _within_nucleus(weights_BK: torch.Tensor, edge_B1: torch.Tensor, num_at_edge_B1: torch.Tensor) -> torch.Tensor:
    """Weights, sorted by id, with 0 below the edge; of those equal to it the ones with the lowest ids stay."""
    at_edge_BK = weights_BK == edge_B1
    too_many_BK = at_edge_BK & (at_edge_BK.cumsum(-1) > num_at_edge_B1)
    return weights_BK.masked_fill((weights_BK < edge_B1) | too_many_BK, 0.0)


def _nucleus_edge(kept_BK: torch.Tensor, all_BV: torch.Tensor, top_p: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest weight that top-p keeps, and how many equal to it are kept; ``[batch, 1]`` each."""
    wide = torch.float32 if kept_BK.device.type == "mps" else torch.float64  # Apple's devices lack float64
    total_B1 = all_BV.sum(-1, keepdim=True, dtype=wide)
    # A token stays while those before it hold less than top_p, so the first always does.
    before_BK = kept_BK.cumsum(-1, dtype=wide) - kept_BK
    num_kept_B1 = (before_BK < top_p * total_B1).sum(-1, keepdim=True).clamp(min=1)
    edge_B1 = kept_BK.gather(-1, num_kept_B1 - 1)
    return edge_B1, num_kept_B1 - (kept_BK > edge_B1).sum(-1, keepdim=True)


def _argmax(values_BV: torch.Tensor) -> torch.Tensor:
    """The index of each row's largest value. torch finds the largest value of a run 10 times faster than its index."""
    if values_BV.shape[-1] % RUN:
        return values_BV.argmax(-1)
    runs_BNM = values_BV.unflatten(-1, (-1, RUN))
    run_B1 = runs_BNM.amax(-1).argmax(-1, keepdim=True)
    within_B = runs_BNM.take_along_dim(run_B1[..., None], dim=1).squeeze(1).argmax(-1)
    return run_B1.squeeze(-1) * RUN + within_B


def _logprobs(logits_BV: torch.Tensor, tokens_B: torch.Tensor) -> torch.Tensor:
    return logits_BV.gather(-1, tokens_B[:, None]).squeeze(-1) - logits_BV.logsumexp(-1)


@contextmanager
def naming_role(role: str, turns: Sequence[int] = ()) -> Iterator[None]:
    """Add to an error about non-finite logits the role, the turns of a rollout, and what may help."""
    try:
        yield
    except NonFiniteLogitsError as error:
        when = f" in turn {' or '.join(map(str, turns))} of a rollout" if turns else ""
        cause = "overflowed in training" if role == "tester" else "are damaged"
        remedy = "a lower training.lr, a training.max_grad_norm" if role == "tester" else "whole files"
        raise NonFiniteLogitsError(
            f"the {role}'s {error}{when}: its weights {cause}, or its precision can't hold what it "
            f"computes. Try {remedy}, or {role}.dtype bfloat16 or float32 in place of float16"
        ) from error


def streamed(seeds: Sequence[Seed] | None, number: int, stream: int) -> list[Seed]:
    """The seeds of a role's rows; None draws them from torch's global generator."""
    if seeds is None:
        seeds = [(int(drawn),) for drawn in torch.randint(2**62, (number,))]
    return [(*seed, stream) for seed in seeds]
