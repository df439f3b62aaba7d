"""DPO, IPO and hinge: pairs of hand-written trees, losses by hand, and the losses and gradients of TRL's trainer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from astra_accel.algorithms.dpo import DPO, IPO, DPOBatch, DPOStep, pair_loss
from astra_accel.config import ModelConfiguration, RolloutConfiguration, SamplingConfiguration
from astra_accel.core.sampler import Graph, Node
from astra_accel.core.scorer import Scorer
from astra_accel.methods.ast import HFASTSystem, Transcript
from astra_accel.models.loading.tiny import build_tiny, save_tiny
from tests.helpers.accelerate_state import own_accelerate_state
from tests.helpers.table_system import TableSystem
from tests.helpers.trees import node


def pairs(*nodes: Node, **options) -> list[tuple[str, str, str]]:
    steps = DPO(system=None, **options).flatten(Graph("c", nodes))
    assert all((step.baseline_pos, step.baseline_neg) == (None, None) for step in steps)
    return [(step.prefix, step.suffix_pos, step.suffix_neg) for step in steps]


# --- Pairs of a tree ----------------------------------------------------------------------------------------


def test_the_best_against_the_worst():
    assert pairs(node("a", 0.5), node("b", 2.0), node("c", -1.0), node("d", 1.0)) == [("c", "b", "c")]


def test_every_context_gives_a_pair():
    """The root's, then level by level::

    c ─┬─ a 1 ─┬─ aa 5
       │       └─ ab 6 ─┬─ aba 0
       │                └─ abb 1
       └─ b 2 ─┬─ ba 4
               └─ bb 3
    """
    ab = node("ab", 6, node("aba", 0, context="caab"), node("abb", 1, context="caab"), context="ca")
    a = node("a", 1, node("aa", 5, context="ca"), ab)
    b = node("b", 2, node("ba", 4, context="cb"), node("bb", 3, context="cb"))
    assert pairs(a, b) == [("c", "b", "a"), ("ca", "ab", "aa"), ("cb", "ba", "bb"), ("caab", "abb", "aba")]


def test_a_tie_prefers_nothing():
    assert pairs(node("a", 1.0), node("b", 1.0)) == []


def test_a_tie_at_the_top_is_none():
    assert pairs(node("a", 1.0), node("b", 1.0), node("c", 0.0)) == [("c", "a", "c")]


def test_a_probe_is_not_preferred_to_itself():
    """The same probe earned more in one response than in another."""
    assert pairs(node("a", 1.0), node("a", 0.0)) == []


def test_below_an_only_child_the_tree_goes_on():
    below = [node("x", 0, context="ca"), node("y", 1, context="ca")]
    assert pairs(node("a", 1.0, *below)) == [("ca", "y", "x")]


def test_below_a_tie_the_tree_goes_on():
    below = [node("x", 0, context="ca"), node("y", 1, context="ca")]
    assert pairs(node("a", 1.0, *below), node("b", 1.0)) == [("ca", "y", "x")]


def test_an_empty_tree():
    assert pairs() == []
    assert pairs(node("a", 1.0)) == []


def test_siblings_of_different_contexts_are_an_error():
    with pytest.raises(ValueError, match="siblings of a graph have different contexts: 'd' and 'c'"):
        pairs(node("a", 0.0), node("b", 1.0, context="d"))


def test_all_pairs():
    nodes = [node("a", 0.5), node("b", 2.0), node("c", -1.0)]
    assert pairs(*nodes, pairs="all") == [("c", "b", "a"), ("c", "b", "c"), ("c", "a", "c")]


def test_neighbours_in_the_order_of_rewards():
    nodes = [node("a", 0.5), node("b", 2.0), node("c", -1.0), node("d", 0.0)]
    assert pairs(*nodes, pairs="adjacent") == [("c", "b", "a"), ("c", "a", "d"), ("c", "d", "c")]


@pytest.mark.parametrize("which", ["all", "adjacent"])
def test_ties_and_identical_probes_never_pair(which):
    """b and d tie; both a's are the same probe. Of the neighbours (b d) (d a) (a a), one pair remains."""
    nodes = [node("a", 0.5), node("b", 2.0), node("a", -1.0), node("d", 2.0)]
    expected = {
        "all": [("c", "b", "a"), ("c", "b", "a"), ("c", "d", "a"), ("c", "d", "a")],
        "adjacent": [("c", "d", "a")],
    }
    assert pairs(*nodes, pairs=which) == expected[which]


