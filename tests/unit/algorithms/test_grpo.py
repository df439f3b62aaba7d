"""GRPO and RLOO: groups and advantages by hand, and losses and gradients of TRL's own trainers on the same numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator

from astra_accel.algorithms.grpo import GRPO, RLOO, GRPOStep, group_advantages, mean_of, ratio_of
from astra_accel.algorithms.policy import is_clipped
from astra_accel.core.sampler import Graph
from tests.helpers.accelerate_state import own_accelerate_state
from tests.helpers.table_system import TableSystem
from tests.helpers.trees import node

# --- Groups -------------------------------------------------------------------------------------------------


def test_siblings_are_a_group():
    graph = Graph("c", [node("a", 1, node("x", 3, context="ca"), node("y", 4, context="ca")), node("b", 2)])
    steps = GRPO(None).flatten(graph)
    assert [(step.context, step.probe, step.reward) for step in steps] == [
        ("c", "a", 1),
        ("c", "b", 2),
        ("ca", "x", 3),
        ("ca", "y", 4),
    ]
    a, b, x, y = (step.group for step in steps)
    assert a == b != x == y


def test_chains_of_one_prompt_are_grouped_turn_by_turn():
    """Two episodes of one prompt and one of another, of two turns each."""
    chains = [
        Graph("c", [node("a", 1, node("x", 3, context="ca"))]),
        Graph("c", [node("b", 2, node("y", 4, context="cb"))]),
        Graph("d", [node("a", 1, node("x", 3, context="da"), context="d")]),
    ]
    groups = [[step.group for step in GRPO(None).flatten(graph)] for graph in chains]
    assert groups[0] == groups[1]
    assert len({*groups[0], *groups[2]}) == 4


def test_a_probe_without_a_reward_is_no_example():
    assert [step.probe for step in GRPO(None).flatten(Graph("c", [node("a", None), node("b", 2)]))] == ["b"]


def test_credit_decides_what_a_probe_earned():
    graph = Graph("c", [node("a", 1, node("x", 3, context="ca"))])
    assert [step.reward for step in GRPO(None, credit="mean", discount=0.5).flatten(graph)] == [2.5, 3]


@pytest.mark.parametrize("algorithm_class", [GRPO, RLOO])
@pytest.mark.parametrize(
    ("min_spread", "kept"), [(None, "abxymn"), (0.0, "abmn"), (0.25, "abmn"), (1.0, "mn"), (2.0, "")]
)
def test_groups_whose_returns_are_near_are_left_out(algorithm_class, min_spread, kept):
    """Returns of 1 and 2, of 3 and 3, of 0 and 2: differences of 1, 0 and 2."""
    algorithm = algorithm_class(None, min_spread=min_spread)
    steps = [
        *algorithm.flatten(
            Graph("c", [node("a", 1, node("x", 3, context="ca"), node("y", 3, context="ca")), node("b", 2)])
        ),
        *algorithm.flatten(Graph("d", [node("m", 0, context="d"), node("n", 2, context="d")])),
    ]
    chosen = [step.probe for step, is_chosen in zip(steps, algorithm.choose(steps), strict=True) if is_chosen]
    assert sorted(chosen) == sorted(kept)


# --- Advantages ---------------------------------------------------------------------------------------------

RETURNS, GROUPS = [1.0, 5.0, 2.0, 3.0, 5.0, 7.0], ["a", "b", "a", "a", "b", "c"]


@pytest.mark.parametrize(
    ("scale", "spread"),
    # Of group a over n - 1: 1. Of all, whose mean is 23 / 6: squares sum to 113, so (113 - 6 * (23 / 6)^2) / 5.
    [("none", 1.0), ("group", 1.0 + 1e-4), ("batch", math.sqrt((113 - 529 / 6) / 5) + 1e-4)],
)
def test_advantages_by_hand(scale, spread):
    """Group a is 1 2 3 about 2; b is 5 5, and c a single probe: nothing to compare."""
    expected = [-1 / spread, 0, 0, 1 / spread, 0, 0]
    assert group_advantages(RETURNS, GROUPS, scale) == pytest.approx(expected)


def test_leaving_one_out_by_hand():
    """1 - (2 + 3) / 2 = -1.5, 2 - (1 + 3) / 2 = 0, 3 - (1 + 2) / 2 = 1.5."""
    assert group_advantages(RETURNS, GROUPS, "none", leave_one_out=True) == pytest.approx([-1.5, 0, 0, 1.5, 0, 0])


def test_equal_returns_have_no_advantage_to_the_bit():
    """The mean of three times 0.1 is not 0.1."""
    for scale in ("group", "batch", "none"):
        assert group_advantages([0.1] * 3 + [0.7], ["a"] * 3 + ["b"], scale) == [0.0] * 4


def test_the_same_prompt_in_other_graphs_enlarges_the_group():
    graphs = [Graph("c", [node("a", reward)]) for reward in (1, 2, 3)]
    algorithm = GRPO(TableSystem(), scale="none")
    steps = algorithm.prepare([step for graph in graphs for step in algorithm.flatten(graph)])
    assert [step.advantage for step in steps] == [-1, 0, 1]


def test_a_kl_in_the_reward_by_hand():
    """k1 of good: -2 + 4 = 2, of bad: -4 + 2 = -2. Rewards 1 - 0.5 * 2 = 0 and 3 - 0.5 * -2 = 4, about 2."""
    algorithm = RLOO(TableSystem(), kl_coef=0.5)
    steps = algorithm.precompute(algorithm.flatten(Graph("c", [node("good", 1), node("bad", 3)])))
    assert [step.advantage for step in algorithm.prepare(steps)] == [-4, 4]


# --- The loss, by hand --------------------------------------------------------------------------------------


def batch_of(algorithm, advantages=(1.0, -2.0, 0.5), shift=0.0):
    """Probes of 3, 1 and 2 tokens; the tester has since moved by a shift in every log-prob."""
    names = ("good", "bad", "fair")
    steps = [GRPOStep("c", name, 0.0, advantage=value) for name, value in zip(names, advantages, strict=True)]
    steps = algorithm.precompute(steps)
    with torch.no_grad():
        algorithm.system.shift += shift
    return steps, algorithm.collate_fn(steps)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, -(1 - 2 + 0.5) / 3),
        ({"normalization": "token"}, -(3 * 1 - 2 + 2 * 0.5) / 6),
        ({"normalization": "constant", "length": 4}, -(3 * 1 - 2 + 2 * 0.5) / 4 / 3),
    ],
)
def test_normalisations_by_hand(options, expected):
    """Before anything moved each token's loss is minus its advantage."""
    algorithm = GRPO(TableSystem(), kl_coef=0, **options)
    assert algorithm.step(batch_of(algorithm)[1])[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("ratio", ["token", "sequence", "whole"])
def test_ratios_by_hand(ratio):
    """Every log-prob rose by 0.1: a token's and the mean's ratio is e^0.1, the whole probe's e^0.3, e^0.1, e^0.2."""
    algorithm = GRPO(TableSystem(), kl_coef=0, ratio=ratio, clip=1.0, clip_high=9.0)
    _, batch = batch_of(algorithm, shift=0.1)
    loss, _ = algorithm.step(batch)
    ratios = [math.exp(0.1 * (length if ratio == "whole" else 1)) for length in (3, 1, 2)]
    assert loss.item() == pytest.approx(-(ratios[0] - 2 * ratios[1] + 0.5 * ratios[2]) / 3, rel=1e-5)


def test_the_figures_of_a_step_by_hand():
    """With a shift of 0.3 the ratio is 1.35: clipped above 1.2 where the advantage is positive, 5 tokens of 6."""
    algorithm = GRPO(TableSystem(), normalization="token", kl_coef=0.5)
    _, batch = batch_of(algorithm, advantages=(1.0, -2.0, 0.0), shift=0.3)
    _, logs = algorithm.step(batch)
    d = [0.3, 0.8, 1.8, -1.7, -0.7, 0.3]  # log pi - log ref of each token
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(
        {
            "grpo/clip_fraction": 3 / 6,
            "grpo/entropy": (1 + 0.5 + 0.5 + 4 + 2 + 1) / 6 - 0.3,
            "grpo/no_advantage": 2 / 6,
            "grpo/kl": sum(math.exp(-x) - 1 + x for x in d) / 6,
        },
        rel=1e-5,
    )


@pytest.mark.parametrize("algorithm_class", [GRPO, RLOO])
def test_a_group_without_variance_gives_no_gradient(algorithm_class):
    algorithm = algorithm_class(TableSystem(), kl_coef=0)
    graph = Graph("c", [node("good", 0.3), node("bad", 0.3), node("fair", 0.3)])
    steps = algorithm.prepare(algorithm.precompute(algorithm.flatten(graph)))
    loss, _ = algorithm.step(algorithm.collate_fn(steps))
    loss.backward()
    assert algorithm.system.shift.grad.item() == 0


@pytest.mark.parametrize("normalization", ["sequence", "token", "constant"])
def test_the_loss_of_a_batch_is_the_weighted_mean_over_its_steps(normalization):
    """What the trainer relies on to normalise over processes and accumulated batches."""
    length = 4 if normalization == "constant" else None
    algorithm = GRPO(TableSystem(), normalization=normalization, length=length)
    steps, batch = batch_of(algorithm, shift=0.1)
    alone = [algorithm.step(algorithm.collate_fn([step]))[0].item() for step in steps]
    weights = [algorithm.weight(step) for step in steps]
    assert weights == ([3, 1, 2] if normalization == "token" else [1, 1, 1])
    mean = sum(weight * loss for weight, loss in zip(weights, alone, strict=True)) / sum(weights)
    assert algorithm.step(batch)[0].item() == pytest.approx(mean, rel=1e-6)


# --- The loss, against TRL ----------------------------------------------------------------------------------


def numbers() -> SimpleNamespace:
    """Three probes of 4, 1 and 3 tokens, far enough from their writer for some ratios to be clipped."""
    generator = torch.Generator().manual_seed(0)
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    old_BT, shift_BT, baseline_shift_BT = torch.randn(3, 3, 4, generator=generator)
    old_BT = (-old_BT.abs() - 0.1).masked_fill(~mask_BT, 0)
    return SimpleNamespace(
        mask=mask_BT,
        old=old_BT,
        logprobs=(old_BT + 0.15 * shift_BT).masked_fill(~mask_BT, 0),
        baseline=(old_BT + 0.5 * baseline_shift_BT).masked_fill(~mask_BT, 0),
        behaviour=(old_BT + 0.6 * torch.randn(3, 4, generator=generator)).masked_fill(~mask_BT, 0),
        advantages=torch.tensor([1.0, -0.7, 0.4]),
    )


class Numbers:
    """A system whose tester has the log-probs that it is given; a probe is the number of a row."""

    def __init__(self, given: SimpleNamespace) -> None:
        self.given = given
        self.logprobs = given.logprobs.clone().requires_grad_()

    def get_tester_logprobs(self, context, continuation):
        return self.logprobs[list(continuation)]


def our_loss_and_gradient(algorithm_class, sampled=False, given=None, **options) -> tuple[torch.Tensor, torch.Tensor]:
    given = given or numbers()
    system = Numbers(given)
    algorithm = algorithm_class(system, **options)
    counts = given.mask.sum(-1).tolist()
    steps = [
        GRPOStep(
            "c",
            row,
            0.0,
            tuple(given.old[row, : counts[row]].tolist()),
            tuple(given.baseline[row, : counts[row]].tolist()) if algorithm.kl_coef else None,
            advantage=given.advantages[row].item(),
            behaviour_logprobs=tuple(given.behaviour[row, : counts[row]].tolist()) if sampled else None,
        )
        for row in range(3)
    ]
    loss, _ = algorithm.step(algorithm.collate_fn(steps))
    loss.backward()
    return loss.detach(), system.logprobs.grad


@pytest.fixture(scope="module")
def trainers(tmp_path_factory) -> Iterator[dict]:
    """TRL's trainers for one tiny model. Their losses are asked below, of our numbers in place of the model's."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    from astra_accel.models.loading.tiny import build_tiny

    with own_accelerate_state():
        model, tokenizer = build_tiny("llama")
        options = {
            "output_dir": str(tmp_path_factory.mktemp("trl")),
            "per_device_train_batch_size": 2,
            "num_generations": 2,
            "max_completion_length": 4,
            "beta": 0.0,
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
        }
        rest = {
            "reward_funcs": lambda completions, **_: [0.0] * len(completions),
            "train_dataset": Dataset.from_dict({"prompt": ["a", "b"]}),
            "processing_class": tokenizer,
        }
        yield {
            GRPO: GRPOTrainer(model, args=GRPOConfig(**options), **rest),
            RLOO: RLOOTrainer(model, args=RLOOConfig(**options), **rest),
        }


def trl_loss_and_gradient(trainer, **attributes) -> tuple[torch.Tensor, torch.Tensor]:
    given = numbers()
    logprobs = given.logprobs.clone().requires_grad_()
    for name, value in attributes.items():
        assert hasattr(trainer, name)
        setattr(trainer, name, value)
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None)
    trainer.current_gradient_accumulation_steps = 1
    ids = torch.zeros_like(given.mask, dtype=torch.long)
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": torch.ones_like(ids),
        "completion_ids": ids,
        "completion_mask": given.mask.long(),
        "advantages": given.advantages,
        "old_per_token_logps": given.old,
        "old_logps": given.old.sum(-1),
        "ref_per_token_logps": given.baseline,
        "num_items_in_batch": given.mask.sum().float(),
        # As TRL takes it from an engine's log-probs in its mode token_truncate, with a cap of 1.8.
        "importance_sampling_ratio": (given.old - given.behaviour).exp().clamp(max=1.8),
    }
    with own_accelerate_state():
        Accelerator(cpu=True)  # of which TRL's asks how many processes there are
        loss = trainer._compute_loss(trainer.model.train(), inputs)
    loss.backward()
    return loss.detach(), logprobs.grad


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("ours", "loss_type", "level"),
    [
        ({}, "grpo", "token"),
        ({"normalization": "token"}, "dapo", "token"),
        ({"normalization": "constant", "length": 4}, "dr_grpo", "token"),
        ({"ratio": "sequence"}, "grpo", "sequence"),
    ],
    ids=["grpo", "dapo", "dr_grpo", "gspo"],
)
@pytest.mark.parametrize(("kl_coef", "kl_weighted"), [(0.0, False), (0.3, False), (0.3, True)])
@pytest.mark.parametrize(("clip", "clip_high"), [(0.2, 0.2), (0.1, 0.28)])
def test_the_loss_is_that_of_trl(trainers, ours, loss_type, level, kl_coef, kl_weighted, clip, clip_high):
    kl = {"kl_coef": kl_coef, "kl_weighted": kl_weighted}
    loss, gradient = our_loss_and_gradient(GRPO, clip=clip, clip_high=clip_high, **kl, **ours)
    trainers[GRPO].args.use_bias_correction_kl = kl_weighted
    expected, expected_gradient = trl_loss_and_gradient(
        trainers[GRPO],
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=kl_coef,
        epsilon_low=clip,
        epsilon_high=clip_high,
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)
    assert gradient.abs().max() > 0.01


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    ("ours", "loss_type", "level"),
    [
        ({}, "grpo", "token"),
        ({"normalization": "token"}, "dapo", "token"),
        ({"normalization": "constant", "length": 4}, "dr_grpo", "token"),
        ({"ratio": "sequence"}, "grpo", "sequence"),
    ],
    ids=["grpo", "dapo", "dr_grpo", "gspo"],
)
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_the_importance_weighted_loss_is_that_of_trl(trainers, ours, loss_type, level, kl_coef, monkeypatch):
    """TRL weights so what an inference engine sampled; the KL is not weighted."""
    plain, _ = our_loss_and_gradient(GRPO, kl_coef=kl_coef, **ours)
    loss, gradient = our_loss_and_gradient(GRPO, sampled=True, kl_coef=kl_coef, importance_cap=1.8, **ours)
    trainer = trainers[GRPO]
    trainer.args.use_bias_correction_kl = False
    for name in ("use_vllm", "vllm_importance_sampling_correction"):
        monkeypatch.setattr(trainer, name, True)
    expected, expected_gradient = trl_loss_and_gradient(
        trainer,
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=kl_coef,
        epsilon_low=0.2,
        epsilon_high=0.2,
    )
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert abs(loss.item() - plain.item()) > 0.01
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)
    weights = (numbers().old - numbers().behaviour).exp()[numbers().mask]
    assert 0 < (weights > 1.8).sum() < len(weights) / 2


def test_the_importance_weighted_loss_of_rloo_by_hand():
    """Each token of a probe has the probe's clipped loss, weighted by its own old over behaviour, 1.8 at most."""
    given = numbers()
    loss, gradient = our_loss_and_gradient(RLOO, sampled=True, kl_coef=0, importance_cap=1.8)
    total, expected_gradient = 0.0, torch.zeros(3, 4)
    for row, advantage in enumerate(given.advantages.tolist()):
        count = int(given.mask[row].sum())
        ratio = math.exp((given.logprobs - given.old)[row].sum())
        weights = [min(math.exp(given.old[row, t] - given.behaviour[row, t]), 1.8) for t in range(count)]
        clipped = min(max(ratio, 0.8), 1.2)
        total += -min(ratio * advantage, clipped * advantage) * sum(weights) / count / 3
        if ratio * advantage <= clipped * advantage:
            expected_gradient[row, :count] = -ratio * advantage * sum(weights) / count / 3
    assert loss.item() == pytest.approx(total, abs=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)


def test_the_figures_of_the_policy_that_sampled_are_means_over_tokens():
    given = numbers()
    algorithm = GRPO(Numbers(given), normalization="token", importance_cap=1.8, kl_coef=0)
    counts = given.mask.sum(-1).tolist()
    rows = [[tuple(values[row, : counts[row]].tolist()) for row in range(3)] for values in (given.old, given.behaviour)]
    steps = [GRPOStep("c", row, 0.0, rows[0][row], behaviour_logprobs=rows[1][row], advantage=1.0) for row in range(3)]
    _, logs = algorithm.step(algorithm.collate_fn(steps))
    gaps = [old - sampled for each in zip(*rows, strict=True) for old, sampled in zip(*each, strict=True)]
    expected = {
        "grpo/behaviour_gap": sum(map(abs, gaps)) / 8,
        "grpo/importance_ratio": sum(map(math.exp, gaps)) / 8,
        "grpo/importance_weight": sum(min(math.exp(gap), 1.8) for gap in gaps) / 8,
        "grpo/importance_capped": sum(math.exp(gap) > 1.8 for gap in gaps) / 8,
    }
    assert {name: float(logs[name]) for name in expected} == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("algorithm_class", [GRPO, RLOO])
def test_where_sampling_and_training_agree_the_loss_is_to_the_bit_what_it_was(algorithm_class):
    for options in ({"kl_coef": 0}, {"kl_coef": 0.3, "kl_in": "loss", "kl_estimator": "k3"}):
        plain, plain_gradient = our_loss_and_gradient(algorithm_class, **options)
        agreeing = numbers()
        agreeing.behaviour = agreeing.old
        loss, gradient = our_loss_and_gradient(algorithm_class, sampled=True, given=agreeing, **options)
        assert torch.equal(loss, plain)
        assert torch.equal(gradient, plain_gradient)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("clip", "clip_high"), [(0.2, 0.2), (0.1, 0.5)])
