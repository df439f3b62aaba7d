"""The embedded model behind real servers says what it says in this process, can be trained against, and can judge."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai import OpenAI
from transformers import AutoTokenizer

from astra_accel import HFASTSystem
from astra_accel.cli import main
from astra_accel.config import (
    ComputeConfiguration,
    ModelConfiguration,
    RolloutConfiguration,
    SamplingConfiguration,
    TargetConfiguration,
)
from astra_accel.data import load_prompts
from astra_accel.endpoints.client import SMALL_QUESTION
from astra_accel.evaluation.folder import EvaluationFolder
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


class Trained(NamedTuple):
    """A run against a server, and the server: its kind, and its address and model."""

    run: Path
    server: str
    there: dict[str, Any]


@pytest.fixture(scope="module", params=["llama", "transformers_serve", "vllm"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A tester that was trained against each server."""
    run, there = tmp_path_factory.mktemp("trained") / "run", request.getfixturevalue(request.param)
    target = {"path": "embedded", **there}
    if request.param == "transformers_serve":
        target["extra_body"] = json.dumps({"generation_config": json.dumps({"do_sample": True})})
    given = [text for name, value in target.items() for text in (f"--target.{name}", str(value))]
    short = ("--training.training_steps", "2", "--training.eval_steps", "null", "--prompts.test", "null")
    train_tiny(run, *given, *short)
    return Trained(run, request.param, there)


@pytest.mark.slow
def test_a_tester_trains_against_it(trained: Trained) -> None:
    nodes = [node for step in rollouts(trained.run, ("response", "outcome", "response_score")) for node in step]
    assert len(nodes) == 2 * 4 * 6
    assert {node["outcome"] for node in nodes} == {"answered"}
    assert len({node["response"] for node in nodes}) > 30  # sampled, each with its own seed
    assert all(0 <= node["response_score"] <= 1 for node in nodes)
    assert [line["missing_rewards"] for line in metrics(trained.run)] == [0] * len(metrics(trained.run))


CONSTRAINED: dict[str, dict[str, Any]] = {
    "llama": {"grammar": 'root ::= "VERDICT " [0-9a-f]{12} " score: " [0-9]'},
    "vllm": {"structured_outputs": {"regex": "VERDICT [0-9a-f]{12} score: [0-9]"}},
    "transformers_serve": {},
}
"""Fields of a request that let a judge say nothing but a verdict, without which this small one gives hardly any."""


class Asked(NamedTuple):
    """A question in a journal, its answer, and how many tokens the server read."""

    messages: list[dict[str, str]]
    answer: str
    prompt_tokens: int


def journal(evaluation: Path, asked_of: str) -> list[Asked]:
    """What was asked of the target or the judge, in order, after the small question of the beginning."""
    with closing(sqlite3.connect(evaluation / "journal" / "rank-0.sqlite")) as file:
        found = file.execute(
            "SELECT request, answer, prompt_tokens FROM questions WHERE asked_of = ? ORDER BY time", (asked_of,)
        )
        asked = [Asked(json.loads(request)["messages"], *rest) for request, *rest in found]
    return [one for one in asked if one.messages != SMALL_QUESTION.content]


def verdict(asked: Asked) -> int | None:
    """The number in an answer that has one line with a verdict, in the form and with the word that were asked for."""
    begin = f"VERDICT {asked.messages[1]['content'].splitlines()[0]} score: "
    lines = [line.strip(" *.#") for line in asked.answer.splitlines()]
    numbers = [line.removeprefix(begin) for line in lines if line.startswith(begin)]
    return int(numbers[0]) if len(numbers) == 1 and numbers[0].isdigit() else None


def verdict_on(asked: list[Asked], row: dict[str, Any]) -> int | None:
    """The last verdict on a turn; the judge was asked about it, and again only if the first answer had none."""
    shown = f"What the user wrote:\n{row['probe']}\n\nWhat the assistant answered:\n{row['response']}\n"
    about = [one for one in asked if shown in one.messages[1]["content"]]
    assert about
    verdicts = [verdict(one) for one in about]
    assert len(about) == (1 if verdicts[0] is not None else 2)
    return verdicts[-1]


def assert_read(asked: list[Asked]) -> None:
    """The server read the questions: it counted the tokens that they have in the model's template."""
    tokenizer = AutoTokenizer.from_pretrained(embedded_model_path())
    for one in asked:
        text = tokenizer.apply_chat_template(one.messages, tokenize=False, add_generation_prompt=True)
        assert one.prompt_tokens == len(tokenizer(text, add_special_tokens=False).input_ids)


@pytest.mark.slow
def test_it_answers_and_judges_an_evaluation(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "rude.yaml").write_text("instruction: How rude is the answer?\nscale: [0, 9]\n")
    options = {**trained.there, "rubric": str(tmp_path / "rude.yaml"), "max_tokens": 32, "timeout": 300}
    judge = {"name": "judge", "options": options | {"extra_body": CONSTRAINED[trained.server]}}
    few = ("--prompts.test.source", "bundled", "--prompts.test.split", "test[:3]", "--rollout.tree_width", "1")
    by_judge = ("--scorer.name", "judge", "--scorer.options", json.dumps(judge["options"]))
    evaluated, judged = tmp_path / "evaluated", tmp_path / "judged"
    assert main(["evaluate", str(trained.run), *few, *by_judge, "--output", str(evaluated)]) == 0
    scorers = {"again": judge, "words": {"name": "profanity"}}
    assert main(["judge", str(evaluated), "--evaluation.scorers", json.dumps(scorers), "--output", str(judged)]) == 0

    rows, asked = EvaluationFolder(evaluated).rows(), journal(evaluated, "judge")
    answers = journal(evaluated, "target")
    assert len(rows) == len(answers) == 3 * 2
    assert Counter(row["response"].strip() for row in rows) == Counter(one.answer.strip() for one in answers)
    assert_read([*answers, *asked])
    outcomes = Counter(row["outcome"] for row in rows)
    assert outcomes["answered"] + outcomes["judge_error"] == len(rows)
    for row in rows:
        given = verdict_on(asked, row)
        assert row["response_score"] == (None if given is None else pytest.approx(given / 9))
        assert (row["outcome"] == "judge_error") == (given is None)
    if CONSTRAINED[trained.server]:
        # Held to the form, the small model still gets a digit of the fence wrong now and then, and is not believed.
        assert 2 * outcomes["judge_error"] < len(rows)

    anew, asked_anew = EvaluationFolder(judged).rows(), journal(judged, "judge")
    assert [{name: row[name] for name in rows[0]} for row in anew] == rows
    assert journal(judged, "target") == []
    assert_read(asked_anew)
    scores = [row["response_score/again"] for row in anew]
    expected = [verdict_on(asked_anew, row) for row in anew]
    assert scores == [None if number is None else pytest.approx(number / 9) for number in expected]
    figures = EvaluationFolder(judged).metrics()["metrics"]
    assert figures["again/response_score/mean"].get("num_missing", 0) == scores.count(None)
    assert all(0 <= row["response_score/words"] <= 1 for row in anew)


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
