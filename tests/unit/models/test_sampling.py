"""Drawing tokens: the distribution is that of transformers, and a given number gives a given token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from astra_accel.config import SamplingConfiguration
from astra_accel.models.sampling import exact_device, sample, uniforms

INF = float("inf")
BELOW_ONE = np.nextafter(1.0, 0.0)
EVERYTHING = SamplingConfiguration()


def logits_of(parts: list[float]) -> torch.Tensor:
    return torch.tensor([parts], dtype=torch.float64).log()


def spaced(count: int) -> np.ndarray:
    """Evenly spaced numbers, none at an end."""
    return (np.arange(count) + 0.5) / count


def draw(logits: torch.Tensor, numbers: list[float] | np.ndarray, sampling=EVERYTHING) -> list[int]:
    """The tokens that several numbers give of one row of logits."""
    uniform = torch.as_tensor(np.asarray(numbers))
    return sample(logits.expand(len(uniform), -1), uniform, sampling)[0].tolist()


def shares(parts: list[float], count: int, sampling=EVERYTHING) -> list[int]:
    """How many of ``count`` evenly spaced numbers give each token, where tokens are as likely as their parts."""
    return np.bincount(draw(logits_of(parts), spaced(count), sampling), minlength=len(parts)).tolist()


# --- The numbers --------------------------------------------------------------------------------------------


def test_pinned_numbers():
    """A change here changes every rollout there ever was."""
    expected = [0.5797669938069221, 0.7636246708697331, 0.11140907374711884, 0.2606453049244738]
    assert uniforms((3, 1, 4, 1, 5), 4).tolist() == expected
    assert uniforms((0,), 2).tolist() == [0.6781078683721724, 0.8130775552240744]


def test_numbers_follow_from_the_seed():
    np.random.seed(1)
    first = uniforms((7, 0, 1), 5)
    np.random.seed(2)
    assert np.array_equal(first, uniforms([7, 0, 1], 5))
    assert first.dtype == np.float64


def test_every_path_has_numbers_of_its_own():
    paths = [(), (0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (2**62, 0), (2**32,), (0, 1, 0)]
    drawn = [tuple(uniforms(path, 3)) for path in paths]
    assert len({number for numbers in drawn for number in numbers}) == 3 * len(paths)


def test_the_first_numbers_of_many_paths_are_uniform():
    """4096 numbers in 16 equal bins: chi-squared with 15 degrees of freedom is below 44 in 99.99% of cases."""
    first = np.array([uniforms((5, episode, child), 1)[0] for episode in range(512) for child in range(8)])
    assert first.min() >= 0
    assert first.max() < 1
    counts = np.bincount((first * 16).astype(int), minlength=16)
    assert ((counts - 256) ** 2 / 256).sum() < 44


# --- The distribution ---------------------------------------------------------------------------------------

SETTINGS = [
    SamplingConfiguration(temperature=temperature, top_k=top_k, top_p=top_p)
    for temperature in (0.3, 1.0, 1.7)
    for top_k in (0, 1, 3, 7, 12, 20)
    for top_p in (0.05, 0.6, 0.95, 1.0)
]


def warped(logits: torch.Tensor, sampling: SamplingConfiguration) -> np.ndarray:
    """The distribution that transformers samples from, of one row of logits."""
    logits = TemperatureLogitsWarper(sampling.temperature)(None, logits.double())
    if sampling.top_k:
        logits = TopKLogitsWarper(sampling.top_k)(None, logits)
    if sampling.top_p < 1:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    return logits.softmax(-1)[0].numpy()


@pytest.mark.parametrize(
    "sampling", SETTINGS, ids=lambda sampling: "{temperature}-{top_k}-{top_p}".format(**vars(sampling))
)
def test_the_distribution_is_that_of_transformers(sampling):
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    probs = warped(logits, sampling)
    # Evenly spaced numbers hit an interval as often as its length says, give or take one.
    even = np.bincount(draw(logits, spaced(5000), sampling), minlength=12)
    assert np.abs(even - 5000 * probs).max() <= 1 + 1e-3
    found = np.bincount(draw(logits, uniforms((1, 2), 5000), sampling), minlength=12)
    possible = probs > 0
    assert found[~possible].sum() == 0
    if possible.sum() > 1:
        assert chisquare(found[possible], 5000 * probs[possible]).pvalue > 1e-4


def test_equal_logits_at_the_edge_of_top_k_all_stay():
    """Of 2 : 4 : 2 : 1 the second place is tied, so top-k of 2 leaves three tokens, of 2, 4 and 2 eighths."""
    assert shares([2, 4, 2, 1], 8, SamplingConfiguration(top_k=2)) == [2, 4, 2, 0]
    assert shares([1] * 8, 8, SamplingConfiguration(top_k=3)) == [1] * 8


def test_top_p_counts_what_top_k_left():
    """Top-k leaves 4 and 3, which is 4/7 and 3/7: then 4/7 alone holds the half, as 4/10 does not."""
    assert shares([4, 3, 2, 1], 7, SamplingConfiguration(top_k=2, top_p=0.5)) == [7, 0, 0, 0]
    assert shares([4, 3, 2, 1], 7, SamplingConfiguration(top_p=0.5)) == [4, 3, 0, 0]


def test_tiny_top_p_leaves_the_likeliest():
    tiny = SamplingConfiguration(top_p=1e-300)
    assert shares([3, 1, 4, 1, 5, 9, 2, 6], 31, tiny) == [0, 0, 0, 0, 0, 31, 0, 0]


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.5, 3.0, -1.0, 2.9]])
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.5)):
        greedy = SamplingConfiguration(temperature=0, top_k=top_k, top_p=top_p)
        assert draw(logits, [0.0, 0.5, BELOW_ONE], greedy) == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_type_and_size_of_logits(dtype):
    logits = torch.tensor([[-6e4, 6e4, 6e4, -INF]], dtype=dtype)
    for sampling in (EVERYTHING, SamplingConfiguration(top_k=3), SamplingConfiguration(top_p=0.9)):
        assert draw(logits, [0.0, 0.49, 0.51, BELOW_ONE], sampling) == [1, 1, 2, 2]


@pytest.mark.parametrize(
    "sampling",
    [
        EVERYTHING,
        SamplingConfiguration(temperature=0),
        SamplingConfiguration(temperature=0.4, top_k=2),
        SamplingConfiguration(temperature=3.0, top_p=0.5),
    ],
)
def test_log_probs_are_those_of_the_whole_distribution_at_temperature_one(sampling):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 300, generator=generator) * 4
    tokens, logprobs = sample(logits, torch.rand(40, generator=generator, dtype=torch.float64), sampling)
    expected = logits.double().log_softmax(-1)[torch.arange(40), tokens]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-6, atol=1e-5)
    assert expected.unique().numel() > 20


# --- The draw -----------------------------------------------------------------------------------------------


def test_frequencies_are_the_probabilities():
    """Of 64 evenly spaced numbers, as many give a token as its probability has 64ths, in the vocabulary's order."""
    parts = [16, 1, 0, 30, 2, 0, 15]
    assert shares(parts, 64) == parts
    drawn = draw(logits_of(parts), spaced(64))
    assert drawn == sorted(drawn)