def test_the_loss_of_rloo_is_that_of_trl(trainers, clip, clip_high):
    loss, gradient = our_loss_and_gradient(RLOO, clip=clip, clip_high=clip_high, kl_coef=0)
    expected, expected_gradient = trl_loss_and_gradient(trainers[RLOO], epsilon_low=clip, epsilon_high=clip_high)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-6, rtol=1e-5)
    assert gradient.abs().max() > 0.01


def test_some_of_the_numbers_are_clipped_and_some_are_not():
    """Or the comparisons above would say nothing about clips."""
    given = numbers()
    clipped = is_clipped(given.logprobs - given.old, given.advantages[:, None], 0.1, 0.28)[given.mask]
    assert 0 < clipped.sum() < len(clipped)


def test_padding_is_in_no_mean():
    """What stands in the places without a token, NaN too, touches neither loss nor gradient."""
    given = numbers()
    values = given.logprobs.masked_fill(~given.mask, math.nan).requires_grad_()
    for level in ("token", "sequence", "whole"):
        log_ratio = ratio_of(values - given.old, given.mask, level)
        for normalization, length in (("sequence", None), ("token", None), ("constant", 4)):
            mean = mean_of(log_ratio, given.mask, normalization, length)
            (gradient,) = torch.autograd.grad(mean, values, retain_graph=True)
            assert torch.isfinite(mean)
            assert torch.equal(gradient != 0, given.mask)


