"""Drawing tokens: the distribution is that of transformers, and a seed, a position and a token give the same noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding import token_sampling as module
from astra_accel.models.decoding.token_sampling import (
    NonFiniteLogitsError,
    exponential_noise,
    looked_at,
    noise_keys,
    sample,
    uniforms,
)
from tests.helpers.noise import drawn, exponentials, warped_logprobs

INF, NAN = float("inf"), float("nan")
EVERYTHING = SamplingConfiguration()


def logits_of(parts: list[float]) -> torch.Tensor:
    return torch.tensor([parts], dtype=torch.float64).log()


def keys_of(rows: int, seed: int = 0, position: int = 0) -> torch.Tensor:
    """The keys of one position of some rows, each with a seed of its own."""
    keys = np.stack([noise_keys((seed, row), position + 1)[position] for row in range(rows)])
    return torch.from_numpy(keys)


def many_keys(count: int, seed: int = 0) -> torch.Tensor:
    """The keys of many positions of one row."""
    return torch.from_numpy(noise_keys((seed,), count))


def tokens_of(logits: torch.Tensor, count: int, sampling=EVERYTHING, seed: int = 0) -> np.ndarray:
    """What is drawn of one row of logits at ``count`` positions."""
    return sample(logits.expand(count, -1), many_keys(count, seed), sampling)[0].numpy()


def assert_drawn_by(probs: np.ndarray, tokens: np.ndarray) -> None:
    """Tokens are as frequent as probabilities say, and those without any never come; rare ones are counted in one."""
    found, expected = np.bincount(tokens, minlength=len(probs)), len(tokens) * probs
    assert found[probs == 0].sum() == 0
    rare = expected < 10
    found, expected = (np.append(each[~rare], each[rare].sum()) for each in (found, expected))
    if expected[-1] < 10:
        found, expected = found[:-1], expected[:-1]
    if len(expected) > 1:
        assert chisquare(found, expected * (found.sum() / expected.sum())).pvalue > 1e-4


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


# --- The noise ----------------------------------------------------------------------------------------------


def noise_of(keys: torch.Tensor, vocabulary: int) -> np.ndarray:
    return exponential_noise(keys, torch.arange(vocabulary, dtype=torch.int32)[None]).numpy()


def test_noise_is_that_of_exact_integers():
    """A change here changes every rollout there ever was. Near its largest values a float32 is coarse."""
    keys = torch.from_numpy(noise_keys((3, 1, 4), 5))
    found = noise_of(keys, 700)
    for position in range(5):
        np.testing.assert_allclose(found[position], exponentials((3, 1, 4), position, 700), rtol=5e-5)
    np.testing.assert_allclose(exponentials((0,), 0, 3), [1.7097344, 0.11714362, 0.44748979], rtol=1e-7)


def test_noise_follows_from_seed_position_and_token_alone():
    keys = keys_of(5, position=3)
    whole = noise_of(keys, 1000)
    assert np.array_equal(noise_of(keys[3:4], 1000)[0], whole[3])
    ids = torch.tensor([[999, 0, 512, 7]], dtype=torch.int32)
    assert np.array_equal(exponential_noise(keys, ids).numpy(), whole[:, [999, 0, 512, 7]])
    assert np.array_equal(noise_keys((7, 1), 9)[:4], noise_keys((7, 1), 4))
    assert len(np.unique(whole)) > 0.999 * whole.size


def test_noise_is_exponential_down_to_its_tails():
    """Of 33 million numbers, as many lie below 1e-6 (33.5), or above 15 (10.3), as should, within four deviations."""
    noise = noise_of(many_keys(2**9), 2**16)
    assert kstest(noise[:2].ravel(), "expon").pvalue > 1e-3
    assert noise.min() > 0
    assert noise.max() < 17
    for below in (1e-2, 1e-4, 1e-6):
        assert abs((noise < below).sum() - noise.size * below) < 4 * (noise.size * below) ** 0.5
    for above in (5, 10, 15):
        expected = noise.size * np.exp(-above)
        assert abs((noise > above).sum() - expected) < 4 * expected**0.5


def uniform_pairs(one: np.ndarray, other: np.ndarray) -> float:
    """The p-value of the two being independent, each in 16 equally likely parts."""
    parts = [np.minimum(-np.expm1(-each.ravel()) * 16, 15).astype(int) for each in (one, other)]
    return chisquare(np.bincount(16 * parts[0] + parts[1], minlength=256)).pvalue


@pytest.mark.parametrize("apart", [1, 2, 3, 64, 1024, 2**15])
def test_noise_of_tokens_is_independent(apart):
    noise = noise_of(many_keys(8), 2**16)
    assert uniform_pairs(noise[:, :-apart], noise[:, apart:]) > 1e-4
    tokens = np.arange(2**16)
    assert uniform_pairs(noise, noise[:, tokens ^ apart]) > 1e-4


def test_noise_of_positions_and_of_rows_is_independent():
    """Of neighbours in a row, of rows whose seeds are neighbours, and of the same token of all rows."""
    positions = noise_of(many_keys(9), 2**16)
    assert uniform_pairs(positions[:-1], positions[1:]) > 1e-4
    rows = noise_of(keys_of(9), 2**16)
    assert uniform_pairs(rows[:-1], rows[1:]) > 1e-4
    tokens = noise_of(keys_of(4096), 16)
    assert uniform_pairs(tokens[:-1], tokens[1:]) > 1e-4
    assert uniform_pairs(tokens[:, :-1], tokens[:, 1:]) > 1e-4


# --- The distribution ---------------------------------------------------------------------------------------

SETTINGS = [
    SamplingConfiguration(temperature=temperature, top_k=top_k, top_p=top_p)
    for temperature in (0.3, 1.0, 1.7)
    for top_k in (0, 1, 3, 7, 12, 20)
    for top_p in (0.05, 0.6, 0.95, 1.0)
]


@pytest.mark.parametrize(
    "sampling", SETTINGS, ids=lambda sampling: "{temperature}-{top_k}-{top_p}".format(**vars(sampling))
)
def test_the_distribution_is_that_of_transformers(sampling):
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    probs = np.exp(warped_logprobs(logits, sampling))
    assert_drawn_by(probs, tokens_of(logits, 20_000, sampling))


@pytest.mark.parametrize(
    "sampling", SETTINGS[::5], ids=lambda sampling: "{temperature}-{top_k}-{top_p}".format(**vars(sampling))
)
def test_a_token_is_the_likeliest_for_its_noise(sampling):
    """Every single draw, by float64 and transformers' warpers; for a vocabulary in runs of 128, and one that is not."""
    for vocabulary in (300, 512):
        logits = torch.randn(20, vocabulary, generator=torch.Generator().manual_seed(1)) * 2
        tokens, _ = sample(logits, many_keys(20), sampling)
        for row, token in enumerate(tokens.tolist()):
            expected, margin = drawn(warped_logprobs(logits[row : row + 1], sampling), (0,), row)
            assert token == expected or margin < 1e-4


