"""What is found of the optional methods, and how many tokens a probe has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from astra_accel.core.optional import CountsTokens, HasRolloutState, num_probe_tokens, offers


class Counting:
    def num_tokens(self, context: Any, continuation: Any) -> int:
        return 3


class Proxy:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@pytest.mark.parametrize("thing", [Counting(), Proxy(Counting()), SimpleNamespace(num_tokens=len)])
def test_a_method_is_found_wherever_it_comes_from(thing):
    assert offers(thing, CountsTokens)


@pytest.mark.parametrize("thing", [object(), None, SimpleNamespace(num_tokens=None), Proxy(object())])
def test_what_is_not_there_or_none_is_not_offered(thing):
    assert not offers(thing, CountsTokens)


def test_a_protocol_of_two_methods_wants_both():
    assert not offers(SimpleNamespace(rollout_state=dict), HasRolloutState)
    assert offers(SimpleNamespace(rollout_state=dict, load_rollout_state=print), HasRolloutState)


LOGPROBS_BT = torch.tensor([[-1.0, 0.0, -2.0, 0.0], [-1.0, -1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]])


def test_zeros_at_the_end_are_padding_and_zeros_before_are_not():
    assert num_probe_tokens(object(), ["a", "b", "c"], LOGPROBS_BT).tolist() == [3, 4, 0]
    assert num_probe_tokens(object(), ["a"], torch.zeros(1, 0)).tolist() == [0]


def test_a_system_that_counts_knows_certain_last_tokens():
    system = SimpleNamespace(num_probe_tokens=lambda probes: [len(probe) for probe in probes])
    assert num_probe_tokens(system, ["abcd", "ab", "a"], LOGPROBS_BT).tolist() == [4, 2, 1]