@pytest.mark.parametrize("which", ["best_worst", "all", "adjacent"])
def test_a_margin_must_be_exceeded(which):
    nodes = [node("a", 1.5), node("b", 1.0)]
    assert pairs(*nodes, pairs=which, margin=0.5) == []
    assert pairs(*nodes, pairs=which, margin=0.4) == [("c", "a", "b")]


# --- The losses ---------------------------------------------------------------------------------------------


def test_the_loss_by_hand():
    """The first pair: (-1 + 2) - (-3 + 3) = 1 more nat for the chosen; the second: (-4 + 2) - (-3 + 4) = -3.

    With beta 0.5: -log sigmoid(0.5) = 0.474077 and -log sigmoid(-1.5) = 1.701413.
    """
    tester_pos, tester_neg = torch.tensor([-1.0, -4.0]), torch.tensor([-3.0, -3.0])
    baseline_pos, baseline_neg = torch.tensor([-2.0, -2.0]), torch.tensor([-3.0, -4.0])
    loss = pair_loss(tester_pos, tester_neg, baseline_pos, baseline_neg, beta=0.5)
    assert loss.tolist() == pytest.approx([0.474077, 1.701413], abs=1e-6)


def test_the_gradient_by_hand():
    """d loss / d (chosen log-prob) = -beta * sigmoid(-beta * margin), and the opposite for the rejected."""
    logprobs = torch.tensor([[-1.0], [-3.0], [-2.0], [-3.0]], requires_grad=True)
    pair_loss(*logprobs, beta=0.5).sum().backward()
    slope = 0.5 / (1 + math.exp(0.5))
    assert logprobs.grad.flatten().tolist() == pytest.approx([-slope, slope, slope, -slope], abs=1e-6)


def test_where_nothing_was_learned_the_loss_is_log_2():
    same = torch.tensor([-5.0]), torch.tensor([-9.0])
    assert pair_loss(*same, *same, beta=0.1).item() == pytest.approx(math.log(2))


def test_large_margins_stay_finite():
    margins = torch.tensor([1e4, -1e4], requires_grad=True)
    zeros = torch.zeros(2)
    loss = pair_loss(margins, zeros, zeros, zeros, beta=1.0)
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1e4]
    assert margins.grad.tolist() == [0.0, -1.0]


def test_label_smoothing_by_hand():
    """Margins 1 and -3 as above, beta 0.5, a tenth of the preferences wrong.

    -log sigmoid(0.5) = 0.474077, -log sigmoid(-0.5) = 0.974077; -log sigmoid(-1.5) = 1.701413, -log sigmoid(1.5) =
    0.201413. So 0.9 * 0.474077 + 0.1 * 0.974077 = 0.524077, and 0.9 * 1.701413 + 0.1 * 0.201413 = 1.551413.
    """
    margins, zeros = torch.tensor([1.0, -3.0], requires_grad=True), torch.zeros(2)
    loss = pair_loss(margins, zeros, zeros, zeros, beta=0.5, label_smoothing=0.1)
    assert loss.tolist() == pytest.approx([0.524077, 1.551413], abs=1e-6)
    loss.sum().backward()
    # beta * (e * sigmoid(beta h) - (1 - e) * sigmoid(-beta h))
    by_hand = [0.5 * (0.1 * 0.622459 - 0.9 * 0.377541), 0.5 * (0.1 * 0.182426 - 0.9 * 0.817574)]
    assert margins.grad.tolist() == pytest.approx(by_hand, abs=1e-6)


def test_ipo_by_hand():
    """The margin is drawn to 1 / (2 * 0.5) = 1: (1 - 1)^2 and (-3 - 1)^2, with slopes 2 * 0 and 2 * -4."""
    margins, zeros = torch.tensor([1.0, -3.0], requires_grad=True), torch.zeros(2)
    loss = pair_loss(margins, zeros, zeros, zeros, beta=0.5, loss="ipo")
    assert loss.tolist() == [0.0, 16.0]
    loss.sum().backward()
    assert margins.grad.tolist() == [0.0, -8.0]


