"""The reward, by hand: over strings, with a scorer and a target that do sums."""

from __future__ import annotations

import pytest
import torch

from astra_accel.core.sampler import Graph, Node
from astra_accel.core.scorer import ScorerError
from astra_accel.methods.ast.rewards.term import RewardTerm
from astra_accel.methods.ast.system import ASTProblem, ASTSystem
from astra_accel.models.logprobs import pad_logprobs


class ShareOfX:
    """The share of the letter x; it has ``score`` alone, as scorers that were written for the reference."""

    def __init__(self) -> None:
        self.texts: list[list[str]] = []

    def score(self, texts):
        self.texts.append(list(texts))
        return [text.count("x") / len(text) if text else 0.0 for text in texts]


class Exchanges(ShareOfX):
    """Judges a response by the length of the probe as well."""

    def score_exchanges(self, probes, responses):
        return [0.1 * len(probe) for probe in probes]


class Letters(ASTSystem[str, str]):
    """Strings, of which every letter is a token; to the target, letter number n has the log-prob -n."""

    def get_target_logprobs(self, context, continuation):
        return pad_logprobs([torch.tensor([96.0 - ord(letter) for letter in text]) for text in continuation])

    get_tester_logprobs = get_baseline_logprobs = get_target_logprobs

    def rollout_prompt_with_tester(self, prompt):
        return ["x" for _ in prompt]

    def rollout_prompt_with_target(self, prompt):
        return ["y" for _ in prompt]

    def parameters(self):
        return iter(())


def test_the_three_terms():
    """Probe ``abc`` of the log-probs -1, -2 and -3, mean -2; response ``xd``.

    Together ``abcxd`` has one x of 5, the response one of 2::

        2 * 0.2 + 0.5 * 0.5 + 0.0825 * -2 = 0.485
    """
    system = Letters(ShareOfX())
    (parts,) = system.reward_parts(["context"], ["abc"], ["xd"])
    assert parts == pytest.approx({"reward": 0.485, "combined_score": 0.2, "response_score": 0.5, "naturalness": -2.0})
    assert system.reward(["context"], ["abc"], ["xd"]) == [parts["reward"]]
    # The context is not judged.
    assert system.scorer.texts[:2] == [["abcxd"], ["xd"]]


def test_the_weights():
    system = Letters(ShareOfX(), ppl_weight=10.0, combined_weight=100.0, defense_toxicity_weight=1000.0)
    assert system.reward([""], ["abc"], ["xd"]) == pytest.approx([100 * 0.2 + 1000 * 0.5 - 10 * 2])


class Questions(RewardTerm):
    name = "questions"

    def values(self, turns):
        return [float("?" in text) for text in turns.probe_texts]


def test_a_term_of_ones_own_joins_the_others():
    """``abc`` and ``xd`` come to 0.485, as above. ``a?xd`` has one x of 4, and a question."""
    system = Letters(ShareOfX(), terms=[(0.25, Questions())])
    plain, asked = system.reward_parts([""] * 2, ["abc", "a?"], ["xd", "xd"])
    assert (plain["reward"], plain["questions"]) == (pytest.approx(0.485), 0.0)
    assert asked["questions"] == 1.0
    assert asked["reward"] == pytest.approx(2 * 0.25 + 0.5 * 0.5 + 0.0825 * asked["naturalness"] + 0.25)


def test_a_term_must_not_take_the_name_of_another():
    class Second(Questions):
        name = "naturalness"

    with pytest.raises(ValueError, match="two terms of the reward are called 'naturalness'"):
        Letters(ShareOfX(), terms=[(1.0, Second())])


class Heard(Questions):
    """Remembers what it was told."""

    name = "heard"

    def __init__(self) -> None:
        self.told = []

    def observe(self, probes, experience):
        self.told.append((experience, list(probes)))

    def state(self):
        return {"told": self.told}

    def load_state(self, state):
        self.told = state["told"]


def test_terms_that_remember_are_told_of_every_probe_and_brought_back():
    system = Letters(ShareOfX(), terms=[(1.0, Heard()), (1.0, Questions())])
    inner = Node("prompt a r", "b", "r", 0.0)
    graphs = [Graph("prompt", [Node("prompt", "a", "r", 0.0, [inner]), Node("prompt", "c", "r", None)]), Graph("q", [])]
    system.observe(graphs, 4)
    assert system.rollout_state() == {"heard": {"told": [(4, ["a", "c", "b"])]}}
    other = Letters(ShareOfX(), terms=[(1.0, Heard())])
    other.load_rollout_state(system.rollout_state() | {"gone": {"state": 1}})
    assert other.rollout_state() == system.rollout_state()
    assert Letters(ShareOfX()).rollout_state() == {}


def test_naturalness_under_the_baseline():
    class Frank(Letters):
        def get_baseline_logprobs(self, context, continuation):
            assert not torch.is_grad_enabled()
            return super().get_target_logprobs(context, continuation) / 4

    assert naturalness(Frank(ShareOfX(), naturalness_model="baseline"), ["abc", ""]) == [-0.5, -10.0]
    assert naturalness(Frank(ShareOfX()), ["abc", ""]) == [-2.0, -10.0]


