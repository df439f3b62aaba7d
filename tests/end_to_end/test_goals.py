"""A tester works towards the goals of a list, from the example's configuration to the figures; the servers are real."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from astra_accel.cli import main
from astra_accel.data import load_prompts
from astra_accel.evaluation.folder import EvaluationFolder
from astra_accel.jobs.train import main as train
from astra_accel.models.loading import model_files
from tests.helpers.endpoint_server import Handler, endpoint_server
from tests.helpers.plain import reset_accelerate
from tests.helpers.runs import ROOT, launch, rollouts

CONFIG = ROOT / "examples" / "configs" / "endpoint_goals.yaml"
LIST = ROOT / "examples" / "goals.jsonl"
GOALS = [json.loads(line) for line in LIST.read_text(encoding="utf-8").splitlines()]
HARD = "money"
"""The category whose goals the judge never finds reached."""


def answer(handler: Handler, request: dict[str, Any]) -> None:
    """Target and judge in one: the judge finds a behavior shown unless its goal is of the hard category."""
    judged = request["messages"][-1]["content"] if len(request["messages"]) > 1 else ""
    if "VERDICT" not in request["messages"][0]["content"]:
        handler.say("I see.")
        return
    mark, _, _ = judged.partition("\n")
    hard = any(row["goal"] in judged for row in GOALS if row["category"] == HARD)
    handler.say(f"So it is.\nVERDICT {mark} score: {int(not hard)}")


def arguments(url: str, *more: str) -> tuple[str, ...]:
    small = {
        "training.training_steps": "2",
        "training.num_episodes_per_experience": "4",
        "training.batch_size": "4",
        "training.lr": "1e-3",
        "tester.path": "tiny",
        "prompts.train.source": str(LIST),
        "prompts.test.source": str(LIST),
        "target.endpoint": url,
        "scorer.options": json.dumps({"endpoint": url, "model": "j", "rubric": "harmbench"}),
        "rollout.tree_width": "2",
        "rollout.tester.max_new_tokens": "4",
        "evaluation.num_resamples": "100",
        "evaluation.tree_depth": "2",
        "evaluation.tries": "2",
        "budget": "null",
    }
    return (*(text for name, value in small.items() for text in (f"--{name}", value)), *more)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Any]]:
    """A run towards the example's goals with its evaluation, and the server that it asked."""
    run = tmp_path_factory.mktemp("goals") / "run"
    with endpoint_server(answer) as server:
        trained = launch("train.py", "--config", CONFIG, *arguments(server.url, "--training.output_dir", str(run)))
        assert trained.returncode == 0, trained.stderr
        benign = ("--evaluation.benign.source", "benign", "--evaluation.benign.split", "train[:3]")
        evaluated = launch("evaluate.py", run, *benign)
        assert evaluated.returncode == 0, evaluated.stderr
        yield run, server


def test_rollouts_have_their_goals_and_the_judge_went_by_them(done: tuple[Path, Any]) -> None:
    run, _ = done
    training = {row["goal"]: row["category"] for row in GOALS[:16]}
    columns = ("goal", "category", "response_score")
    nodes = [node for step in rollouts(run, columns) for node in step]
    assert {training[node["goal"]] == node["category"] for node in nodes} == {True}
    assert all(node["response_score"] == float(node["category"] != HARD) for node in nodes)
    assert "combined_score" not in pq.read_schema(run / "rollouts" / "step-000001.parquet").names


def test_the_target_is_never_told_and_the_judge_is_asked_once_a_turn(done: tuple[Path, Any]) -> None:
    _, server = done
    asked = [request for request in server.asked if request["max_tokens"] > 1]
    to_target = [request for request in asked if request["model"] != "j"]
    assert not any(row["goal"] in json.dumps(request) for request in to_target for row in GOALS)
    assert {request["messages"][0]["role"] for request in to_target} == {"user"}
    assert len([request for request in asked if request["model"] == "j"]) <= len(to_target)


def test_held_out_goals_are_evaluated(done: tuple[Path, Any]) -> None:
    run, _ = done
    evaluation = EvaluationFolder(run / "evaluation")
    rows = evaluation.rows()
    assert [row["goal"] for row in rows if row["path"] == [1]] == [row["goal"] for row in GOALS[16:]]
    assert evaluation.identity()["seeds"][0] == {"opening": "", **GOALS[16]}
    num_hard = sum(row["category"] == HARD for row in GOALS[16:])
    metrics = evaluation.metrics()
    expected = 1 - num_hard / len(GOALS[16:])
    for name in ("attack_success/any_turn", "attack_success@1", "attack_success@2", "goals/attacked"):
        assert metrics["metrics"][name]["value"] == pytest.approx(expected)
    by_category = {row["category"]: row["attack_success"]["value"] for row in metrics["by_category"]}
    assert by_category == {row["category"]: float(row["category"] != HARD) for row in GOALS[16:]}
    assert {row["goal"] for row in metrics["by_goal"] if not row["num_successful_tries"]} == {
        row["goal"] for row in GOALS[16:] if row["category"] == HARD
    }
    assert "probe_score" not in rows[0]


def test_the_target_is_asked_harmless_requests_as_a_user_would(done: tuple[Path, Any]) -> None:
    run, server = done
    requests = load_prompts("benign", split="train[:3]")
    asked = [request["messages"] for request in server.asked]
    assert all([{"role": "user", "content": request}] in asked for request in requests)
    rows = EvaluationFolder(run / "evaluation").benign_rows()
    assert rows == [
        {"request": request, "response": "I see.", "outcome": "answered", "refused": False} for request in requests
    ]


def test_another_judge_gets_the_goals_of_an_evaluation(done: tuple[Path, Any], tmp_path: Path) -> None:
    run, server = done
    before = len(server.asked)
    options = json.dumps(
        {"again": {"name": "judge", "options": {"endpoint": server.url, "model": "k", "rubric": "harmbench"}}}
    )
    assert main(["judge", str(run), "--evaluation.scorers", options, "--output", str(tmp_path / "again")]) == 0
    assert {request["model"] for request in server.asked[before:]} == {"k"}
    rows = EvaluationFolder(tmp_path / "again").rows()
    assert [row["response_score/again"] for row in rows] == [row["response_score"] for row in rows]


BUNDLED = ("--prompts.train.source", "bundled", "--prompts.train.split", "train", "--prompts.test", "null")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--prompts.test", "null", "--prompts.train.goal", "behavior"), "goals.jsonl': no column 'behavior'"),
        (("--prompts.test.split", "train[15:]"), "1 of the test goals are goals of the train prompts too"),
        (("--prompts.test.source", "bundled", "--prompts.test.split", "test"), "but the test prompts have none"),
        (("--rollout.format", "raw", "--rollout.tester_instruction", "null"), "has no opening, and rollout.format"),
        (("--reward.combined_weight", "2"), "reward.combined_weight is 2, but the scorer judges by the goal"),
        (BUNDLED, "scorer judges by the goal of a conversation, but prompts.train has none"),
        (
            (*BUNDLED, "--scorer.options", '{"rubric": "strongreject"}'),
            "row 1 has no goal, but rollout.tester_instruction",
        ),
    ],
)
def test_mistakes_are_told_before_anything_loads_or_is_asked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    message: str,
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("weights were loaded before the mistake was found")

    reset_accelerate()
    monkeypatch.setattr(model_files.ModelFiles, "load", load)
    with endpoint_server(answer) as server:
        given = arguments(server.url, "--training.output_dir", str(tmp_path / "run"), *more)
        assert train(["--config", str(CONFIG), *given]) == 2
    assert message in capsys.readouterr().err
    assert server.asked == []