def test_hinge_by_hand():
    """1 - 0.5 * 1, 1 - 0.5 * -3, and nothing beyond a margin of 1 / beta = 2."""
    margins, zeros = torch.tensor([1.0, -3.0, 2.5], requires_grad=True), torch.zeros(3)
    loss = pair_loss(margins, zeros, zeros, zeros, beta=0.5, loss="hinge")
    assert loss.tolist() == [0.5, 2.5, 0.0]
    loss.sum().backward()
    assert margins.grad.tolist() == [-0.5, -0.5, 0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0}, "beta is 0, expected more than 0"),
        ({"beta": -1}, "beta is -1, expected more than 0"),
        ({"beta": float("nan")}, "beta is nan, expected more than 0"),
        ({"loss": "kto"}, "loss is 'kto', expected one of sigmoid, hinge, ipo, ctb"),
        ({"pairs": "some"}, "pairs is 'some', expected one of best_worst, all, adjacent"),
        ({"margin": -0.1}, "margin is -0.1, expected at least 0"),
        ({"label_smoothing": 0.5}, "label_smoothing is 0.5, expected at least 0 and less than 0.5"),
        ({"label_smoothing": 0.1, "loss": "hinge"}, "label_smoothing is 0.1, but loss 'hinge' has none"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DPO(None, **options)


# --- A step -------------------------------------------------------------------------------------------------


STEPS = [DPOStep("c", "good", "bad"), DPOStep("d", "fair", "good")]


def test_a_batch_holds_the_fields_of_its_steps():
    batch = DPO.collate_fn(STEPS)
    assert batch == DPOBatch(["c", "d"], ["good", "fair"], ["bad", "good"], None, None)
    known = DPO.collate_fn([DPOStep("c", "good", "bad", -4.0, -2.0)])
    assert (known.baseline_pos.tolist(), known.baseline_neg.tolist()) == ([-4.0], [-2.0])
    assert known.baseline_pos.dtype == torch.float32


def test_a_step_by_hand():
    """Sums over tokens: tester good -2, bad -4, fair -3; baseline good -4, bad -2, fair -2.

    Log-ratios: good 2, bad -2, fair -1. Margins: good over bad 4, fair over good -3. beta is 0.5.
    """
    system = TableSystem()
    loss, logs = DPO(system, beta=0.5).step(DPO.collate_fn(STEPS))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.exp(1.5))) / 2, abs=1e-6)
    assert {name: float(value) for name, value in logs.items()} == pytest.approx(
        {
            "dpo/chosen_reward": 0.5 * (2 - 1) / 2,
            "dpo/rejected_reward": 0.5 * (-2 + 2) / 2,
            "dpo/reward_margin": 0.5 * (4 - 3) / 2,
            "dpo/reward_accuracy": 0.5,
            "dpo/chosen_logprob": (-2 - 3) / 2,
            "dpo/rejected_logprob": (-4 - 2) / 2,
        }
    )
    assert loss.requires_grad
    assert not any(value.requires_grad for value in logs.values())


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_a_replay_goes_by_the_chosen_probe(loss):
    """Good earned 2, with a response of 0.75: -1 -1 -2 under the baseline, a mean of -4/3; fair has -1."""
    algorithm = DPO(TableSystem(), loss=loss)
    nodes = [
        Node("c", "bad", "r", -1.0, info={"response_score": 0.5}),
        Node("c", "good", "r", 2.0, info={"response_score": 0.75}),
        Node("c", "fair", "r", 1.0),
    ]
    first, second = algorithm.precompute([*algorithm.flatten(Graph("c", nodes)), DPOStep("c", "fair", "bad")])
    entry = algorithm.replay_entry(first)
    assert entry == (2.0, ("good",), pytest.approx(-4 / 3), 0.75)
    assert second.fluency_pos == -1.0
    # What nobody said anything about is kept out.
    assert algorithm.replay_entry(second) is None


def test_a_step_of_ipo_compares_means_over_tokens():
    """Means: tester good -2/3, bad -4, fair -3/2; baseline good -4/3, bad -2, fair -1.

    Log-ratios: good 2/3, bad -2, fair -1/2. Margins: good over bad 8/3, fair over good -7/6; drawn to 1 / (2 * 0.25).
    """
    system = TableSystem()
    for steps in (STEPS, IPO(system).precompute(STEPS)):
        loss, logs = IPO(system, beta=0.25).step(DPO.collate_fn(steps))
        assert loss.item() == pytest.approx(((8 / 3 - 2) ** 2 + (-7 / 6 - 2) ** 2) / 2, abs=1e-6)
        assert float(logs["dpo/reward_margin"]) == pytest.approx(0.25 * (8 / 3 - 7 / 6) / 2, abs=1e-6)


