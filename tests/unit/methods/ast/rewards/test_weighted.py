"""A reward is the weighted sum of its terms, and says which of them is at fault."""

from __future__ import annotations

import math

import pytest
import torch

from astra_accel.methods.ast.rewards.term import RewardTerm, Turns
from astra_accel.methods.ast.rewards.weighted import RewardError, WeightedTerms


class Letter(RewardTerm):
    """How often a letter stands in the probe."""

    def __init__(self, letter: str) -> None:
        self.name = letter

    def values(self, turns):
        return [text.count(self.name) for text in turns.probe_texts]


class Given(RewardTerm):
    name = "given"

    def __init__(self, *given: object) -> None:
        self.given = given

    def values(self, turns):
        return self.given


def turns(*probes: str) -> Turns:
    return Turns(None, [""] * len(probes), probes, [""] * len(probes))


def test_a_weighted_sum_and_its_terms():
    """``aab``: 2 × 0.5 + 1 × -3 = -2; a term of weight 0 is told, and counts nothing."""
    terms = WeightedTerms([(0.5, Letter("a")), (-3, Letter("b")), (0, Letter("c"))])
    assert terms.parts(turns("aab", "cc")) == [
        {"reward": -2.0, "a": 2.0, "b": 1.0, "c": 0.0},
        {"reward": 0.0, "a": 0.0, "b": 0.0, "c": 2.0},
    ]
    assert terms.parts(turns()) == []


def test_a_reward_without_terms_is_nothing():
    assert WeightedTerms([]).parts(turns("a", "b")) == [{"reward": 0.0}, {"reward": 0.0}]


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_is_a_finite_number(weight):
    with pytest.raises(ValueError, match=f"the weight of the reward's term 'a' is {weight}, expected a finite number"):
        WeightedTerms([(weight, Letter("a"))])


def test_every_term_has_a_name_of_its_own():
    with pytest.raises(ValueError, match="two terms of the reward are called 'a'"):
        WeightedTerms([(1, Letter("a")), (2, Letter("a"))])
    with pytest.raises(ValueError, match="called 'probe', which is the name of something else"):
        WeightedTerms([(1, Letter("probe"))])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((1.0,), "'given' gave 1 values for 2 turns"),
        ((1.0, math.nan), "'given' is nan for the probe 'second'; expected a finite number"),
        ((1.0, "high"), "'given' is 'high' for the probe 'second'; expected a finite number"),
        ((1.0, -math.inf), "'given' is -inf for the probe 'second'"),
    ],
)
def test_a_term_that_fails_is_named(values, message):
    with pytest.raises(RewardError, match=message):
        WeightedTerms([(1, Given(*values))]).parts(turns("first", "second"))


def test_a_term_that_gives_nothing_is_named():
    term = Given()
    term.given = None
    with pytest.raises(RewardError, match="'given' gave None for 2 turns; expected a list of values"):
        WeightedTerms([(1, term)]).parts(turns("first", "second"))


def test_numbers_of_any_kind_become_floats_and_none_stays():
    (row, other, third) = WeightedTerms([(2, Given(1, torch.tensor(0.5), None))]).parts(turns("a", "b", "c"))
    assert (row["reward"], other["reward"], third["reward"]) == (2.0, 1.0, None)
    assert [type(part["given"]) for part in (row, other)] == [float, float]


def test_a_reward_that_is_not_finite_is_an_error():
    with pytest.raises(RewardError, match="the reward of the probe 'p' is inf"):
        WeightedTerms([(1e300, Given(1e300))]).parts(turns("p"))
