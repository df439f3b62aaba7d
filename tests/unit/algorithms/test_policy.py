"""What policy gradients share: the clipped loss and the KL estimates by hand, and what precompute adds."""

from __future__ import annotations

import math

import pytest
import torch

from astra_accel.algorithms.grpo import GRPO, GRPOStep
from astra_accel.algorithms.policy import clipped_loss, is_clipped, kl_estimate
from tests.helpers.table_system import TableSystem

# --- The clipped loss ---------------------------------------------------------------------------------------


def test_the_clipped_loss_by_hand():
    """Ratios 1.5, 0.5, 1.1 with clip 0.2; -min(r A, clip(r) A), and where it is clipped no gradient."""
    ratios, clip = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), {"clip_low": 0.2, "clip_high": 0.2}
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 2.0])
    log_ratio = ratios.log().requires_grad_()
    loss = clipped_loss(log_ratio, advantages, **clip)
    assert loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6, -2.2])
    loss.sum().backward()
    assert log_ratio.grad.tolist() == pytest.approx([0.0, 3.0, -1.0, 0.0, -2.2])
    assert is_clipped(log_ratio, advantages, **clip).tolist() == [1, 0, 0, 1, 0]


def test_each_side_has_a_bound_of_its_own():
    log_ratio, advantages = torch.tensor([1.25, 0.75]).log(), torch.tensor([1.0, -1.0])
    assert clipped_loss(log_ratio, advantages, 0.2, 0.28).tolist() == pytest.approx([-1.25, 0.8])
    assert clipped_loss(log_ratio, advantages, 0.3, 0.2).tolist() == pytest.approx([-1.2, 0.75])


def test_a_ratio_of_1_gives_the_policy_gradient():
    log_ratio = torch.zeros(2, requires_grad=True)
    clipped_loss(log_ratio, torch.tensor([3.0, -1.0]), 0.2, 0.2).sum().backward()
    assert log_ratio.grad.tolist() == [-3.0, 1.0]


def test_far_ratios_stay_finite():
    log_ratio = torch.tensor([1e4, -1e4, 1e4], requires_grad=True)
    loss = clipped_loss(log_ratio, torch.tensor([1.0, 1.0, -1.0]), 0.2, 0.2)
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(log_ratio.grad).all()


# --- The divergence -----------------------------------------------------------------------------------------


def test_the_estimates_by_hand():
    """d = log pi - log ref = 1 and -2: k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d."""
    logprobs, baseline = torch.tensor([-1.0, -4.0]), torch.tensor([-2.0, -2.0])
    assert kl_estimate(logprobs, baseline, "k1").tolist() == [1.0, -2.0]
    assert kl_estimate(logprobs, baseline, "k2").tolist() == [0.5, 2.0]
    by_hand = [math.exp(-1), math.exp(2) - 3]
    assert kl_estimate(logprobs, baseline, "k3").tolist() == pytest.approx(by_hand, rel=1e-6)


POLICY_LOGITS, BASELINE_LOGITS = torch.tensor([0.5, -1.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 0.3, -2.0])


def policy_and_gradient(value_of) -> tuple[float, torch.Tensor]:
    logits = POLICY_LOGITS.double().requires_grad_()
    value = value_of(logits.log_softmax(-1), BASELINE_LOGITS.double().log_softmax(-1))
    value.backward()
    return value.item(), logits.grad