def test_a_system_may_count_tokens():
    """The log-prob of a token that is certain is 0: bad has four tokens, the last of them certain, so -1 a token."""

    class Counting(TableSystem):
        def num_probe_tokens(self, probes):
            return [{"good": 3, "bad": 4, "fair": 2}[probe] for probe in probes]

        def rows(self, table, continuation):
            return torch.nn.functional.pad(super().rows(table, continuation), (0, 2))

    loss, _ = IPO(Counting(), beta=0.25).step(DPO.collate_fn(STEPS[:1]))
    assert loss.item() == pytest.approx((2 / 3 - (-4 + 2) / 4 - 2) ** 2, abs=1e-6)


def test_the_baseline_is_asked_once_an_experience():
    system = TableSystem()
    algorithm = DPO(system, beta=0.5)
    steps = algorithm.precompute(STEPS)
    assert [(step.baseline_pos, step.baseline_neg) for step in steps] == [(-4.0, -2.0), (-2.0, -4.0)]
    assert [(step.prefix, step.suffix_pos, step.suffix_neg) for step in steps] == [
        ("c", "good", "bad"),
        ("d", "fair", "good"),
    ]
    before = algorithm.step(algorithm.collate_fn(STEPS))[0]
    system.asked.clear()
    after = algorithm.step(algorithm.collate_fn(steps))[0]
    assert system.calls == ["tester"]
    assert torch.equal(before, after)
    assert algorithm.precompute([]) == []


def test_the_loss_of_a_batch_is_the_mean_over_its_steps():
    """What the trainer relies on to normalise over processes."""
    algorithm = DPO(TableSystem())
    alone = [algorithm.step(algorithm.collate_fn([step]))[0] for step in STEPS]
    assert algorithm.step(algorithm.collate_fn(STEPS))[0].item() == pytest.approx(sum(alone).item() / 2)
    assert [algorithm.weight(step) for step in STEPS] == [1.0, 1.0]


def test_tokens_are_those_of_both_probes_in_their_contexts():
    """Letters as tokens: ``wxa``, ``wxbc``, ``wxb`` and ``y`` have w, x, a, b, c and y, each once."""

    class Letters(TableSystem):
        def num_tokens(self, context, continuation):
            texts = [before + after for before, after in zip(context, continuation, strict=True)]
            return len({text[:end] for text in texts for end in range(1, len(text) + 1)})

    steps = [DPOStep("wx", "a", "bc"), DPOStep("wxb", "", ""), DPOStep("", "y", "")]
    assert DPO(Letters()).num_tokens(steps) == 6
    assert DPO(Letters()).num_tokens(steps[1:]) == 4
    assert DPO(TableSystem()).num_tokens(steps) is None


class WithWidth:
    def __init__(self, width: int) -> None:
        self.tree_width = width


def test_pairs_need_siblings():
    algorithm = DPO(None)
    for each in (algorithm, IPO(None)):
        name = type(each).__name__
        with pytest.raises(ValueError, match=f"tree_width is 1, but {name} compares siblings; expected at least 2"):
            each.check_sampler(WithWidth(1))
    algorithm.check_sampler(WithWidth(2))
    algorithm.check_sampler(object())


# --- With models, against TRL -------------------------------------------------------------------------------


class NoScorer(Scorer):
    def score(self, texts):
        raise AssertionError("training scores no text")


def make_system(folder: Path, lora=None) -> HFASTSystem:
    """A tester that is not its baseline, so that the reference counts."""
    tester, baseline = save_tiny(folder / "tester", "llama", seed=1), save_tiny(folder / "baseline", "llama", seed=2)
    sampling = SamplingConfiguration(max_new_tokens=8)
    rollout = RolloutConfiguration(tester=sampling, target=sampling)
    models = [ModelConfiguration(path=str(path)) for path in (tester, "tiny", baseline)]
    return HFASTSystem(*models, scorer=NoScorer(), lora=lora, rollout=rollout)


def make_steps(system: HFASTSystem) -> list[DPOStep]:
    """Contexts and probes of several lengths; ended, cut, one of the end alone, and one with pad tokens within."""
    ends = system.roles.tester.files.end_ids
    (end,) = ends
    sampled = [
        ((1, 2, 3, end), (4, 5, 6, 7, 8, 9, 10, 11)),
        ((end,), (12, 13)),
        ((257, 14, 257), (15, end)),
    ]
    prompts = ["a", "So I said", "Hm\n" * 20]
    return [
        DPOStep(system.start(prompt), *(system.views.probe(ids, ends) for ids in both))
        for prompt, both in zip(prompts, sampled, strict=True)
    ]


@pytest.fixture
def accelerate_state() -> Iterator[None]:
    """TRL's own, for the test."""
    with own_accelerate_state():
        yield


