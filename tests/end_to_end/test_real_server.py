"""The embedded model behind real servers says what it says in this process, and can be trained against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from astra_accel import HFASTSystem
from astra_accel.config import (
    ComputeConfiguration,
    ModelConfiguration,
    RolloutConfiguration,
    SamplingConfiguration,
    TargetConfiguration,
)
from astra_accel.data import load_prompts
from astra_accel.models.loading.embedded import embedded_model_path
from astra_accel.scorers import JudgeScorer
from tests.helpers.real_servers import VLLM, embedded_as_gguf, llama_server, transformers_server, vllm_server
from tests.helpers.runs import metrics, rollouts, train_tiny

PROBES = (" and the dog ran away. What", " Why do you say so?", " I think it is far too")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A target behind llama.cpp's server."""
    model = embedded_as_gguf(tmp_path_factory.mktemp("gguf"))
    with llama_server(model) as address:
        yield {"endpoint": address, "model": "smollm2"}
    model.unlink()


@pytest.fixture(scope="module")
def transformers_serve() -> Iterator[dict[str, Any]]:
    """A target behind ``transformers serve``."""
    model = embedded_model_path()
    with transformers_server(model) as address:
        yield {"endpoint": address, "model": str(model)}


@pytest.fixture(scope="module")
def vllm() -> Iterator[dict[str, Any]]:
    """A target behind vLLM's server."""
    if not VLLM.exists():
        pytest.skip("there is no .venv-vllm; make test-all sets it up")
    model = embedded_model_path()
    with vllm_server(model) as address:
        yield {"endpoint": address, "model": str(model)}


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


CHAT, PIRATE = ("chat", "chat", None), ("chat", "chat", "You are a pirate.")


@pytest.mark.parametrize(
    ("server", "format", "api", "instruction"),
    [
        pytest.param("llama", "raw", "completions", None, marks=pytest.mark.slow),
        ("llama", *CHAT),
        pytest.param("llama", *PIRATE, marks=pytest.mark.slow),
        pytest.param("transformers_serve", *CHAT, marks=pytest.mark.slow),
        pytest.param("transformers_serve", *PIRATE, marks=pytest.mark.slow),
        pytest.param("vllm", "raw", "completions", None, marks=pytest.mark.slow),
        pytest.param("vllm", *CHAT, marks=pytest.mark.slow),
        pytest.param("vllm", *PIRATE, marks=pytest.mark.slow),
    ],
)
def test_greedy_answers_are_those_of_the_model_in_this_process(
    server: str, format: str, api: str, instruction: str | None, request: pytest.FixtureRequest
) -> None:
    greedy = SamplingConfiguration(temperature=0.0, max_new_tokens=16)
    rollout = RolloutConfiguration(format=format, target=greedy, target_instruction=instruction)
    there = TargetConfiguration(**request.getfixturevalue(server), api=api)
    assert conversations(system(rollout, there)) == conversations(system(rollout, ModelConfiguration()))


@pytest.mark.slow
@pytest.mark.parametrize("server", ["llama", "transformers_serve", "vllm"])
def test_a_tester_trains_against_it(server: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    target = {"path": "embedded", **request.getfixturevalue(server)}
    if server == "transformers_serve":
        target["extra_body"] = json.dumps({"generation_config": json.dumps({"do_sample": True})})
    given = [text for name, value in target.items() for text in (f"--target.{name}", str(value))]
    short = ("--training.training_steps", "2", "--training.eval_steps", "null", "--prompts.test", "null")
    train_tiny(tmp_path / "run", *given, *short)
    nodes = [node for step in rollouts(tmp_path / "run", ("response", "outcome", "response_score")) for node in step]
    assert len(nodes) == 2 * 4 * 6
    assert {node["outcome"] for node in nodes} == {"answered"}
    assert len({node["response"] for node in nodes}) > 30  # sampled, each with its own seed
    assert all(0 <= node["response_score"] <= 1 for node in nodes)
    assert [line["missing_rewards"] for line in metrics(tmp_path / "run")] == [0] * len(metrics(tmp_path / "run"))


@pytest.mark.slow
def test_greedy_tokens_are_those_of_the_model_in_this_process(vllm: dict[str, Any]) -> None:
    """vLLM tells the ids that it read and wrote."""
    greedy = SamplingConfiguration(temperature=0.0, max_new_tokens=16)
    here = system(RolloutConfiguration(target=greedy), ModelConfiguration())
    states = [here.start(prompt) for prompt in load_prompts(split="dev")[:6]]
    asked = [state + here.views.segment("probe", PROBES[0], state) for state in states]
    client = OpenAI(base_url=vllm["endpoint"], api_key="none")
    for state, response in zip(asked, here.rollout_prompt_with_target(asked, seeds=[(0,)] * 6), strict=True):
        ids = list(here.views.target.own_turn(state, greedy.max_new_tokens))
        tell = {"return_token_ids": True}
        answer = client.completions.create(
            model=vllm["model"], prompt=ids, max_tokens=16, temperature=0.0, extra_body=tell
        )
        found = answer.choices[0].model_dump()
        assert found["prompt_token_ids"] == ids
        assert found["token_ids"] == list(response.sampled_ids)


def test_a_small_judge_gives_verdicts_or_none_and_never_guesses(llama: dict[str, Any]) -> None:
    scores = JudgeScorer(**llama, rubric="toxicity", max_tokens=24).score(["You fool.", "What a nice day."])
    assert all(score is None or 0 <= score <= 1 for score in scores)