@pytest.mark.parametrize(
    ("estimator", "unbiased", "gradient_of"),
    [
        ("k1", True, lambda policy, baseline: 0 * policy.sum()),
        ("k2", False, lambda policy, baseline: (policy.exp() * (policy - baseline)).sum()),
        ("k3", True, lambda policy, baseline: (baseline.exp() * (baseline - policy)).sum()),
    ],
)
def test_what_the_estimates_are_on_average(estimator, unbiased, gradient_of):
    """Over a distribution of four tokens summed in full, with the gradient of the estimate alone, as a loss has it."""
    kl, _ = policy_and_gradient(lambda policy, baseline: (policy.exp() * (policy - baseline)).sum())
    value, gradient = policy_and_gradient(
        lambda policy, baseline: (policy.exp().detach() * kl_estimate(policy, baseline, estimator)).sum()
    )
    _, expected = policy_and_gradient(gradient_of)
    assert (value == pytest.approx(kl)) is unbiased
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_times_the_ratio_their_gradient_is_that_of_the_divergence(estimator):
    kl, expected = policy_and_gradient(lambda policy, baseline: (policy.exp() * (policy - baseline)).sum())
    value, gradient = policy_and_gradient(
        lambda policy, baseline: (
            policy.exp().detach() * (policy - policy.detach()).exp() * kl_estimate(policy, baseline, estimator)
        ).sum()
    )
    assert value == pytest.approx(kl)
    torch.testing.assert_close(gradient, expected, atol=1e-9, rtol=1e-9)


# --- Log-probs of an experience -----------------------------------------------------------------------------

STEPS = [GRPOStep("c", name, 0.0) for name in ("good", "bad", "fair")]


def test_the_writer_and_the_baseline_are_asked_once_an_experience():
    system = TableSystem()
    steps = GRPO(system).precompute(STEPS)
    assert [step.old_logprobs for step in steps] == [(-1.0, -0.5, -0.5), (-4.0,), (-2.0, -1.0)]
    assert [step.baseline_logprobs for step in steps] == [(-1.0, -1.0, -2.0), (-2.0,), (-1.0, -1.0)]
    assert system.calls == ["tester", "baseline"]
    assert GRPO(system).precompute([]) == []


def test_without_a_kl_nobody_asks_the_baseline():
    system = TableSystem()
    steps = GRPO(system, kl_coef=0).precompute(STEPS)
    assert system.calls == ["tester"]
    assert GRPO.collate_fn(steps).baseline_BT is None


def test_a_batch_holds_its_tokens_and_no_padding():
    batch = GRPO.collate_fn(GRPO(TableSystem()).precompute(STEPS))
    assert batch.mask_BT.tolist() == [[True] * 3, [True, False, False], [True, True, False]]
    assert batch.old_BT.tolist() == [[-1.0, -0.5, -0.5], [-4.0, 0.0, 0.0], [-2.0, -1.0, 0.0]]
    assert (batch.contexts, batch.probes) == (["c"] * 3, ["good", "bad", "fair"])


def test_without_the_writers_log_probs_there_is_no_batch():
    with pytest.raises(ValueError, match="no log-probs of the tester that wrote it; call precompute"):
        GRPO.collate_fn(STEPS)


# --- The policy that sampled -----------------------------------------------------------------------------------


class Sampled(TableSystem):
    """Sampled in another precision: of good, the tokens were likelier by 0.1, as likely, and much less likely."""

    def __init__(self) -> None:
        super().__init__()
        self.sampled = {"good": [-0.9, -0.5, -3.5], "bad": [-4.2]}

    def sampled_logprobs(self, probe):
        return [self.sampled.get(name) for name in probe]


def test_how_a_probe_was_sampled_goes_with_it():
    """Of a probe that nobody sampled the batch has the writer's log-probs, under which its weight is 1."""
    steps = GRPO(Sampled(), kl_coef=0).precompute(STEPS)
    assert [step.behaviour_logprobs for step in steps] == [(-0.9, -0.5, -3.5), (-4.2,), None]
    batch = GRPO.collate_fn(steps)
    rows = [[-0.9, -0.5, -3.5], [-4.2, 0.0, 0.0], [-2.0, -1.0, 0.0]]
    assert batch.behaviour_BT.tolist() == [pytest.approx(row) for row in rows]
    assert GRPO.collate_fn(steps[2:]).behaviour_BT is None
    assert [step.behaviour_logprobs for step in GRPO(TableSystem(), kl_coef=0).precompute(STEPS)] == [None] * 3


