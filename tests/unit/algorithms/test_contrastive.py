"""CTB: loss and gradient by hand, what the tester comes to, which pairs are left out, and the rule of fluency."""

from __future__ import annotations

from math import exp, inf, log, nan

import pytest
import torch

from astra_accel.algorithms.contrastive import CTB, min_k_mean
from astra_accel.algorithms.dpo import DPO, DPOStep, pair_loss
from astra_accel.core.sampler import Graph, Node
from tests.helpers.table_system import TableSystem


def graph(**returns: float) -> Graph:
    """Siblings after one context, by what they earned."""
    return Graph("c", [Node("c", probe, "r", value) for probe, value in returns.items()])


# --- The loss -----------------------------------------------------------------------------------------------


def test_the_loss_and_its_gradient_by_hand():
    """Log-ratios of the first pair: -1 + 2 = 1 and -3 + 3.5 = 0.5, so h = 0.5; it is drawn to 0.3 / 0.25 = 1.2.

    (0.5 - 1.2)^2 = 0.49, with slopes 2 * -0.7 = -1.4 for the chosen and 1.4 for the rejected. The second pair:
    -4 + 2 = -2 and -3 + 4 = 1, so h = -3; it is drawn to 0.1 / 0.25 = 0.4: 3.4^2 = 11.56 and -6.8.
    """
    numbers = [[-1.0, -4.0], [-3.0, -3.0], [-2.0, -2.0], [-3.5, -4.0]]
    logprobs = [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in numbers]
    gap = torch.tensor([0.3, 0.1], dtype=torch.float64)
    loss = pair_loss(*logprobs, beta=0.25, loss="ctb", gap=gap)
    assert loss.tolist() == pytest.approx([0.49, 11.56], abs=1e-12)
    loss.sum().backward()
    assert logprobs[0].grad.tolist() == pytest.approx([-1.4, -6.8], abs=1e-12)
    assert logprobs[1].grad.tolist() == pytest.approx([1.4, 6.8], abs=1e-12)


def test_a_pair_of_unknown_returns_is_an_error():
    zeros = torch.zeros(1)
    with pytest.raises(ValueError, match="loss 'ctb' compares what the probes earned, but a pair has no gap"):
        pair_loss(zeros, zeros, zeros, zeros, beta=1.0, loss="ctb")
    algorithm = CTB(TableSystem({"a": [-1.0], "b": [-1.0]}))
    with pytest.raises(ValueError, match="but a pair has no gap"):
        algorithm.step(algorithm.collate_fn([DPOStep("c", "a", "b", -1.0, -1.0)]))


def test_a_step_by_hand_and_a_batch_is_the_mean_of_its_steps():
    """Sums over tokens. Tester: a -2, b -4, d -3; baseline: a -4, b -2, d -2. Log-ratios: a 2, b -2, d -1.

    Returns a 1, b 0, d 0.5 and beta 0.5: a over b 4 - 2, a over d 3 - 1, d over b 1 - 1. So (4 + 4 + 0) / 3.
    """
    tester = {"a": [-1.0, -0.5, -0.5], "b": [-4.0], "d": [-2.0, -1.0]}
    baseline = {"a": [-1.0, -1.0, -2.0], "b": [-2.0], "d": [-1.0, -1.0]}
    algorithm = CTB(TableSystem(baseline, tester), beta=0.5)
    steps = algorithm.flatten(graph(a=1.0, b=0.0, d=0.5))
    assert [(step.suffix_pos, step.suffix_neg, step.gap) for step in steps] == [
        ("a", "d", 0.5),
        ("a", "b", 1.0),
        ("d", "b", 0.5),
    ]
    known = algorithm.precompute(steps)
    assert all(algorithm.keep(step) for step in known)
    for given in (steps, known):
        loss, logs = algorithm.step(algorithm.collate_fn(given))
        assert loss.item() == pytest.approx(8 / 3, abs=1e-6)
        assert logs["dpo/return_gap"].item() == pytest.approx(2 / 3)
        assert logs["dpo/reward_margin"].item() == pytest.approx(0.5 * 8 / 3)
    alone = [algorithm.step(algorithm.collate_fn([step]))[0].item() for step in known]
    assert alone == pytest.approx([4.0, 4.0, 0.0], abs=1e-6)
    assert [algorithm.weight(step) for step in known] == [1.0] * 3


# --- What the tester comes to -------------------------------------------------------------------------------