def test_equal_logits_at_the_edge_of_top_k_all_stay():
    """Of 2 : 4 : 2 : 1 the second place is tied, so top-k of 2 leaves three tokens, of 2, 4 and 2 eighths."""
    tokens = tokens_of(logits_of([2, 4, 2, 1]), 8000, SamplingConfiguration(top_k=2))
    assert_drawn_by(np.array([0.25, 0.5, 0.25, 0.0]), tokens)
    assert_drawn_by(np.full(8, 1 / 8), tokens_of(logits_of([1] * 8), 8000, SamplingConfiguration(top_k=3)))


def test_top_p_counts_what_top_k_left():
    """Top-k leaves 4 and 3, which is 4/7 and 3/7: then 4/7 alone holds the half, as 4/10 does not."""
    logits = logits_of([4, 3, 2, 1])
    assert set(tokens_of(logits, 500, SamplingConfiguration(top_k=2, top_p=0.5))) == {0}
    assert_drawn_by(np.array([4, 3, 0, 0]) / 7, tokens_of(logits, 7000, SamplingConfiguration(top_p=0.5)))


def test_frequencies_under_top_k_and_top_p():
    """Top-k drops the last of 8, 5, 4, 2, 1 twentieths; 0.9 of the 19 left is 17.1, so the 2 is dropped or kept by p.

    8 + 5 + 4 = 17 of 19 is less than 0.9, so a fourth token is needed; it is not for 0.89.
    """
    logits = logits_of([2, 8, 1, 5, 4])
    for top_p, left in ((0.9, [2, 8, 0, 5, 4]), (0.89, [0, 8, 0, 5, 4])):
        tokens = tokens_of(logits, 20_000, SamplingConfiguration(top_k=4, top_p=top_p))
        assert_drawn_by(np.array(left) / sum(left), tokens)