def trl_loss(
    folder: Path, beta: float, loss_type: str, examples: list[dict[str, list[int]]]
) -> tuple[torch.Tensor, PreTrainedModel]:
    """The loss that TRL's trainer computes of token ids, and its model with gradients.

    The trainer wants a data set to begin with; the batch is collated by its own collator, of our ids.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    model, tokenizer = build_tiny("llama", seed=1)
    arguments = DPOConfig(
        str(folder), beta=beta, loss_type=[loss_type], max_length=None, use_cpu=True, bf16=False, report_to=[], seed=0
    )
    trainer = DPOTrainer(
        model,
        build_tiny("llama", seed=2)[0],
        arguments,
        train_dataset=Dataset.from_dict({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}),
        processing_class=tokenizer,
    )
    loss = trainer.compute_loss(model, trainer.data_collator(examples))
    loss.backward()
    return loss.detach(), model


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_loss_and_gradients_are_those_of_trl(loss_type, tmp_path, accelerate_state):
    system = make_system(tmp_path)
    steps = make_steps(system)
    algorithm = DPO(system, beta=0.3, loss=loss_type)
    loss, _ = algorithm.step(algorithm.collate_fn(algorithm.precompute(steps)))
    loss.backward()
    bos = build_tiny("llama")[1].bos_token_id
    examples = [
        {
            "prompt_ids": [bos, *step.prefix.segments[0].tester_ids],
            "chosen_ids": list(step.suffix_pos.sampled_ids),
            "rejected_ids": list(step.suffix_neg.sampled_ids),
        }
        for step in steps
    ]
    expected, model = trl_loss(tmp_path / "trl", 0.3, loss_type, examples)
    assert expected.item() > 0.1
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    found = {name: parameter.grad for name, parameter in system.tester.named_parameters()}
    assert found.keys() == gradients.keys()
    assert max(gradient.abs().max() for gradient in gradients.values()) > 0.01
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_with_models_precomputed_and_not_are_the_same(tmp_path):
    system = make_system(tmp_path)
    algorithm = DPO(system)
    steps = make_steps(system)
    losses = []
    for given in (steps, algorithm.precompute(steps)):
        system.tester.zero_grad()
        loss, _ = algorithm.step(algorithm.collate_fn(given))
        loss.backward()
        losses.append((loss.item(), system.tester.lm_head.weight.grad.clone()))
    assert losses[0][0] == pytest.approx(losses[1][0], abs=1e-6)
    torch.testing.assert_close(losses[0][1], losses[1][1], rtol=1e-5, atol=1e-6)


def test_pairs_of_unequal_lengths_do_not_mix(tmp_path):
    system = make_system(tmp_path)
    algorithm = DPO(system)
    steps = make_steps(system)
    alone = [algorithm.step(algorithm.collate_fn([step]))[0].item() for step in steps]
    assert len({round(loss, 3) for loss in alone}) == len(steps)
    assert algorithm.step(algorithm.collate_fn(steps))[0].item() == pytest.approx(sum(alone) / len(alone), abs=1e-5)


def test_a_training_step_moves_the_tester_alone(tmp_path):
    """The frozen models get no gradient; one update of the tester lowers the loss and raises the chosen probe."""
    system = make_system(tmp_path)
    algorithm = DPO(system)
    batch = algorithm.collate_fn(make_steps(system))
    frozen = [*system.roles.target.model.parameters(), *system.roles.baseline.model.parameters()]
    optimizer = torch.optim.SGD(system.parameters(), lr=0.01)
    first, logs = algorithm.step(batch)
    first.backward()
    assert all(parameter.grad is not None for parameter in system.parameters())
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in frozen)
    optimizer.step()
    second, later = algorithm.step(batch)
    assert second < first
    assert later["dpo/reward_margin"] > logs["dpo/reward_margin"]


def test_steps_of_a_rolled_out_tree(tmp_path):
    """From transcripts to a finite loss, without a scorer: rewards are set by hand."""
    system = make_system(tmp_path)
    start = system.start("So I said")
    probes = system.rollout_prompt_with_tester([start, start], seeds=[(0,), (1,)])
    nodes = [Node(start, probe, probe, reward) for reward, probe in enumerate(probes)]
    (step,) = DPO(system).flatten(Graph(start, nodes))
    assert (step.suffix_pos, step.suffix_neg) == (probes[1], probes[0])
    assert isinstance(step.prefix, Transcript)
    loss, _ = DPO(system).step(DPO.collate_fn([step]))
    assert torch.isfinite(loss)
