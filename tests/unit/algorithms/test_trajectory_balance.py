"""Trajectory balance: loss and gradient by hand, that of all pairs of siblings, and what a table of probes comes to."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from astra_accel.algorithms.dpo import pair_loss
from astra_accel.algorithms.trajectory_balance import TB, TBStep, group_variance
from astra_accel.core.sampler import Graph, Node


class Table:
    """A system of one-token probes: the tester a softmax of logits, the baseline a fixed distribution."""

    def __init__(self, baseline: list[float]) -> None:
        self.baseline = torch.tensor(baseline, dtype=torch.float64)
        self.logits = torch.zeros(len(baseline), dtype=torch.float64, requires_grad=True)

    def get_tester_logprobs(self, context, continuation):
        return self.logits.log_softmax(-1)[list(map(int, continuation)), None]

    def get_baseline_logprobs(self, context, continuation):
        assert not torch.is_grad_enabled()
        return self.baseline.log()[list(map(int, continuation)), None]


def graph(context: str, *earned: tuple[str, float]) -> Graph:
    return Graph(context, [Node(context, probe, "r", value, info={"response_score": value}) for probe, value in earned])


# --- The loss -----------------------------------------------------------------------------------------------


def test_a_variance_and_its_gradient_by_hand():
    """1, 2, 6 about 3: 4 + 1 + 9; 5, 9 about 7: 4 + 4. Over 2 + 1; slopes are 2/3 of the deviations."""
    values = torch.tensor([1.0, 2.0, 5.0, 6.0, 9.0], dtype=torch.float64, requires_grad=True)
    loss = group_variance(values, torch.tensor([0, 0, 1, 0, 1]))
    assert loss.item() == pytest.approx(22 / 3)
    loss.backward()
    assert values.grad.tolist() == pytest.approx([-4 / 3, -2 / 3, -4 / 3, 2, 4 / 3])


def test_a_step_by_hand():
    """Log-ratios of a uniform tester: log of 1/4 over 1/2, 1/4 and 1/4 is -log 2, 0, 0; returns 0, 0.3, 0.6 by 0.3."""
    algorithm = TB(Table([0.5, 0.25, 0.125, 0.125]), beta=0.3)
    steps = algorithm.flatten(graph("c", ("0", 0.0), ("1", 0.3), ("1", 0.6)))
    ratios = torch.tensor([-1.0, 0.0, 0.0], dtype=torch.float64) * torch.tensor(2.0, dtype=torch.float64).log()
    expected = (ratios - torch.tensor([0.0, 1.0, 2.0])).var()  # divides by n - 1
    known = algorithm.precompute(steps)
    for given in (steps, known):
        loss, logs = algorithm.step(algorithm.collate_fn(given))
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        assert logs["tb/log_ratio_variance"].item() == pytest.approx(ratios.var().item(), abs=1e-6)
        assert logs["tb/return_variance"].item() == pytest.approx(1.0, abs=1e-6)
    assert [algorithm.weight(step) for step in known] == [2.0]


def test_its_gradient_is_that_of_all_pairs_of_siblings():
    """The sum over pairs of (d_i - d_j)^2 is n times that of the squares about the mean."""
    returns, baseline = [0.1, 0.9, 0.4, 0.0], [0.4, 0.3, 0.2, 0.1]
    system = Table(baseline)
    with torch.no_grad():
        system.logits += torch.tensor([0.3, -0.2, 0.8, 0.1])
    algorithm = TB(system, beta=0.25)
    steps = algorithm.flatten(graph("c", *((str(index), value) for index, value in enumerate(returns))))
    loss, _ = algorithm.step(algorithm.collate_fn(steps))
    (found,) = torch.autograd.grad(loss, system.logits)
    pairs = list(combinations(range(4), 2))
    tester, ref = system.logits.log_softmax(-1), torch.tensor(baseline, dtype=torch.float64).log()
    first, second = (torch.tensor(places) for places in zip(*pairs, strict=True))
    gap = torch.tensor([returns[one] - returns[other] for one, other in pairs], dtype=torch.float64)
    losses = pair_loss(tester[first], tester[second], ref[first], ref[second], beta=0.25, loss="ctb", gap=gap)
    (expected,) = torch.autograd.grad(losses.sum() / (4 * 3), system.logits)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_batch_is_the_weighted_mean_of_its_groups():
    algorithm = TB(Table([0.4, 0.3, 0.2, 0.1]), beta=0.5)
    steps = [
        *algorithm.flatten(graph("c", ("0", 0.0), ("1", 0.3), ("2", 0.6))),
        *algorithm.flatten(graph("d", ("3", 1.0), ("0", 0.2))),
    ]
    whole, _ = algorithm.step(algorithm.collate_fn(algorithm.precompute(steps)))
    parts = [algorithm.step(algorithm.collate_fn([step]))[0].item() for step in steps]
    assert [algorithm.weight(step) for step in steps] == [2.0, 1.0]
    assert whole.item() == pytest.approx((2 * parts[0] + parts[1]) / 3, abs=1e-6)


# --- What the tester comes to -------------------------------------------------------------------------------


def test_the_tester_comes_to_the_baseline_times_the_exponential_of_the_return():
    """Of all probes as siblings the loss has its minimum, 0, at one distribution alone."""
    baseline, returns, beta = [0.4, 0.3, 0.15, 0.1, 0.04, 0.01], [0.3, 0.0, 0.7, 0.3, 1.5, 0.5], 0.4
    system = Table(baseline)
    algorithm = TB(system, beta=beta)
    steps = algorithm.flatten(graph("c", *((str(index), value) for index, value in enumerate(returns))))
    batch = algorithm.collate_fn(steps)
    optimizer = torch.optim.LBFGS([system.logits], max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss, _ = algorithm.step(batch)
        loss.backward()
        return loss

    optimizer.step(closure)
    weights = torch.tensor(baseline, dtype=torch.float64) * (torch.tensor(returns, dtype=torch.float64) / beta).exp()
    torch.testing.assert_close(system.logits.softmax(-1), weights / weights.sum(), rtol=0, atol=1e-4)


# --- Groups -------------------------------------------------------------------------------------------------


def test_only_probes_with_siblings_make_a_group_and_equal_ones_stay():
    algorithm = TB(Table([0.5, 0.5]))
    child = Node("c0", "1", "r", 1.0)
    tree = Graph("c", [Node("c", "0", "r", 0.5, [child]), Node("c", "0", "r", 0.5)])
    assert algorithm.flatten(tree) == [TBStep("c", ("0", "0"), (0.5, 0.5), (None, None))]


def test_a_replay_goes_by_the_best_of_a_group():
    algorithm = TB(Table([0.5, 0.25, 0.25]))
    (step,) = algorithm.precompute(algorithm.flatten(graph("c", ("0", 0.1), ("1", 0.9), ("2", 0.4))))
    entry = algorithm.replay_entry(step)
    assert (entry.value, entry.probes, entry.score) == (0.9, ("1",), 0.9)
    assert entry.fluency == pytest.approx(torch.tensor(0.25).log().item())


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan"), float("inf")])
def test_bad_options(beta: float):
    with pytest.raises(ValueError, match=f"beta is {beta}, expected more than 0"):
        TB(None, beta)


def test_a_tree_without_siblings_is_refused():
    class OneProbe:
        tree_width = 1

    with pytest.raises(ValueError, match="tree_width is 1, but TB compares siblings; expected at least 2"):
        TB(None).check_sampler(OneProbe())
