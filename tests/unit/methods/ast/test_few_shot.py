"""Examples before a context: who is shown them, when, and which."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from astra_accel import AccelTrainer
from astra_accel.algorithms import build_algorithm
from astra_accel.config import (
    FewShotConfiguration,
    LoRAConfiguration,
    RolloutConfiguration,
    SamplingConfiguration,
    TrainingConfiguration,
)
from astra_accel.core.sampler import Graph, walk
from astra_accel.errors import ConfigurationError
from astra_accel.experience.collect import Harness
from astra_accel.experience.off_policy import check_algorithm
from astra_accel.methods.ast import ASTSampler, HFASTSystem
from astra_accel.methods.ast.sampler import shown_before
from tests.unit.methods.ast.test_ast_sampler import Checksum, Drawing

PROMPTS = ["So I said", "Hm"]
EXAMPLES = FewShotConfiguration(examples=["one", " two ", "three"], number=2, steps=2)


class Listening(Drawing):
    """Remembers what each side was given; a probe says what it was given too."""

    def __init__(self) -> None:
        super().__init__(Checksum())
        self.tester_read: list[str] = []
        self.target_read: list[str] = []

    def rollout_prompt_with_tester(self, prompt):
        self.tester_read += prompt
        return [f"<{len(self.tester_read)}>" for _ in prompt]

    def rollout_prompt_with_target(self, prompt):
        self.target_read += prompt
        return ["()" for _ in prompt]


def listening(**options) -> tuple[Listening, ASTSampler]:
    system = Listening()
    return system, ASTSampler(system, PROMPTS, **{"tree_width": 2, "tree_depth": 2, "few_shot": EXAMPLES, **options})


def test_the_tester_reads_them_before_the_context_and_nobody_else_does():
    system, sampler = listening()
    graph = sampler.rollout(0)
    contexts = [node.context for _, node in walk(graph)]
    texts = {f"{one}\n\n{other}\n\n" for one in ("one", "two", "three") for other in ("one", "two", "three")}
    assert all(read.endswith(tuple(contexts)) for read in system.tester_read)
    shown = {read[: read.rindex("\n\n") + 2] for read in system.tester_read}
    assert shown <= texts - {"one\n\none\n\n", "two\n\ntwo\n\n", "three\n\nthree\n\n"}
    assert not any("\n\n" in read for read in [*system.target_read, *contexts])


def test_the_separator_follows_each_example():
    system, sampler = listening(few_shot=EXAMPLES.model_copy(update={"separator": " | "}))
    graph = sampler.rollout(0)
    contexts = [node.context for _, node in walk(graph)]

    texts = {f"{one} | {other} | " for one in ("one", "two", "three") for other in ("one", "two", "three")}
    assert {read[: read.rindex("| ") + 2] for read in system.tester_read} <= texts
    assert all(read.endswith(tuple(contexts)) for read in system.tester_read)


def test_they_are_shown_in_the_first_steps_of_training_alone():
    system, sampler = listening()

    def number_shown(roll_out) -> int:
        system.tester_read.clear()
        roll_out()
        return sum("\n\n" in read for read in system.tester_read)

    by_step = []
    for step in range(4):
        sampler.begin_experience(step)
        by_step.append((number_shown(lambda: sampler.rollout(0)), number_shown(lambda: sampler.eval_rollout("Hm"))))
    assert by_step == [(6, 0), (6, 0), (0, 0), (0, 0)]


def test_the_harness_tells_which_step_begins_also_when_a_run_goes_on():
    system, sampler = listening()
    harness = Harness(sampler, build_algorithm("mle", system), 2)
    seen = []
    for index in (5, 1, 2, 0):
        system.tester_read.clear()
        harness.collect(index)
        seen.append(any("\n\n" in read for read in system.tester_read))
    assert seen == [False, True, False, True]


def test_every_example_comes_as_often_and_follows_from_the_seed():
    texts = [shown_before(EXAMPLES, (seed, 0, 1)) for seed in range(600)]
    assert texts == [shown_before(EXAMPLES, (seed, 0, 1)) for seed in range(600)]
    # Six ordered pairs of three, 100 times each: 4 standard deviations are 37.
    counts = Counter(texts)
    assert len(counts) == 6
    assert all(abs(count - 100) < 37 for count in counts.values())


def make_system(format: str = "raw") -> HFASTSystem:
    sampling = SamplingConfiguration(top_k=8, max_new_tokens=5)
    rollout = RolloutConfiguration(format=format, tester=sampling, target=sampling)
    return HFASTSystem("tiny", "tiny", scorer=Checksum(), lora=LoRAConfiguration(r=4, alpha=8), rollout=rollout)


@pytest.mark.parametrize("format", ["raw", "chat"])
def test_models_write_what_they_would_after_a_prompt_that_begins_with_the_examples(format):
    """The same probes as from a conversation whose prompt has them; what is learned and asked is without."""
    system = make_system(format)
    sampler = ASTSampler(system, PROMPTS, tree_width=2, tree_depth=2, few_shot=EXAMPLES)
    graph: Graph = sampler.rollout(3)
    seeds = [(3, 0, child) for child in range(2)]
    prompt = str(graph.context)
    states = [system.start(shown_before(EXAMPLES, seed) + prompt) for seed in seeds]
    probes = system.rollout_prompt_with_tester(states, seeds=seeds)
    assert [node.probe for node in graph.children] == probes
    assert all(node.probe.sampled_logprobs is None for _, node in walk(graph))
    asked = [graph.context + probe for probe in probes]
    assert [node.response for node in graph.children] == system.rollout_prompt_with_target(asked, seeds=seeds)
    # The second turn: examples, prompt, probe, response.
    node, child = graph.children[0], graph.children[0].children[1]
    seed = (3, 0, 0, 1)
    longer = system.advance(states[0], node.probe, node.response)
    longer = replace(
        longer, segments=(*system.start(shown_before(EXAMPLES, seed) + prompt).segments, *longer.segments[1:])
    )
    assert child.probe == system.rollout_prompt_with_tester([longer], seeds=[seed])[0]


def test_examples_that_leave_no_room_are_told_before_anything_is_rolled_out():
    system = make_system()
    long = FewShotConfiguration(examples=["word " * 3000], number=1)
    with pytest.raises(
        ValueError, match=r"with the examples of rollout.few_shot before them, prompts, row 1 is too lon"
    ):
        ASTSampler(system, PROMPTS, few_shot=long)


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo"])
def test_who_learns_on_policy_refuses_them(name):
    rollout = RolloutConfiguration(few_shot=EXAMPLES)
    with pytest.raises(ConfigurationError, match=r"rollout.few_shot is set, but .* learns on-policy: .* \(dpo, ipo"):
        check_algorithm(build_algorithm(name, None), rollout, None)


@pytest.mark.parametrize("name", ["dpo", "ipo", "ctb", "tb", "mle"])
def test_who_learns_off_policy_takes_them(name):
    check_algorithm(build_algorithm(name, None), RolloutConfiguration(few_shot=EXAMPLES), None)


def test_an_algorithm_that_is_not_ours_is_on_policy_unless_it_says_otherwise(tmp_path):
    class Foreign:
        """By shape alone, as the trainer gets it."""

    _system, sampler = listening()
    with pytest.raises(ConfigurationError, match=r"rollout.few_shot is set, but Foreign learns on-policy"):
        AccelTrainer(TrainingConfiguration(output_dir=tmp_path / "run"), sampler, Foreign())


def test_a_system_that_can_put_nothing_before_a_context_is_told():
    class Bare:
        def rollout_prompt_with_tester(self, prompt): ...

    with pytest.raises(ValueError, match=r"few_shot is set, but Bare has no method preceded"):
        ASTSampler(Bare(), PROMPTS, few_shot=EXAMPLES)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"examples": ["a"], "number": 2}, "number is 2, but there are 1 examples"),
        ({"examples": ["a", " "], "number": 1}, "examples, number 2: found ' '"),
        ({"examples": []}, "number is 4, but there are 0 examples"),
        ({"examples": ["a"], "number": 0}, "number"),
        ({"examples": ["a"], "number": 1, "steps": 0}, "steps"),
    ],
)
def test_bad_values(values, message):
    with pytest.raises(ValueError, match=message):
        FewShotConfiguration(**values)