def test_frequencies_under_top_k_and_top_p():
    """Top-k drops the last of 8, 5, 4, 2, 1 twentieths; 0.9 of the 19 left is 17.1, so the 2 is dropped or kept by p.

    8 + 5 + 4 = 17 of 19 is less than 0.9, so a fourth token is needed; it is not for 0.89.
    """
    parts = [2, 8, 1, 5, 4]
    assert shares(parts, 19, SamplingConfiguration(top_k=4, top_p=0.9)) == [2, 8, 0, 5, 4]
    assert shares(parts, 17, SamplingConfiguration(top_k=4, top_p=0.89)) == [0, 8, 0, 5, 4]


@given(
    st.lists(st.sampled_from([-INF, -400.0, -30.0, 0.0, 0.1, 2.0, 300.0]), min_size=1, max_size=12),
    st.floats(0, BELOW_ONE) | st.sampled_from([0.0, BELOW_ONE]),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([0, 2]),
    st.sampled_from([0.3, 0.9, 1.0]),
)
def test_a_token_without_probability_is_never_drawn(logits, number, temperature, top_k, top_p):
    if max(logits) == -INF:
        logits = [*logits, 0.0]
    sampling = SamplingConfiguration(temperature=temperature, top_k=top_k, top_p=top_p)
    (token,) = draw(torch.tensor([logits]), [number], sampling)
    # One of float32's smallest numbers; and of equal tokens at an edge transformers may keep another.
    possible = warped(torch.tensor([logits]), sampling) > 1e-45
    assert logits[token] >= min(logit for logit, kept in zip(logits, possible, strict=True) if kept)


