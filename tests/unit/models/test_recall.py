"""What was said in a rollout is found again, and nothing else is."""

from __future__ import annotations

import pytest
import torch

from astra_accel.models.loading.tiny import build_tiny
from astra_accel.models.recall import LogprobCache, Precision


def test_what_was_kept_is_found():
    recall = LogprobCache()
    recall.keep((1, 2), (3, 4), (-0.5, -1.5))
    recall.keep((1, 2), (3, 5), (-0.5, -2.5))
    recall.keep((1,), (2, 3), (-7.0, -0.5))
    found = recall.find([(1, 2), (1,), (1, 2)], [(3, 5), (2, 3), (3, 4)])
    assert found == [(-0.5, -2.5), (-7.0, -0.5), (-0.5, -1.5)]


def test_the_beginning_of_a_longer_continuation_is_found():
    recall = LogprobCache()
    recall.keep((1,), (2, 3, 4), (-1.0, -2.0, -3.0))
    assert recall.find([(1,)] * 3, [(2,), (2, 3), ()]) == [(-1.0,), (-1.0, -2.0), ()]


def test_what_was_not_said_is_none():
    recall = LogprobCache()
    recall.keep((1,), (2, 3), (-1.0, -2.0))
    # Longer, another token, another context, and a context that only splits the same tokens elsewhere.
    assert recall.find([(1,), (1,), (5,), (1, 2)], [(2, 3, 4), (2, 9), (2, 3), (3,)]) == [None] * 4
    assert LogprobCache().find([(1,)], [(2,)]) == [None]
    assert LogprobCache().find([], []) == []


def test_the_last_word_counts():
    recall = LogprobCache()
    recall.keep((1,), (2,), (-1.0,))
    recall.keep((1,), (2,), (-3.0,))
    assert recall.find([(1,)], [(2,)]) == [(-3.0,)]


def test_cleared_is_forgotten():
    recall = LogprobCache()
    recall.keep((1,), (2,), (-1.0,))
    recall.clear()
    assert recall.find([(1,)], [(2,)]) == [None]


AUTOCAST, HALF = Precision(torch.float32, torch.bfloat16), Precision(torch.bfloat16, None)


def test_what_was_said_in_another_precision_is_not_found():
    recall = LogprobCache()
    recall.keep((1,), (2,), (-1.0,))
    recall.keep((1,), (2,), (-1.1,), AUTOCAST)
    asked = [(1,)], [(2,)]
    assert recall.find(*asked) == [(-1.0,)]
    assert recall.find(*asked, AUTOCAST) == [(-1.1,)]
    assert recall.find(*asked, HALF) == [None]


def test_what_was_rounded_is_forgotten_before_the_rest():
    recall = LogprobCache()
    for precision in (AUTOCAST, HALF, Precision(torch.float64, None), Precision(torch.float32, torch.float32)):
        recall.keep((1,), (2,), (-1.0,), precision)
    recall.forget_rounded()
    kept = (Precision(torch.float64, None), Precision(torch.float32, torch.float32))
    for precision in (AUTOCAST, HALF, *kept):
        assert recall.find([(1,)], [(2,)], precision) == [(-1.0,) if precision in kept else None]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_the_precision_of_a_model_is_its_weights_and_autocasts(weights):
    model = build_tiny("llama")[0].to(weights)
    assert Precision.from_model(model) == (weights, None)
    with torch.autocast("cpu", torch.bfloat16):
        assert Precision.from_model(model) == (weights, torch.bfloat16)
        with torch.autocast("cpu", enabled=False):
            assert Precision.from_model(model) == (weights, None)
    with torch.autocast("cpu", torch.float16):
        assert not Precision.from_model(model).is_full