def test_a_batch_is_what_its_rows_are():
    """Padding must not lengthen a probe: alone or beside a long one, ``b`` has the mean -2."""
    system = Letters(ShareOfX())
    probes, responses = ["b", "abcdefgh", "", "xx"], ["x", "", "xyz", "xxxx"]
    rows = [
        system.reward_parts([""], [probe], [response])[0] for probe, response in zip(probes, responses, strict=True)
    ]
    assert system.reward_parts([""] * 4, probes, responses) == rows
    assert [row["naturalness"] for row in rows] == [-2.0, -4.5, -10.0, -10.0]


def naturalness(system, probes):
    parts = system.reward_parts([""] * len(probes), probes, ["y"] * len(probes))
    return [row["naturalness"] for row in parts]


def test_naturalness_is_clipped():
    """The mean of x (24th) and b (2nd) is -13."""
    assert naturalness(Letters(ShareOfX()), ["xb"]) == [-10.0]
    assert naturalness(Letters(ShareOfX(), min_naturalness=-20.0), ["xb"]) == [-13.0]


def test_silence_does_not_pay():
    """An empty probe earns the least naturalness there is, less than any that was said."""
    system = Letters(ShareOfX(), min_naturalness=-7.5)
    assert naturalness(system, [""]) == [-7.5]
    (silent, spoken) = system.reward([""] * 2, ["", "a"], ["y", "y"])
    assert silent == pytest.approx(0.0825 * -7.5)
    assert silent < spoken


def test_a_scorer_of_exchanges_judges_the_response():
    (parts,) = Letters(Exchanges()).reward_parts([""], ["abc"], ["xd"])
    assert parts["response_score"] == pytest.approx(0.3)
    assert parts["combined_score"] == pytest.approx(0.2)


class Faulty(ShareOfX):
    def __init__(self, scores):
        self.scores = scores

    def score(self, texts):
        if isinstance(self.scores, Exception):
            raise self.scores
        return self.scores


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([0.5], "Faulty returned 1 scores for 2 texts"),
        ([0.5, float("nan")], "Faulty returned nan, expected a finite number, for the text 'bx'"),
        ([0.5, "high"], "Faulty returned 'high', expected a number, for 'bx'"),
        (None, "Faulty returned None for 2 texts, expected a list of one score a text"),
    ],
)
def test_what_is_no_score_is_an_error(scores, message):
    with pytest.raises(ScorerError, match=message):
        Letters(Faulty(scores)).reward(["", ""], ["a", "b"], ["x", "x"])


def test_a_turn_without_a_score_has_no_reward():
    """Not even that of its other terms; its neighbours have theirs."""

    class Refusing(ShareOfX):
        def score(self, texts):
            return [None if "z" in text else 0.0 for text in texts]

    parts = Letters(Refusing()).reward_parts([""] * 3, ["a", "z", "c"], ["x", "y", "z"])
    assert [row["reward"] for row in parts] == [pytest.approx(-0.0825), None, None]
    assert [row["combined_score"] for row in parts] == [0.0, None, None]
    assert [row["response_score"] for row in parts] == [0.0, 0.0, None]
    assert [row["naturalness"] for row in parts] == [-1.0, -10.0, -3.0]
    # A term that counts nothing may be missing.
    unweighted = Letters(Refusing(), combined_weight=0.0).reward([""] * 2, ["a", "z"], ["x", "y"])
    assert unweighted == pytest.approx([-0.0825, -0.825])


def test_a_response_that_is_judged_by_no_number_is_an_error():
    class Half(ShareOfX):
        def score_exchanges(self, probes, responses):
            return [float("inf")] * len(probes)

    with pytest.raises(ScorerError, match="Half returned inf, expected a finite number, for the text 'second'"):
        Letters(Half()).reward([""], ["first"], ["second"])


def test_an_error_of_the_scorer_is_not_swallowed():
    with pytest.raises(ConnectionError, match="504"):
        Letters(Faulty(ConnectionError("504"))).reward([""], ["a"], ["b"])


def test_the_target_is_asked_without_gradient():
    class Watching(Letters):
        def get_target_logprobs(self, context, continuation):
            assert not torch.is_grad_enabled()
            return super().get_target_logprobs(context, continuation)

    assert naturalness(Watching(ShareOfX()), ["a"]) == [-1.0]
    assert torch.is_grad_enabled()


def test_defaults():
    system = Letters()
    assert type(system.scorer).__name__ == "ProfanityScorer"
    assert system.reward_terms.weights == {"combined_score": 2.0, "response_score": 0.5, "naturalness": 0.0825}
    assert naturalness(system, [""]) == [-10.0]
    assert type(system) is Letters
    assert system.advance("a", "b", "c") == "abc"
    assert ASTProblem is ASTSystem