def test_the_ends_of_the_unit_interval():
    """The first and the last token with any probability, whatever stands beside them."""
    logits = torch.tensor([[-INF, -INF, 0.0, -INF, 1.0, 0.5, -INF]])
    for sampling in (EVERYTHING, SamplingConfiguration(top_k=6), SamplingConfiguration(top_p=0.999)):
        assert draw(logits, [0.0, BELOW_ONE, 1.0], sampling) == [2, 5, 5]
    # The probabilities of three equal tokens add up to less than 1.
    assert draw(torch.zeros(1, 3), [0.0, BELOW_ONE]) == [0, 2]
    # 49 times 1/49 adds up to another number than 1 as well.
    assert draw(torch.zeros(1, 49), [0.0, BELOW_ONE]) == [0, 48]


@pytest.mark.parametrize("sampling", [EVERYTHING, *SETTINGS[::17], SamplingConfiguration(temperature=0)])
def test_a_vocabulary_of_one(sampling):
    uniform = torch.tensor([0.0, 0.5, BELOW_ONE], dtype=torch.float64)
    tokens, logprobs = sample(torch.full((3, 1), -7.0), uniform, sampling)
    assert (tokens.tolist(), logprobs.tolist()) == ([0, 0, 0], [0, 0, 0])


# --- Vocabularies larger than a block and than the first candidates -------------------------------------------


def cut(probs: np.ndarray, sampling: SamplingConfiguration) -> np.ndarray:
    """What top-k and top-p leave of a distribution, token by token from the likeliest, in float64."""
    kept = np.zeros_like(probs)
    order = np.argsort(-probs, kind="stable")
    allowed = order[: sampling.top_k] if sampling.top_k else order
    total, so_far = probs[allowed].sum(), 0.0
    for token in allowed:
        if so_far >= sampling.top_p * total:
            break
        kept[token] = probs[token]
        so_far += probs[token]
    return kept / kept.sum()


@pytest.mark.parametrize("vocabulary", [257, 1024, 5003])
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
@pytest.mark.parametrize(
    "sampling",
    [
        EVERYTHING,
        SamplingConfiguration(temperature=0.7),
        SamplingConfiguration(top_k=40),
        SamplingConfiguration(top_k=1500, top_p=0.8),
        SamplingConfiguration(top_p=0.3),
        SamplingConfiguration(temperature=1.3, top_p=0.97),
    ],
    ids=["all", "cooler", "top_k", "both", "top_p", "warmer"],
)
def test_a_large_vocabulary_is_cut_and_cumulated_as_in_one_piece(vocabulary, spread, sampling):
    """With little spread, thousands of tokens are about as likely and nearly all are candidates; with much, few."""
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * spread
    logits[0, vocabulary // 3] = -INF
    ends = cut((logits[0].double() / sampling.temperature).softmax(-1).numpy(), sampling).cumsum()
    numbers = np.concatenate([spaced(60), [0.0, BELOW_ONE]])
    tokens = np.array(draw(logits, numbers, sampling))
    # The token whose share holds the number, or its neighbour where rounding moved the border between them.
    starts = np.concatenate([[0.0], ends])[tokens]
    assert (ends[tokens] > starts).all()
    assert (starts <= numbers + 1e-6).all()
    assert (numbers <= ends[tokens] + 1e-6).all()


def test_rows_do_not_mix():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 30, generator=generator)
    numbers = torch.rand(40, generator=generator, dtype=torch.float64)
    sampling = SamplingConfiguration(top_k=20, top_p=0.8)
    alone = [sample(logits[[row]], numbers[[row]], sampling)[0].item() for row in range(40)]
    assert sample(logits, numbers, sampling)[0].tolist() == alone
    assert len(set(alone)) > 5


@pytest.mark.parametrize(("device", "where"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
def test_tokens_are_drawn_where_there_is_float64(device: str, where: str):
    assert exact_device(torch.device(device)) == torch.device(where)