# --- Options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0}, "clip is 0, expected more than 0"),
        ({"clip": -0.1}, "clip is -0.1, expected more than 0"),
        ({"clip": 1.5}, "clip is 1.5, expected from 0 to 1"),
        ({"clip_high": 0.0}, "clip_high is 0.0, expected more than 0"),
        ({"kl_coef": -1}, "kl_coef is -1, expected at least 0"),
        ({"kl_estimator": "k4"}, "kl_estimator is 'k4', expected one of k1, k2, k3"),
        ({"kl_estimator": "k1"}, "kl_estimator is 'k1' in the loss, where its gradient is 0 on average"),
        ({"kl_weighted": True, "kl_in": "reward"}, "kl_weighted is set, but kl_in is 'reward'"),
        ({"kl_in": "advantage"}, "kl_in is 'advantage', expected one of loss, reward"),
        ({"scale": "std"}, "scale is 'std', expected one of group, batch, none"),
        ({"normalization": "dapo"}, "normalization is 'dapo', expected one of sequence, token, constant"),
        ({"ratio": "gspo"}, "ratio is 'gspo', expected one of token, sequence, whole"),
        ({"normalization": "constant"}, "length is None with normalization 'constant'; expected at least 1"),
        ({"length": 4}, "length is 4 with normalization 'sequence'"),
        ({"min_spread": -0.1}, "min_spread is -0.1, expected a number of at least 0"),
        ({"min_spread": math.nan}, "min_spread is nan, expected a number of at least 0"),
        ({"credit": "all"}, "credit is 'all', expected one of"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        GRPO(None, **options)


@pytest.mark.parametrize("algorithm_class", [GRPO, RLOO])
def test_a_group_of_one_is_refused(algorithm_class):
    algorithm = algorithm_class(None)
    name = algorithm_class.__name__
    with pytest.raises(ValueError, match=f"tree_width is 1 and episodes_per_prompt 1, but {name} compares probes"):
        algorithm.check_sampler(SimpleNamespace(tree_width=1))
    algorithm.check_sampler(SimpleNamespace(tree_width=1, episodes_per_prompt=2))
    algorithm.check_sampler(SimpleNamespace(tree_width=2))
    algorithm.check_sampler(object())