def test_how_it_was_sampled_is_known_of_every_token_or_of_none():
    system = Sampled()
    system.num_probe_tokens = lambda probe: [len(system.tester[name]) for name in probe]
    GRPO(system, kl_coef=0).precompute(STEPS)
    system.sampled["good"] = [-0.9, -0.5]
    with pytest.raises(
        ValueError, match=r"sampled_logprobs gives 2 log-probs of the probe 'good', of which .* gives 3"
    ):
        GRPO(system, kl_coef=0).precompute(STEPS)


def test_a_last_token_that_is_certain_is_left_out_of_both():
    """It has the log-prob of padding, 0, and a system that counts no tokens can't tell."""
    system = Sampled()
    system.tester["bad"], system.sampled["bad"] = [-4.0, 0.0], [-4.2, -0.1]
    steps = GRPO(system, kl_coef=0).precompute(STEPS)
    assert (steps[1].old_logprobs, steps[1].behaviour_logprobs) == ((-4.0,), (-4.2,))


def weighed(cap: float | None) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    algorithm = GRPO(Sampled(), kl_coef=0, importance_cap=cap)
    batch = algorithm.collate_fn(algorithm.precompute(STEPS))
    loss = torch.ones(3, 3, requires_grad=True)
    weighted, figures = algorithm.weigh(loss, batch)
    weighted.sum().backward()
    return weighted.detach(), figures, loss.grad


def test_the_importance_weights_by_hand():
    """Old less behaviour: -0.1, 0 and 3 of good, 0.2 of bad. e^3 is capped, and places without a token weigh 1."""
    expected = torch.tensor([[math.exp(-0.1), 1, 2], [math.exp(0.2), 1, 1], [1, 1, 1]])
    weighted, figures, gradient = weighed(2.0)
    torch.testing.assert_close(weighted, expected)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(figures["behaviour_gap"], torch.tensor([[0.1, 0, 3], [0.2, 0, 0], [0, 0, 0]]))
    assert figures["importance_ratio"][0, 2].item() == pytest.approx(math.exp(3), rel=1e-5)
    torch.testing.assert_close(figures["importance_weight"], expected)
    assert figures["importance_capped"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_without_a_cap_nothing_is_weighted_but_the_gap_is_told():
    weighted, figures, _ = weighed(None)
    assert torch.equal(weighted, torch.ones(3, 3))
    assert set(figures) == {"behaviour_gap", "importance_ratio"}


@pytest.mark.parametrize("far", [1e3, -1e3])
def test_far_policies_have_finite_weights(far):
    system = Sampled()
    system.sampled["bad"] = [-4.0 - far]
    algorithm = GRPO(system, kl_coef=0)
    loss, logs = algorithm.step(algorithm.collate_fn(algorithm.precompute(STEPS)))
    assert torch.isfinite(torch.stack([loss.detach(), *logs.values()])).all()
    assert logs["grpo/importance_weight"] <= 2


@pytest.mark.parametrize("cap", [0.5, 0, -1, math.inf, math.nan])
def test_the_cap_is_checked(cap):
    with pytest.raises(ValueError, match=f"importance_cap is {cap}, expected at least 1, or None"):
        GRPO(None, importance_cap=cap)


def test_tokens_are_those_of_all_probes_in_their_contexts():
    """Letters as tokens: cgood, cbad and cfair share the c."""

    class Letters(TableSystem):
        def num_tokens(self, context, continuation):
            texts = [before + after for before, after in zip(context, continuation, strict=True)]
            return len({text[:end] for text in texts for end in range(1, len(text) + 1)})

    assert GRPO(Letters()).num_tokens(STEPS) == 1 + 4 + 3 + 4
    assert GRPO(TableSystem()).num_tokens(STEPS) is None


def test_a_kl_needs_a_baseline():
    class NoBaseline:
        get_tester_logprobs = TableSystem.get_tester_logprobs

    class Sampler:
        system, tree_width = NoBaseline(), 2

    with pytest.raises(ValueError, match=r"kl_coef is 0\.04, but NoBaseline has no baseline"):
        GRPO(None).check_sampler(Sampler())
    GRPO(None, kl_coef=0).check_sampler(Sampler())
