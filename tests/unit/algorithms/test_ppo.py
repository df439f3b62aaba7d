"""PPO: returns and advantages of hand-written trees, losses by hand, and a tester with a value head."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from astra_accel.algorithms.ppo import PPO, PPOStep, value_loss
from astra_accel.core.sampler import Graph, Node
from astra_accel.methods.ast import HFASTSystem, HFASTValueFunctionSystem
from tests.helpers.table_system import TableSystem
from tests.helpers.trees import node


class ValueTable(TableSystem):
    """The values before each token stand in a table too."""

    def __init__(self) -> None:
        super().__init__()
        self.values = {"good": [1.0, 2.0, 3.0], "bad": [0.5], "fair": [2.0, -1.0]}
        self.value_shift = torch.nn.Parameter(torch.zeros(()))

    def value(self, context, continuation):
        self.asked.append(("value", list(continuation)))
        return self.rows(self.values, continuation) + self.value_shift


TREE = Graph("c", [node("good", 1, node("bad", 2, context="d"), node("fair", 4, context="d"))])


def prepared(algorithm: PPO, graph: Graph = TREE) -> list[PPOStep]:
    return algorithm.prepare(algorithm.precompute(algorithm.flatten(graph)))


# --- Examples -----------------------------------------------------------------------------------------------


def test_every_probe_knows_what_follows_it():
    a = node("a", 1, node("x", 3), node("y", 4, node("z", 5)))
    steps = PPO(None).flatten(Graph("c", [a, node("b", 2)]))
    assert [(step.probe, step.reward) for step in steps] == [("a", 1), ("b", 2), ("x", 3), ("y", 4), ("z", 5)]
    assert [[steps[index + offset].probe for offset in step.successors] for index, step in enumerate(steps)] == [
        ["x", "y"],
        [],
        [],
        ["z"],
        [],
    ]
    assert not any(step.successors for step in PPO(None, credit="immediate").flatten(Graph("c", [a])))


def test_a_probe_without_a_reward_is_no_example_and_follows_nobody():
    a = node("a", 1, node("x", None), node("y", 4))
    steps = PPO(None).flatten(Graph("c", [node("b", None), a]))
    assert [(step.probe, step.successors) for step in steps] == [("a", (1,)), ("y", ())]


# --- Advantages ---------------------------------------------------------------------------------------------


def test_turns_by_hand():
    """Values before the first tokens: good 1, bad 0.5, fair 2. Discount 0.5 and lambda 0.5.

    bad: 2 - 0.5 = 1.5. fair: 4 - 2 = 2. good: delta 1 + 0.5 * (0.5 + 2) / 2 - 1 = 0.625, and 0.25 * (1.5 + 2) / 2.
    Returns are advantages and values: 2.0625, 2 and 4; all tokens of a turn have the same.
    """
    algorithm = PPO(ValueTable(), discount=0.5, gae_lambda=0.5, kl_coef=0, normalize_advantages=False)
    steps = prepared(algorithm)
    assert [step.advantages for step in steps] == [(1.0625,) * 3, (1.5,), (2.0,) * 2]
    assert [step.returns for step in steps] == [(2.0625,) * 3, (2.0,), (4.0,) * 2]
    assert [step.old_values for step in steps] == [(1.0, 2.0, 3.0), (0.5,), (2.0, -1.0)]


def test_tokens_by_hand():
    """Undiscounted, lambda 1: what is earned from a token on, less its value. A probe is rewarded at its last token.

    fair: 4 at both tokens, values 2 and -1. good: 1 + (2 + 4) / 2 = 4 at all tokens, values 1, 2 and 3.
    """
    algorithm = PPO(ValueTable(), actions="token", gae_lambda=1.0, kl_coef=0, normalize_advantages=False)
    steps = prepared(algorithm)
    assert [step.returns for step in steps] == [(4.0,) * 3, (2.0,), (4.0,) * 2]
    assert [step.advantages for step in steps] == [(3.0, 2.0, 1.0), (1.5,), (2.0, 5.0)]


@pytest.mark.parametrize("actions", ["turn", "token"])
def test_a_kl_in_the_reward_by_hand(actions):
    """k1 of fair: -2 + 1 = -1, and -1 + 1 = 0. With a coefficient of 0.5 its reward is 4.5 altogether.

    At its last token it is 4 - 0.5 * 0 = 4, and 4.5 from its first on.
    """
    algorithm = PPO(ValueTable(), actions=actions, gae_lambda=1.0, kl_coef=0.5, normalize_advantages=False)
    *_, fair = prepared(algorithm)
    assert fair.returns == ((4.5, 4.5) if actions == "turn" else (4.5, 4.0))


def test_normalised_advantages_have_mean_0_and_deviation_1_over_tokens():
    plain = prepared(PPO(ValueTable(), kl_coef=0, normalize_advantages=False))
    steps = prepared(PPO(ValueTable(), kl_coef=0))
    values = torch.tensor([value for step in steps for value in step.advantages])
    assert values.mean().item() == pytest.approx(0, abs=1e-6)
    assert values.std(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert [step.returns for step in steps] == [step.returns for step in plain]


def test_experiences_without_spread_give_no_gradient_to_the_policy():
    algorithm = PPO(ValueTable(), kl_coef=0)
    (step,) = prepared(algorithm, Graph("c", [node("bad", 3)]))
    assert step.advantages == (0.0,)


# --- The loss -----------------------------------------------------------------------------------------------


def test_the_value_loss_by_hand():
    """Old value 1, return 3, clip 0.5. At 2 the clipped value is 1.5: max(1, 2.25) / 2, and no gradient.

    At 0 it is 0.5: max(9, 6.25) / 2. At 1.25 nothing is clipped: 1.75^2 / 2.
    """
    values = torch.tensor([2.0, 0.0, 1.25], requires_grad=True)
    old, returns = torch.ones(3), torch.full((3,), 3.0)
    loss = value_loss(values, old, returns, 0.5)
    assert loss.tolist() == pytest.approx([1.125, 4.5, 1.53125])
    loss.sum().backward()
    assert values.grad.tolist() == pytest.approx([0, -3, -1.75])
    assert value_loss(values, old, returns, None).tolist() == pytest.approx([0.5, 4.5, 1.53125])


def test_a_step_by_hand():
    """The tester and its values have moved by 0.3 since: ratio e^0.3 = 1.35, clipped at 1.2 where A > 0."""
    algorithm = PPO(ValueTable(), value_coef=0.5, value_clip=0.2, kl_coef=0.1, kl_estimator="k2", kl_in="loss")
    steps = algorithm.precompute([PPOStep("c", name, 0.0) for name in ("good", "bad")])
    given = [((1.0, -1.0, 2.0), (2.0, 2.0, 2.0)), ((-2.0,), (0.0,))]
    steps = [
        PPOStep("c", step.probe, 0.0, step.old_logprobs, step.baseline_logprobs, (), step.old_values, *both)
        for step, both in zip(steps, given, strict=True)
    ]
    with torch.no_grad():
        algorithm.system.shift += 0.3
        algorithm.system.value_shift += 0.3
    loss, logs = algorithm.step(algorithm.collate_fn(steps))
    ratio = math.exp(0.3)
    policy = [-1.2, ratio, -2.4, 2 * ratio]
    # Values 1.3, 2.3, 3.3 and 0.8; clipped 1.2, 2.2, 3.2 and 0.7.
    value = [0.8**2 / 2, 0.3**2 / 2, 1.3**2 / 2, 0.8**2 / 2]
    kl = [0.3**2 / 2, 0.8**2 / 2, 1.8**2 / 2, 1.7**2 / 2]
    mean = [p + 0.5 * v + 0.1 * k for p, v, k in zip(policy, value, kl, strict=True)]
    assert loss.item() == pytest.approx(sum(mean) / 4, rel=1e-5)
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(
        {
            "ppo/policy_loss": sum(policy) / 4,
            "ppo/value_loss": sum(value) / 4,
            "ppo/value": (1.3 + 2.3 + 3.3 + 0.8) / 4,
            "ppo/return": 6 / 4,
            "ppo/entropy": (0.7 + 0.2 + 0.2 + 3.7) / 4,
            "ppo/clip_fraction": 2 / 4,
            "ppo/update_kl": ratio - 1 - 0.3,
            "ppo/kl": sum(kl) / 4,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("cap", [1.2, None])
def test_the_policys_loss_alone_is_weighted_by_how_it_was_sampled(cap):
    """Old less behaviour is 0.1, -0.2 and 1 of good, 0 of bad; e^1 is capped at 1.2. Nothing has moved since."""
    system = ValueTable()
    sampled = {"good": (-1.1, -0.3, -1.5), "bad": (-4.0,)}
    system.sampled_logprobs = lambda probe: [sampled[name] for name in probe]
    algorithm = PPO(system, value_coef=0.5, kl_coef=0, importance_cap=cap)
    given = [((1.0, -1.0, 2.0), (2.0, 2.0, 2.0)), ((-2.0,), (0.0,))]
    steps = algorithm.precompute([PPOStep("c", name, 0.0) for name in ("good", "bad")])
    steps = [replace(step, advantages=own[0], returns=own[1]) for step, own in zip(steps, given, strict=True)]
    loss, logs = algorithm.step(algorithm.collate_fn(steps))
    weights = [math.exp(0.1), math.exp(-0.2), 1.2, 1] if cap else [1, 1, 1, 1]
    policy = sum(-w * a for w, a in zip(weights, [1, -1, 2, -2], strict=True)) / 4
    value = ((1 - 2) ** 2 + 0 + (3 - 2) ** 2 + 0.5**2) / 2 / 4
    assert loss.item() == pytest.approx(policy + 0.5 * value, rel=1e-5)
    assert logs["ppo/policy_loss"].item() == pytest.approx(policy, rel=1e-5)
    assert logs["ppo/behaviour_gap"].item() == pytest.approx(1.3 / 4, rel=1e-5)
    assert logs["ppo/importance_ratio"].item() == pytest.approx((math.exp(0.1) + math.exp(-0.2) + math.e + 1) / 4)
    assert ("ppo/importance_weight" in logs) == (cap is not None)
    if cap:
        assert logs["ppo/importance_weight"].item() == pytest.approx(sum(weights) / 4, rel=1e-5)
        assert logs["ppo/importance_capped"].item() == 0.25


def test_the_loss_of_a_batch_is_the_mean_over_tokens():
    """What the trainer relies on to normalise over processes and accumulated batches."""
    algorithm = PPO(ValueTable())
    steps = prepared(algorithm)
    weights = [algorithm.weight(step) for step in steps]
    assert weights == [3, 1, 2]
    alone = [algorithm.step(algorithm.collate_fn([step]))[0].item() for step in steps]
    mean = sum(weight * loss for weight, loss in zip(weights, alone, strict=True)) / 6
    assert algorithm.step(algorithm.collate_fn(steps))[0].item() == pytest.approx(mean, rel=1e-5)


def test_updates_end_where_the_tester_has_moved_far_enough():
    assert not PPO(None).stop_early({"ppo/update_kl": 9.0})
    algorithm = PPO(None, target_kl=0.1)
    assert [algorithm.stop_early({"ppo/update_kl": value}) for value in (0.0, 0.1, 0.11)] == [False, False, True]


# --- With a model -------------------------------------------------------------------------------------------


def test_an_entropy_bonus_is_the_mean_entropy_of_the_distributions(tmp_path):
    """Its loss and gradient are those without it, less the coefficient times the entropy of whole distributions."""
    system = HFASTValueFunctionSystem("tiny", "tiny", scorer=object(), lora=None)
    states = [system.start(text) for text in ("a", "So I said")]
    probes = system.rollout_prompt_with_tester(states, seeds=[(0,), (1,)])
    graphs = [Graph(state, [Node(state, probe, probe, 1.0)]) for state, probe in zip(states, probes, strict=True)]
    results = {}
    for coef in (0.0, 0.5):
        algorithm = PPO(system, entropy_coef=coef)
        steps = [step for graph in graphs for step in algorithm.flatten(graph)]
        batch = algorithm.collate_fn(algorithm.prepare(algorithm.precompute(steps)))
        loss, logs = algorithm.step(batch)
        results[coef] = loss, torch.autograd.grad(loss, system.tester.lm_head.weight)[0], logs
    entropies = []
    for state, probe in zip(states, probes, strict=True):
        context = system.views.tester.own_turn(state, 32)
        logits = system.tester(input_ids=torch.tensor([[*context, *probe.sampled_ids]])).logits[
            0, len(context) - 1 : -1
        ]
        entropies.append(torch.distributions.Categorical(logits=logits).entropy())
    entropy = torch.cat(entropies).mean()
    (gradient,) = torch.autograd.grad(entropy, system.tester.lm_head.weight)
    assert results[0.5][2]["ppo/entropy"].item() == pytest.approx(entropy.item(), rel=1e-4)
    assert (results[0.0][0] - results[0.5][0]).item() == pytest.approx(0.5 * entropy.item(), rel=1e-4)
    torch.testing.assert_close(results[0.0][1] - results[0.5][1], 0.5 * gradient, atol=1e-5, rtol=1e-3)
    assert gradient.abs().max() > 0.01


def test_before_the_first_update_the_ratio_is_1(tmp_path):
    system = HFASTValueFunctionSystem("tiny", "tiny", scorer=object(), lora=None)
    state = system.start("So I said")
    (probe,) = system.rollout_prompt_with_tester([state], seeds=[(0,)])
    steps = prepared(PPO(system), Graph(state, [Node(state, probe, probe, 1.0)]))
    assert len(steps[0].old_logprobs) == len(probe.sampled_ids) > 1
    _, logs = PPO(system).step(PPO.collate_fn(steps))
    assert logs["ppo/update_kl"].item() == pytest.approx(0, abs=1e-6)
    assert logs["ppo/clip_fraction"].item() == 0


# --- Options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0}, "clip is 0, expected more than 0"),
        ({"value_clip": 0}, "value_clip is 0, expected more than 0"),
        ({"value_coef": 0}, "value_coef is 0, expected more than 0"),
        ({"target_kl": -1}, "target_kl is -1, expected more than 0"),
        ({"entropy_coef": -0.1}, "entropy_coef is -0.1, expected at least 0"),
        ({"gae_lambda": 1.1}, "gae_lambda is 1.1, expected from 0 to 1"),
        ({"actions": "word"}, "actions is 'word', expected one of turn, token"),
        ({"kl_in": "loss"}, "kl_estimator is 'k1' in the loss, where its gradient is 0 on average"),
        ({"credit": "median"}, "credit is 'median', expected one of"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        PPO(None, **options)


def test_values_are_needed():
    sampler = SimpleNamespace(system=HFASTSystem.__new__(HFASTSystem))
    with pytest.raises(ValueError, match="PPO needs a tester with a value head, but HFASTSystem has no method `value`"):
        PPO(None).check_sampler(sampler)
    sampler.system = ValueTable()
    PPO(None).check_sampler(sampler)
    with pytest.raises(ValueError, match=r"entropy_coef is 0\.1, but ValueTable gives no entropies"):
        PPO(None, entropy_coef=0.1).check_sampler(sampler)
    PPO(None).check_sampler(object())