def test_tiny_top_p_leaves_the_likeliest():
    tokens = tokens_of(logits_of([3, 1, 4, 1, 5, 9, 2, 6]), 300, SamplingConfiguration(top_p=1e-300))
    assert set(tokens) == {5}


def test_temperature_zero_takes_the_likeliest():
    logits = torch.tensor([[0.5, 3.0, -1.0, 2.9]])
    for top_k, top_p in ((0, 1.0), (2, 1.0), (0, 0.5)):
        greedy = SamplingConfiguration(temperature=0, top_k=top_k, top_p=top_p)
        assert set(tokens_of(logits, 20, greedy)) == {1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_type_and_size_of_logits(dtype):
    logits = torch.tensor([[-6e4, 6e4, 6e4, -INF]], dtype=dtype)
    for sampling in (EVERYTHING, SamplingConfiguration(top_k=3), SamplingConfiguration(top_p=0.9)):
        assert_drawn_by(np.array([0, 0.5, 0.5, 0]), tokens_of(logits, 4000, sampling))


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
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)) * 4
    tokens, logprobs = sample(logits, keys_of(40), sampling)
    expected = logits.double().log_softmax(-1)[torch.arange(40), tokens]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), expected, rtol=1e-6, atol=1e-5)
    assert expected.unique().numel() > 20


