"""Maximum likelihood: transformers' own loss, weights by hand, and which probes are learned."""

from __future__ import annotations

from math import inf, log
from types import SimpleNamespace

import pytest
import torch

from astra_accel import HFASTSystem
from astra_accel.algorithms.mle import MLE, MLEStep
from astra_accel.algorithms.trajectory_balance import TBStep
from astra_accel.core.sampler import Graph, Node
from astra_accel.experience.collect import Harness
from tests.helpers.table_system import TableSystem

LOGPROBS = {"a": [-1.0], "b": [-2.0, -3.0], "d": [-0.5, -0.5, -2.0]}


def table() -> TableSystem:
    """The tester's log-probs have gradients; the baseline's are twice as low."""
    tester = {probe: torch.tensor(row, requires_grad=True) for probe, row in LOGPROBS.items()}
    return TableSystem({probe: [2 * value for value in row] for probe, row in LOGPROBS.items()}, tester)


def graph(**returns: float) -> Graph:
    """Siblings after one context, by what they earned."""
    return Graph("c", [Node("c", probe, "r", value, info={"response_score": 0.5}) for probe, value in returns.items()])


def chosen(algorithm: MLE, *graphs: Graph) -> list[MLEStep]:
    steps = [step for tree in graphs for step in algorithm.flatten(tree)]
    return [step for step, is_chosen in zip(steps, algorithm.choose(steps), strict=True) if is_chosen]


def steps_of(algorithm: MLE, **returns: float) -> list[MLEStep]:
    return algorithm.prepare(algorithm.precompute(chosen(algorithm, graph(**returns))))


# --- The loss -----------------------------------------------------------------------------------------------


def test_a_mean_over_tokens_by_hand():
    """Minus the sum of all log-probs, 1 + 5 + 3, over 6 tokens; each has the slope -1/6."""
    algorithm = MLE(table(), best=1.0)
    steps = steps_of(algorithm, a=1.0, b=0.0, d=0.5)
    loss, logs = algorithm.step(algorithm.collate_fn(steps))
    assert loss.item() == pytest.approx(9 / 6)
    assert logs["mle/return"].item() == pytest.approx((1 * 1.0 + 2 * 0.0 + 3 * 0.5) / 6)
    loss.backward()
    for row in algorithm.system.tester.values():
        assert row.grad.tolist() == pytest.approx([-1 / 6] * len(row))
    assert [algorithm.weight(step) for step in steps] == [1.0, 2.0, 3.0]


def test_weights_by_hand():
    """tau 0.5 and log 2, 0 and log 3 halved: tokens of a, b and d count as 2, 1 and 3, with a mean of 1 by 2."""
    algorithm = MLE(table(), best=1.0, tau=0.5)
    steps = steps_of(algorithm, a=0.5 * log(2), b=0.0, d=0.5 * log(3))
    assert [step.factor for step in steps] == pytest.approx([1.0, 0.5, 1.5])
    assert [algorithm.weight(step) for step in steps] == [1.0, 2.0, 3.0]
    loss, logs = algorithm.step(algorithm.collate_fn(steps))
    assert loss.item() == pytest.approx((1.0 * 1 + 0.5 * 5 + 1.5 * 3) / 6)
    assert logs["mle/logprob"].item() == pytest.approx(-9 / 6)


def test_a_small_tau_leaves_the_best_alone():
    steps = steps_of(MLE(table(), best=1.0, tau=1e-6), a=0.5, b=0.4, d=0.5)
    assert [step.factor for step in steps] == pytest.approx([1.5, 0.0, 1.5])


@pytest.mark.parametrize("tau", [None, 0.3])
def test_a_batch_is_the_weighted_mean_of_its_examples(tau: float | None):
    algorithm = MLE(table(), best=1.0, tau=tau)
    steps = steps_of(algorithm, a=0.7, b=-0.2, d=0.1)
    whole, _ = algorithm.step(algorithm.collate_fn(steps))
    weights = [algorithm.weight(step) for step in steps]
    parts = [algorithm.step(algorithm.collate_fn([step]))[0].item() for step in steps]
    assert whole.item() == pytest.approx(sum(map(float.__mul__, weights, parts)) / sum(weights))


def test_it_is_the_loss_of_transformers_and_its_gradients():
    """Of one padded batch with labels at the probes' tokens alone."""
    system = HFASTSystem("tiny", "tiny", lora=None)
    context = system.start("Hello there.")
    files = system.roles.tester.files
    probes = [
        system.views.probe(tuple(files.tokenizer(text).input_ids), files.end_ids) for text in ("You!", "Well, no.")
    ]
    algorithm = MLE(system, best=1.0)
    steps = algorithm.precompute([MLEStep(context, probe, 0.0) for probe in probes])
    loss, _ = algorithm.step(algorithm.collate_fn(steps))
    (found,) = torch.autograd.grad(loss, system.tester.model.embed_tokens.weight)

    before = (files.tokenizer.bos_token_id, *context.segments[0].tester_ids)
    rows = [torch.tensor([*before, *probe.sampled_ids]) for probe in probes]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=files.tokenizer.pad_token_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, : len(before)] = -100
    expected = system.tester(input_ids=ids, attention_mask=mask, labels=labels).loss
    (gradient,) = torch.autograd.grad(expected, system.tester.model.embed_tokens.weight)
    assert [step.num_tokens for step in steps] == [len(probe.sampled_ids) for probe in probes]
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)