class Logits:
    """Six probes of one token: the tester a softmax of six logits, the baseline a fixed distribution."""

    def __init__(self) -> None:
        self.baseline = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01], dtype=torch.float64)
        self.logits = torch.zeros(6, dtype=torch.float64, requires_grad=True)

    def get_tester_logprobs(self, context, continuation):
        return self.logits.log_softmax(-1)[list(map(int, continuation)), None]

    def get_baseline_logprobs(self, context, continuation):
        return self.baseline.log()[list(map(int, continuation)), None]


@pytest.mark.parametrize(
    ("returns", "margin", "num_pairs"),
    [([0.3, 0.0, 0.7, 0.3, 1.5, 0.5], 0.0, 14), ([0.3, 0.0, 0.7, 0.9, 1.0, 0.5], 0.25, 11)],
    ids=["a tie", "a margin"],
)
def test_the_tester_comes_to_the_baseline_times_the_exponential_of_the_return(
    returns: list[float], margin: float, num_pairs: int
):
    """Of 15 pairs one ties, or four are within the margin; those that are left connect all probes."""
    system, beta = Logits(), 0.4
    algorithm = CTB(system, beta, margin=margin)
    steps = algorithm.flatten(graph(**{str(place): value for place, value in enumerate(returns)}))
    assert len(steps) == num_pairs
    batch = algorithm.collate_fn(steps)
    optimizer = torch.optim.LBFGS([system.logits], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value, _ = algorithm.step(batch)
        value.backward()
        return value

    optimizer.step(loss)
    weights = [p * exp(value / beta) for p, value in zip(system.baseline.tolist(), returns, strict=True)]
    expected = [weight / sum(weights) for weight in weights]
    assert max(abs(weight - p) for weight, p in zip(expected, system.baseline.tolist(), strict=True)) > 0.2
    assert system.logits.softmax(-1).tolist() == pytest.approx(expected, abs=1e-4)


# --- Which pairs say something ------------------------------------------------------------------------------


def pairs(algorithm: CTB, **returns: float) -> list[tuple[str, str, float | None]]:
    steps = algorithm.flatten(graph(**returns))
    if algorithm.system is not None:
        steps = [step for step in algorithm.precompute(steps) if algorithm.keep(step)]
    return [(step.suffix_pos, step.suffix_neg, step.gap) for step in steps]


def test_all_pairs_that_differ_by_more_than_the_margin():
    assert pairs(CTB(None), a=0.5, b=2.0, d=0.5) == [("b", "a", 1.5), ("b", "d", 1.5)]
    assert pairs(CTB(None, margin=0.5), a=0.5, b=1.0, d=1.25) == [("d", "a", 0.75)]
    assert pairs(CTB(None, pairs="best_worst"), a=0.5, b=1.0, d=1.25) == [("d", "a", 0.75)]
    assert pairs(CTB(None, pairs="adjacent"), a=0.5, b=1.0, d=1.25) == [("d", "b", 0.25), ("b", "a", 0.5)]
    assert pairs(CTB(None), a=0.5) == pairs(CTB(None)) == []


def test_what_the_least_likely_tokens_have_by_hand():
    """Rows of 5, 3 and 0 tokens, some of them certain. A share of 0.4: ceil(2) and ceil(1.2) = 2 tokens.

    (-7 - 4) / 2 and (-3 - 2) / 2; of all: -14 / 5 and -5 / 3; of 0.2: the least one.
    """
    logprobs = torch.tensor([[-1.0, -7.0, -2.0, -4.0, 0.0], [-2.0, 0.0, -3.0, 0.0, 0.0], [0.0] * 5])
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2, [False] * 5])
    assert min_k_mean(logprobs, mask, 0.4).tolist() == [-5.5, -2.5, 0.0]
    assert min_k_mean(logprobs, mask, 1.0).tolist() == pytest.approx([-14 / 5, -5 / 3, 0.0])
    assert min_k_mean(logprobs, mask, 0.2).tolist() == [-7.0, -3.0, 0.0]
    assert min_k_mean(logprobs, mask, 1e-3).tolist() == [-7.0, -3.0, 0.0]


def test_a_share_that_rounding_makes_too_large_is_not_a_token_more():
    """0.7 * 10 is 7.000000000000001: seven tokens, of -10 to -4, not eight."""
    logprobs = -torch.arange(1.0, 11.0)[None]
    assert min_k_mean(logprobs, torch.ones(1, 10, dtype=torch.bool), 0.7).item() == -7.0


# By the mean of the two least likely of up to four tokens: a -2, b -9, d -1.5, e -9.5.
FLUENCY = {"a": [-1.0, -1.0, -1.0, -3.0], "b": [-9.0, -0.5, -9.0], "d": [-1.0, -2.0], "e": [-0.1, -0.1, -10.0, -9.0]}


def fluent(**options) -> CTB:
    return CTB(TableSystem(FLUENCY), min_k=0.5, min_k_floor=-8.0, **options)