def test_rare_tokens_are_as_frequent_as_they_should_be():
    """A hundred tokens that hold a 10,000th together: of 2 million draws, 200 go to them, and to each alike."""
    rare = [1e-6] * 100
    tokens = tokens_of(logits_of([1 - sum(rare), *rare]), 2**21)
    in_tail = tokens[tokens > 0]
    assert abs(len(in_tail) - 2**21 * 1e-4) < 4 * (2**21 * 1e-4) ** 0.5
    assert chisquare(np.bincount((in_tail - 1) // 10, minlength=10)).pvalue > 1e-3


@given(
    st.lists(st.sampled_from([-INF, -400.0, -30.0, 0.0, 0.1, 2.0, 300.0]), min_size=1, max_size=12),
    st.integers(0, 2**64 - 1),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([0, 2]),
    st.sampled_from([0.3, 0.9, 1.0]),
)
def test_a_token_without_probability_is_never_drawn(logits, seed, temperature, top_k, top_p):
    if max(logits) == -INF:
        logits = [*logits, 0.0]
    sampling = SamplingConfiguration(temperature=temperature, top_k=top_k, top_p=top_p)
    tokens = set(tokens_of(torch.tensor([logits]), 20, sampling, seed).tolist())
    # One of float32's smallest numbers; and of equal tokens at an edge transformers may keep another.
    possible = np.exp(warped_logprobs(torch.tensor([logits]), sampling)) > 1e-45
    least = min(logit for logit, kept in zip(logits, possible, strict=True) if kept)
    assert min(logits[token] for token in tokens) >= least


def test_barred_tokens_are_never_drawn_and_change_no_other_draw():
    """Where the likeliest for its noise is no barred one, the draw is the same as without bars."""
    logits = torch.randn(500, 384, generator=torch.Generator().manual_seed(2))
    barred = logits.clone()
    barred[:, 256:] = -INF
    for sampling in (EVERYTHING, SamplingConfiguration(temperature=0), SamplingConfiguration(temperature=2.0)):
        free, bound = (sample(each, many_keys(500), sampling)[0] for each in (logits, barred))
        assert (bound < 256).all()
        assert torch.equal(free[free < 256], bound[free < 256])
        assert 200 < (free < 256).sum() < 450


@pytest.mark.parametrize("sampling", [EVERYTHING, *SETTINGS[::17], SamplingConfiguration(temperature=0)])
def test_a_vocabulary_of_one(sampling):
    tokens, logprobs = sample(torch.full((3, 1), -7.0), keys_of(3), sampling)
    assert (tokens.tolist(), logprobs.tolist()) == ([0, 0, 0], [0, 0, 0])


# --- Vocabularies larger than the first candidates -------------------------------------------------------------


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
def test_a_large_vocabulary_is_drawn_from_as_transformers_would(vocabulary, spread, sampling):
    """With little spread, thousands of tokens are about as likely and nearly all are candidates; with much, few.

    Tokens are counted in 40 groups of neighbours in probability.
    """
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(vocabulary)) * spread
    logits[0, vocabulary // 3] = -INF
    probs = cut((logits[0].double() / sampling.temperature).softmax(-1).numpy(), sampling)
    tokens = tokens_of(logits, 1500, sampling)
    # A token at the edge may fall on its other side by rounding.
    assert probs[tokens].min() > 0 or np.sort(probs[probs > 0])[0] < 1e-6
    order = np.argsort(-probs)
    group = np.empty(vocabulary, dtype=int)
    group[order] = np.minimum(np.cumsum(probs[order]) * 40, 39).astype(int)
    assert_drawn_by(np.bincount(group, weights=probs, minlength=40), group[tokens])


# --- Batches, rounding, and what is not finite ---------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [EVERYTHING, SamplingConfiguration(top_k=20, top_p=0.8), SamplingConfiguration(top_p=0.9)]
)
@pytest.mark.parametrize("block", [1, 2000, 2**18])
def test_rows_do_not_mix(sampling, block, monkeypatch):
    """Also where logits tie at the edge of top-p, as those of bfloat16 do; by themselves, all at once and by blocks."""
    monkeypatch.setattr(module, "CPU_BLOCK", block)
    logits = (
        torch.randn(40, 1500, generator=torch.Generator().manual_seed(3)) * torch.linspace(0.2, 3, 40)[:, None]
    ).bfloat16()
    keys = keys_of(40)
    alone = [sample(logits[[row]], keys[[row]], sampling)[0].item() for row in range(40)]
    assert sample(logits, keys, sampling)[0].tolist() == alone
    assert len(set(alone)) > 5


@pytest.mark.parametrize("sampling", [*SETTINGS[::5], SamplingConfiguration(top_k=300, top_p=0.9)])
@pytest.mark.parametrize("vocabulary", [12, 1500, 5003])
def test_a_device_that_the_host_does_not_wait_for_draws_the_same(vocabulary, sampling, monkeypatch):
    """It has no candidates, but the whole vocabulary; likely tokens tie, also at the edges."""
    spread = torch.linspace(0.1, 6, 60)[:, None]
    logits = (torch.randn(60, vocabulary, generator=torch.Generator().manual_seed(5)) * spread).bfloat16()
    logits[:, 1] = -INF
    expected = sample(logits, keys_of(60), sampling)
    monkeypatch.setitem(module.STEPS_AT_ONCE, "cpu", 8)
    found = sample(logits, keys_of(60), sampling)
    assert found[0].tolist() == expected[0].tolist()
    assert torch.equal(found[1], expected[1])


def test_of_equal_tokens_at_the_edge_of_top_p_the_first_stay():
    """Of 1000 equal ones, the first 300, whatever order they are sorted in."""
    tokens = tokens_of(torch.zeros(1, 1000), 5000, SamplingConfiguration(top_p=0.3))
    assert tokens.max() == 299
    assert chisquare(np.bincount(tokens // 10, minlength=30)).pvalue > 1e-4


def by_cumulated_probabilities(logits_BV: torch.Tensor) -> torch.Tensor:
    """Drawn as before: where a number falls in the cumulated probabilities, in the vocabulary's order."""
    numbers = torch.from_numpy(np.stack([uniforms((0, row), 1) for row in range(len(logits_BV))]))
    cumulated_BV = logits_BV.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulated_BV, numbers * cumulated_BV[:, -1:]).squeeze(-1)


def test_rounding_moves_few_draws():
    """The same hidden states and weights, read in bfloat16 in two orders of summation, and in float32 likewise."""
    generator = torch.Generator().manual_seed(4)
    hidden = torch.randn(1800, 256, generator=generator)
    weight = torch.randn(4096, 256, generator=generator) / 16 * 2
    order = torch.randperm(256, generator=generator)

    def two_ways(dtype: torch.dtype) -> list[torch.Tensor]:
        one, other = hidden.to(dtype), weight.to(dtype)
        halves = (one[:, order[part]] @ other[:, order[part]].T for part in (slice(0, 100), slice(100, 256)))
        return [one @ other.T, sum(halves)]

    def moved(dtype: torch.dtype, draw) -> float:
        before, after = (draw(logits) for logits in two_ways(dtype))
        return (before != after).float().mean().item()

    def by_noise(logits: torch.Tensor) -> torch.Tensor:
        return sample(logits, many_keys(1800), EVERYTHING)[0]

    assert moved(torch.float32, by_noise) == 0
    few, many = moved(torch.bfloat16, by_noise), moved(torch.bfloat16, by_cumulated_probabilities)
    assert 0 < few < 0.02
    assert many > 5 * few


@pytest.mark.parametrize(
    "sampling",
    [
        EVERYTHING,
        SamplingConfiguration(temperature=0),
        SamplingConfiguration(temperature=0.5),
        SamplingConfiguration(top_k=3),
        SamplingConfiguration(top_p=0.9),
    ],
    ids=["all", "greedy", "cooler", "top_k", "top_p"],
)
@pytest.mark.parametrize("bad", [[NAN, 0.0], [NAN] * 2, [INF, 0.0], [INF, INF], [INF, -INF], [INF, NAN], [-INF] * 2])
def test_logits_that_are_not_finite_are_an_error(sampling, bad):
    """In one row of several, whatever is drawn from; a single token that is barred is none."""
    for vocabulary in (6, 128):
        logits = torch.full((3, vocabulary), bad[-1] if bad[0] == bad[-1] == -INF else 0.0)
        logits[1, 2:4] = torch.tensor(bad)
        logits[[0, 2]] = torch.tensor([0.0, -INF]).repeat(vocabulary // 2)
        tokens, logprobs = sample(logits, keys_of(3), sampling)
        assert logprobs.isnan().tolist() == [False, True, False]
        assert ((tokens >= 0) & (tokens < vocabulary)).all()
        with pytest.raises(NonFiniteLogitsError, match=r"not finite \(nan or inf\)"):
            looked_at([(tokens, logprobs)], frozenset())
        (first, *_), _ = looked_at([sample(logits[::2], keys_of(2), sampling)], frozenset())[0]
        assert first % 2 == 0


def test_the_host_sees_what_was_drawn_up_to_the_end_of_a_turn():
    """Two steps of three rows, of which 7 ends a turn; what comes after an end may be anything."""
    drawn = [
        (torch.tensor([7, 1, 2]), torch.tensor([-1.0, -2.0, -3.0])),
        (torch.tensor([3, 7, 4]), torch.tensor([NAN, -4.0, -5.0])),
    ]
    assert looked_at(drawn, frozenset({7})) == [([7], [-1.0]), ([1, 7], [-2.0, -4.0]), ([2, 4], [-3.0, -5.0])]
    with pytest.raises(NonFiniteLogitsError):
        looked_at(drawn, frozenset())