# --- What is learned ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"best": 1.0}, ["a", "b", "d"]),
        ({"best": 0.3}, ["b"]),
        ({"best": 0.34}, ["a", "b"]),  # a share of a probe is a whole one; of a and d, which are equal, the earlier
        ({"best": 1.0, "min_return": 0.2}, ["b"]),
        ({"best": 1.0, "min_return": 0.9}, []),
    ],
)
def test_the_best_are_learned_in_their_order(options: dict[str, float], expected: list[str]):
    steps = steps_of(MLE(table(), **options), a=0.2, b=0.9, d=0.2)
    assert [step.probe for step in steps] == expected


def test_the_best_of_a_whole_experience_are_learned():
    steps = chosen(MLE(table(), best=0.5), graph(a=0.1, b=0.2), graph(a=0.3, d=0.4))
    assert [step.earned for step in steps] == [0.3, 0.4]


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        (0.25, [0.9, 0.6]),  # two of eight, both above the least return: that is no quarter of the two
        (0.125, [0.9]),
        (0.5, [0.9, 0.6]),  # of four, two earned too little
        (1.0, [0.9, 0.6]),
    ],
)
def test_the_share_is_of_all_probes_whatever_they_earned(best: float, expected: list[float]):
    returns = [0.0, 0.9, 0.5, 0.1, 0.0, 0.6, 0.2, 0.0]
    tree = Graph("c", [Node("c", str(index), "r", value) for index, value in enumerate(returns)])
    assert [step.earned for step in chosen(MLE(None, best, min_return=0.5), tree)] == expected


def test_the_baseline_is_asked_about_what_is_learned_and_nothing_else():
    """Of eight probes in two trees two are learned, one of each; a probe without a reward is none of the eight."""
    algorithm = MLE(table(), best=0.25, min_return=0.2, tau=1.0)
    trees = [
        Graph("c", [Node("c", probe, "r", value) for probe, value in zip("abdb", values, strict=True)])
        for values in ((0.1, 0.3, 0.0, 0.1), (0.2, 0.0, 0.9, 0.2))
    ]
    trees[0].children.append(Node("c", "a", "r", None))
    rollouts = iter(trees)
    experience = Harness(SimpleNamespace(rollout=lambda seed: next(rollouts)), algorithm, 2).collect(0)
    assert algorithm.system.asked == [("baseline", ["b", "d"])]
    assert [(step.probe, step.earned, step.num_tokens) for step in experience.steps] == [("b", 0.3, 2), ("d", 0.9, 3)]
    assert experience.trees == [0, 1]


def test_the_learned_probes_of_one_tree_are_still_of_one_tree():
    algorithm = MLE(table(), best=0.75)
    experience = Harness(SimpleNamespace(rollout=lambda seed: graph(a=0.3, b=0.1, d=0.2)), algorithm, 3).collect(0)
    assert [step.probe for step in experience.steps] == ["a", "b", "d", "a", "d", "a", "d"]
    assert experience.trees == [0, 0, 0, 1, 1, 2, 2]


def test_where_nothing_earned_enough_no_model_runs():
    algorithm = MLE(table(), min_return=0.5)
    experience = Harness(SimpleNamespace(rollout=lambda seed: graph(a=0.3, b=0.1)), algorithm, 2).collect(0)
    assert experience.steps == []
    assert algorithm.system.asked == []


def test_later_turns_count_as_credit_has_it():
    child = Node("ca", "b", "r", 1.0)
    tree = Graph("c", [Node("c", "a", "r", 0.5, [child])])
    found = MLE(table(), credit="max", discount=0.5).flatten(tree)
    assert [(step.probe, step.earned) for step in found] == [("a", 1.0), ("b", 1.0)]


def test_a_replay_goes_by_what_a_probe_earned_and_how_fluent_it_is():
    algorithm = MLE(table(), best=1.0)
    (step,) = steps_of(algorithm, b=0.7)
    assert algorithm.replay_entry(step) == (0.7, ("b",), 2 * -2.5, 0.5)
    assert algorithm.off_policy


# --- Mistakes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": 0.0}, "best is 0.0, expected more than 0 and at most 1"),
        ({"best": 1.5}, "best is 1.5, expected more than 0 and at most 1"),
        ({"tau": 0.0}, "tau is 0.0, expected more than 0"),
        ({"tau": -1.0}, "tau is -1.0, expected more than 0"),
        ({"min_return": inf}, "min_return is inf, expected a finite number"),
    ],
)
def test_bad_options(options: dict[str, float], message: str):
    with pytest.raises(ValueError, match=message):
        MLE(None, **options)


def test_a_step_that_was_not_counted_has_no_weight():
    with pytest.raises(ValueError, match="call precompute on it first"):
        MLE(table()).weight(MLEStep("c", "a", 0.5))


# --- What another run found -----------------------------------------------------------------------------------


def test_the_probes_of_a_group_are_learned_one_by_one():
    group = TBStep("c", ("a", "b", "d"), (0.2, 0.8, 0.5), (0.0, None, 1.0), baseline=(-2.0, -10.0, -6.0))
    steps = MLE(None, min_return=0.2).adopt(group)
    assert steps == [MLEStep("c", "b", 0.8, score=None), MLEStep("c", "d", 0.5, score=1.0)]


def test_own_examples_are_taken_as_they_are_if_they_earned_enough():
    step = MLEStep("c", "a", 0.5, num_tokens=1, fluency=-1.0, factor=2.0)
    assert MLE(None).adopt(step) == [step]
    assert MLE(None, min_return=0.5).adopt(step) == []