def test_a_probe_below_the_floor_earns_what_the_worst_of_its_siblings_did():
    """b counts as 0.25 instead of 1.0: it loses to a and is level with d."""
    assert pairs(fluent(), a=0.5, b=1.0, d=0.25) == [("a", "b", 0.25), ("a", "d", 0.25)]


def test_a_probe_below_the_floor_is_never_chosen():
    assert pairs(fluent(), b=1.0, d=0.25) == []
    assert pairs(fluent(), b=1.0, e=0.25) == []
    assert pairs(fluent(), a=1.0, b=0.25) == [("a", "b", 0.75)]


def test_the_margin_is_of_what_fluency_left():
    """b and a are level by what they earned, and 0.5 apart by what they keep; a and d are within the margin."""
    assert pairs(fluent(margin=0.3), a=1.0, b=1.0, d=0.75, e=0.5) == [("a", "b", 0.5), ("a", "e", 0.5)]
    assert pairs(fluent(margin=0.5), a=1.0, b=1.0, d=0.75, e=0.5) == []


def test_a_context_in_which_nothing_can_differ_asks_no_model():
    algorithm = fluent(margin=0.5)
    assert pairs(algorithm, a=0.5, b=1.0, d=0.75) == []
    assert algorithm.system.calls == []


def test_on_the_floor_is_fluent():
    assert pairs(CTB(TableSystem(FLUENCY), min_k=0.5, min_k_floor=-9.0), a=0.0, b=1.0) == [("b", "a", 1.0)]
    assert pairs(CTB(TableSystem(FLUENCY), min_k=0.5, min_k_floor=-8.9), a=0.0, b=1.0) == []


def test_without_a_floor_everything_is_fluent():
    assert pairs(CTB(TableSystem(FLUENCY), min_k=0.5), a=0.5, b=1.0) == [("b", "a", 0.5)]


def test_probes_that_change_places_take_their_logprobs_with_them():
    algorithm = fluent()
    (first, *_) = algorithm.precompute(algorithm.flatten(graph(b=1.0, a=0.5, d=0.0)))
    assert (first.suffix_pos, first.baseline_pos, first.return_pos) == ("a", -6.0, 0.5)
    assert (first.suffix_neg, first.baseline_neg, first.return_neg) == ("b", -18.5, 0.0)
    assert (first.fluency_pos, first.fluency_neg) == pytest.approx((-6 / 4, -18.5 / 3))
    assert algorithm.replay_entry(first) == (0.5, ("a",), first.fluency_pos, None)
    assert algorithm.system.calls == ["baseline"]
    assert algorithm.precompute([first]) == [first]
    assert algorithm.precompute([]) == []


def test_a_logprob_that_is_nan_is_left_for_the_trainer_to_find():
    algorithm = CTB(TableSystem({"a": [nan, -1.0], "b": [-1.0]}), min_k_floor=-8.0)
    steps = algorithm.precompute(algorithm.flatten(graph(a=1.0, b=0.0)))
    assert [algorithm.keep(step) for step in steps] == [True]
    assert algorithm.step(algorithm.collate_fn(steps))[0].isnan()


# --- Options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "beta is 0, expected more than 0"),
        ({"beta": -0.1}, "beta is -0.1, expected more than 0"),
        ({"margin": -1}, "margin is -1, expected at least 0"),
        ({"pairs": "some"}, "pairs is 'some', expected one of best_worst, all, adjacent"),
        ({"min_k": 0}, "min_k is 0, expected more than 0 and at most 1"),
        ({"min_k": 7}, "min_k is 7, expected more than 0 and at most 1"),
        ({"min_k": nan}, "min_k is nan, expected more than 0 and at most 1"),
        ({"min_k_floor": -inf}, "min_k_floor is -inf, expected nats a token below 0, or None for no floor"),
        ({"min_k_floor": nan}, "min_k_floor is nan, expected nats a token below 0, or None for no floor"),
        ({"min_k_floor": 10}, "min_k_floor is 10, expected nats a token below 0, or None for no floor"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        CTB(None, **options)


def test_pairs_may_be_of_earlier_weights():
    assert DPO.off_policy
    assert CTB.off_policy


def test_dpo_has_the_loss_too():
    """Without a rule of fluency: log-ratios of 0, so the loss is (0 - 1 / beta)^2."""
    algorithm = DPO(TableSystem({"a": [-1.0], "b": [log(0.5)]}), 0.5, loss="ctb")
    loss, _ = algorithm.step(algorithm.collate_fn(algorithm.flatten(graph(a=1.0, b=0.0))))
    assert loss.item() == pytest.approx(4.0)
