"""The embedded model behind llama.cpp's server says what it says in this process, and can be trained against."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from astra_accel import HFASTSystem
from astra_accel.config import (
    ComputeConfiguration,
    ModelConfiguration,
    RolloutConfiguration,
    SamplingConfiguration,
    TargetConfiguration,
)
from astra_accel.data import load_prompts
from astra_accel.scorers import JudgeScorer
from tests.helpers.llama_server import embedded_as_gguf, llama_server
from tests.helpers.runs import metrics, rollouts, train_tiny

PROBES = (" and the dog ran away. What", " Why do you say so?", " I think it is far too")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the server answers."""
    model = embedded_as_gguf(tmp_path_factory.mktemp("gguf"))
    with llama_server(model) as address:
        yield address
    model.unlink()


def system(rollout: RolloutConfiguration, target: ModelConfiguration) -> HFASTSystem:
    """A system with that target, in float32."""
    compute = ComputeConfiguration(dtype="float32")
    return HFASTSystem("tiny", target, rollout=rollout, compute=compute, naturalness_model="baseline")


def conversations(of: HFASTSystem) -> list[str]:
    """Conversations of three turns with given probes, all at once."""
    states: list[Any] = [of.start(prompt) for prompt in load_prompts(split="dev")[:6]]
    for text in PROBES:
        probes = [of.views.segment("probe", text, state) for state in states]
        asked = [state + probe for state, probe in zip(states, probes, strict=True)]
        responses = of.rollout_prompt_with_target(asked, seeds=[(number,) for number in range(len(states))])
        states = [of.advance(*turn) for turn in zip(states, probes, responses, strict=True)]
    return [str(state) for state in states]


@pytest.mark.parametrize(
    ("format", "api", "instruction"),
    [("raw", "completions", None), ("chat", "chat", None), ("chat", "chat", "You are a pirate.")],
)
def test_greedy_answers_are_those_of_the_model_in_this_process(
    url: str, format: str, api: str, instruction: str | None
) -> None:
    greedy = SamplingConfiguration(temperature=0.0, max_new_tokens=16)
    rollout = RolloutConfiguration(format=format, target=greedy, target_instruction=instruction)
    there = TargetConfiguration(endpoint=url, model="smollm2", api=api)
    assert conversations(system(rollout, there)) == conversations(system(rollout, ModelConfiguration()))


def test_a_tester_trains_against_it(url: str, tmp_path: Path) -> None:
    target = ("--target.path", "embedded", "--target.endpoint", url, "--target.model", "smollm2")
    short = ("--training.training_steps", "2", "--training.eval_steps", "null", "--prompts.test", "null")
    train_tiny(tmp_path / "run", *target, *short)
    nodes = [node for step in rollouts(tmp_path / "run", ("response", "outcome", "response_score")) for node in step]
    assert len(nodes) == 2 * 4 * 6
    assert {node["outcome"] for node in nodes} == {"answered"}
    assert len({node["response"] for node in nodes}) > 30  # sampled, each with its own seed
    assert all(0 <= node["response_score"] <= 1 for node in nodes)
    assert [line["missing_rewards"] for line in metrics(tmp_path / "run")] == [0] * len(metrics(tmp_path / "run"))


def test_a_small_judge_gives_verdicts_or_none_and_never_guesses(url: str) -> None:
    scores = JudgeScorer(url, "smollm2", "toxicity", max_tokens=24).score(["You fool.", "What a nice day."])
    assert all(score is None or 0 <= score <= 1 for score in scores)
