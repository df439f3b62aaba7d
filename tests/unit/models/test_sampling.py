"""Drawing tokens: the distribution is that of transformers, and a given number gives a given token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from astra_accel.config import SamplingConfiguration
from astra_accel.models.sampling import exact_device, filtered_probs, sample, uniforms

INF = float("inf")
BELOW_ONE = np.nextafter(1.0, 0.0)
EVERYTHING = SamplingConfiguration()


def logits_of(probs: list[float]) -> torch.Tensor:
    return torch.tensor([probs], dtype=torch.float64).log()


def draw(logits: torch.Tensor, numbers: list[float] | np.ndarray, sampling=EVERYTHING) -> list[int]:
    """The tokens that several numbers give of one row of logits."""
    uniform = torch.as_tensor(np.asarray(numbers))
    return sample(logits.expand(len(uniform), -1), uniform, sampling).tolist()


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


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 50, 80])
@pytest.mark.parametrize("top_p", [0.05, 0.6, 0.95, 1.0])
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p):
    logits = torch.randn(16, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = filtered_probs(logits, SamplingConfiguration(temperature=temperature, top_k=top_k, top_p=top_p))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected.softmax(-1), rtol=1e-9, atol=1e-12)


def test_equal_logits_at_the_edge_of_top_k_all_stay():
    """e^2 : e : e, so 0.576, 0.212 and 0.212."""
    found = filtered_probs(torch.tensor([[1.0, 2.0, 1.0, 0.0]]), SamplingConfiguration(top_k=2))
    assert found[0].tolist() == pytest.approx([0.2119, 0.5761, 0.2119, 0.0], abs=1e-4)


def test_top_p_counts_what_top_k_left():
    """Top-k leaves 0.4 and 0.3, which is 4/7 and 3/7: then 4/7 alone holds the half."""
    logits = logits_of([0.4, 0.3, 0.2, 0.1])
    assert filtered_probs(logits, SamplingConfiguration(top_k=2, top_p=0.5))[0].tolist() == [1, 0, 0, 0]
    half = filtered_probs(logits, SamplingConfiguration(top_p=0.5))[0]
    assert half.tolist() == pytest.approx([4 / 7, 3 / 7, 0, 0])


def test_temperature_zero_takes_the_likeliest():
    greedy = SamplingConfiguration(temperature=0)
    logits = torch.tensor([[0.5, 3.0, -1.0, 2.9]])
    assert filtered_probs(logits, greedy).tolist() == [[0, 1, 0, 0]]
    assert draw(logits, [0.0, 0.5, BELOW_ONE], greedy) == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_type_and_size_of_logits(dtype):
    logits = torch.tensor([[-6e4, 6e4, 6e4, -INF]], dtype=dtype)
    assert filtered_probs(logits, EVERYTHING).tolist() == [[0, 0.5, 0.5, 0]]
    assert draw(logits, [0.0, 0.49, 0.51, BELOW_ONE]) == [1, 1, 2, 2]


# --- The draw -----------------------------------------------------------------------------------------------


def test_frequencies_are_the_probabilities():
    """Of 64 evenly spaced numbers, as many give a token as its probability has 64ths."""
    parts = [16, 1, 0, 30, 2, 0, 15]
    numbers = (np.arange(64) + 0.5) / 64
    drawn = draw(logits_of([part / 64 for part in parts]), numbers)
    assert np.bincount(drawn, minlength=7).tolist() == parts
    assert drawn == sorted(drawn)


def test_frequencies_under_top_k_and_top_p():
    """Top-k drops the last of 8, 5, 4, 2, 1 twentieths; 0.9 of the 19 left is 17.1, so the 2 is dropped or kept by p.

    8 + 5 + 4 = 17 of 19 is less than 0.9, so a fourth token is needed; it is not for 0.89.
    """
    logits = logits_of([0.1, 0.4, 0.05, 0.25, 0.2])
    numbers = (np.arange(19 * 17) + 0.5) / (19 * 17)
    four = np.bincount(draw(logits, numbers, SamplingConfiguration(top_k=4, top_p=0.9)), minlength=5)
    assert (four / 17).tolist() == [2, 8, 0, 5, 4]
    three = np.bincount(draw(logits, numbers, SamplingConfiguration(top_k=4, top_p=0.89)), minlength=5)
    assert (three / 19).tolist() == [0, 8, 0, 5, 4]


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
    assert filtered_probs(torch.tensor([logits]), sampling)[0, token] > 0


def test_the_ends_of_the_unit_interval():
    """The first and the last token with any probability, whatever stands beside them."""
    logits = torch.tensor([[-INF, -INF, 0.0, -INF, 1.0, 0.5, -INF]])
    assert draw(logits, [0.0, BELOW_ONE, 1.0]) == [2, 5, 5]
    # The probabilities of three equal tokens add up to less than 1.
    assert draw(torch.zeros(1, 3), [0.0, BELOW_ONE]) == [0, 2]
    # 49 times 1/49 adds up to another number than 1 as well.
    assert draw(torch.zeros(1, 49), [0.0, BELOW_ONE]) == [0, 48]


def test_rows_do_not_mix():
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(40, 30, generator=generator)
    numbers = torch.rand(40, generator=generator, dtype=torch.float64)
    sampling = SamplingConfiguration(top_k=20, top_p=0.8)
    alone = [sample(logits[[row]], numbers[[row]], sampling).item() for row in range(40)]
    assert sample(logits, numbers, sampling).tolist() == alone
    assert len(set(alone)) > 5


@pytest.mark.parametrize(("device", "where"), [("cpu", "cpu"), ("cuda:1", "cuda:1"), ("mps", "cpu")])
def test_tokens_are_drawn_where_there_is_float64(device: str, where: str):
    assert exact_device(torch.device(device)) == torch.device(where)
