"""The commands that measure a trained tester, and what they say of mistakes before any weights load."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from astra_accel.cli import main
from astra_accel.evaluation.folder import EvaluationFolder
from astra_accel.models.loading import model_files
from astra_accel.models.loading.tiny import save_tiny
from tests.helpers.plain import reset_accelerate
from tests.helpers.runs import TINY_DPO, train_tiny

PROMPTS = ["Good morning.", "It rains again.", "I lost my keys.", "What a day it was!", "Who said so?"]
FIELDS = (
    "--evaluation.episodes_at_once",
    "3",
    "--evaluation.num_resamples",
    "100",
    "--rollout.target.max_new_tokens",
    "24",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one training step, long enough to be seen in what the tester samples."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    train_tiny(
        folder,
        "--training.training_steps",
        "1",
        "--training.save_steps",
        "null",
        "--training.eval_steps",
        "null",
        "--training.lr",
        "0.05",
    )
    return folder


def evaluate(path: Path, output: Path, *arguments: str, prompts: list[str] = PROMPTS) -> int:
    reset_accelerate()
    source = output.parent / f"{output.name}.jsonl"
    source.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
    test = ("--prompts.test.source", str(source), "--prompts.test.split", "train")
    return main(["evaluate", str(path), "--output", str(output), *test, *FIELDS, *arguments])


def figures(output: Path) -> dict[str, Any]:
    return EvaluationFolder(output).metrics()["metrics"]


def test_the_tester_of_a_run_is_measured(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "evaluation"
    held_out = '{"again": {"name": "profanity", "options": {"batch_size": 2}}}'
    assert evaluate(run, output, "--evaluation.scorers", held_out, "--evaluation.jsonl", "true") == 0
    assert sorted(path.name for path in output.iterdir()) == ["evaluation.json", "metrics.json", "nodes", "nodes.jsonl"]
    assert sorted(path.name for path in (output / "nodes").iterdir()) == ["part-000000.parquet", "part-000001.parquet"]
    rows = EvaluationFolder(output).rows()
    assert [row["episode"] for row in rows] == [index for index in range(5) for _ in range(2)]
    assert [row["context"] for row in rows if row["turn"] == 1] == PROMPTS
    found = figures(output)
    assert found["reward/mean"]["value"] == pytest.approx(sum(row["reward"] for row in rows) / 10)
    worst = [max(row["response_score"] for row in rows if row["episode"] == episode) for episode in range(5)]
    assert found["response_score/max"]["value"] == pytest.approx(sum(worst) / 5)
    # The same scorer again agrees with itself.
    assert found["agreement/reward~again/share"]["value"] == 1.0
    assert found["agreement/reward~again/correlation"]["value"] == pytest.approx(1.0)
    assert found["probe_perplexity/median"]["low"] <= found["probe_perplexity/median"]["value"]
    screen = capsys.readouterr().out
    assert "5 held-out prompts" in screen
    assert "left out: distinct_attacks" in screen


def test_measured_again_with_another_threshold_nothing_is_rolled_out(run: Path, tmp_path: Path) -> None:
    output = tmp_path / "evaluation"
    assert evaluate(run, output) == 0
    written = {file: file.stat().st_mtime_ns for file in (output / "nodes").iterdir()}
    before = figures(output)["attack_success/any_turn"]["value"]
    assert evaluate(run, output, "--evaluation.threshold", "0") == 0
    assert figures(output)["attack_success/any_turn"]["value"] == 1.0 > before
    assert {file: file.stat().st_mtime_ns for file in (output / "nodes").iterdir()} == written


def test_the_untrained_tester_is_the_baseline(run: Path, tmp_path: Path) -> None:
    trained, untrained = tmp_path / "trained", tmp_path / "untrained"
    assert evaluate(run, trained) == 0
    assert evaluate(run, untrained, "--untrained") == 0
    assert EvaluationFolder(trained).rows() != EvaluationFolder(untrained).rows()
    # A tester that nothing was learned by, saved as one that was.
    adapter = tmp_path / "adapter"
    shutil.copytree(run / "tester", adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    save_file(
        {name: weight.zero_() if "lora_B" in name else weight for name, weight in weights.items()},
        adapter / "adapter_model.safetensors",
    )
    nothing_learned = tmp_path / "nothing_learned"
    assert evaluate(adapter, nothing_learned, "--config", str(run / "config.yaml")) == 0
    assert EvaluationFolder(nothing_learned).rows() == EvaluationFolder(untrained).rows()


def test_trees_are_measured_too(run: Path, tmp_path: Path) -> None:
    assert evaluate(run, tmp_path / "trees", "--evaluation.tree_width", "3") == 0
    rows = EvaluationFolder(tmp_path / "trees").rows()
    assert len(rows) == 5 * (3 + 9)
    assert {tuple(row["path"]) for row in rows if row["turn"] == 1} == {(0,), (1,), (2,)}


def test_several_tries_with_each_prompt(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    once, twice = tmp_path / "once", tmp_path / "twice"
    assert evaluate(run, once) == 0
    assert evaluate(run, twice, "--evaluation.tries", "2") == 0
    rows = EvaluationFolder(twice).rows()
    assert len(rows) == 5 * 2 * 2
    said = [
        [(row["episode"], row["path"], row["probe"], row["response"]) for row in some]
        for some in (EvaluationFolder(once).rows(), [row for row in rows if row["path"][0] == 0])
    ]
    assert said[0] == said[1]
    written = EvaluationFolder(twice).metrics()
    found = written["metrics"]
    assert found["questions_per_try"]["value"] == 2.0
    assert found["attack_success@2"] == found["attack_success/any_turn"]
    tries = {(row["episode"], row["path"][0]) for row in rows}
    succeeded = {(row["episode"], row["path"][0]) for row in rows if row["response_score"] >= 0.5}
    assert found["attack_success@1"]["value"] == pytest.approx(len(succeeded) / len(tries))
    assert written["survival"][0]["at_risk"] == 10
    again = ("--output", str(tmp_path / "judged"), "--evaluation.scorers", '{"again": {"name": "profanity"}}')
    assert main(["judge", str(twice), *again, "--evaluation.num_resamples", "100"]) == 0
    judged = figures(tmp_path / "judged")
    assert judged["again/attack_success@1"] == judged["attack_success@1"] == found["attack_success@1"]
    assert "attack_success@2" not in figures(once)
    assert "attack_success@1" in capsys.readouterr().out
    assert evaluate(run, twice) == 2
    assert "tries (2, now 1)" in capsys.readouterr().err
    assert main(["compare", str(once), str(twice)]) == 2
    assert "tries (1, now 2)" in capsys.readouterr().err


def test_a_tester_alone_with_a_configuration_and_two_compared(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tester trained in full, on the prompts of the run's."""
    full = save_tiny(tmp_path / "full", "llama", seed=9)
    with_config = ("--config", str(TINY_DPO))
    assert evaluate(full, tmp_path / "second", *with_config) == 0
    assert evaluate(run, tmp_path / "first") == 0
    one, other = (EvaluationFolder(tmp_path / name).rows() for name in ("first", "second"))
    assert [row["probe"] for row in one] != [row["probe"] for row in other]
    capsys.readouterr()
    result = tmp_path / "comparison.json"
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "second"), "--output", str(result)]) == 0
    found = json.loads(result.read_text())["metrics"]["reward/mean"]
    means = [sum(row["reward"] for row in rows) / 10 for rows in (one, other)]
    assert [found["first"], found["second"]] == pytest.approx(means)
    assert found["difference"]["value"] == pytest.approx(means[1] - means[0])
    assert "reward/mean" in capsys.readouterr().out
    assert evaluate(run, tmp_path / "third", prompts=PROMPTS[:4]) == 0
    assert main(["compare", str(tmp_path / "first"), str(tmp_path / "third")]) == 2
    assert "1 are in" in capsys.readouterr().err


def test_mistakes_are_told_before_weights_load(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run, tmp_path / "done") == 0

    def load(*_: object) -> None:
        raise AssertionError("weights were loaded before the mistake was found")

    monkeypatch.setattr(model_files.ModelFiles, "load", load)

    def message(*arguments: Any, **options: Any) -> str:
        capsys.readouterr()
        assert evaluate(*arguments, **options) == 2
        return capsys.readouterr().err

    output = tmp_path / "evaluation"
    assert "holds no tester" in message(tmp_path, output)
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "tester" / "adapter_model.safetensors").write_bytes(b"not weights")
    assert "adapter_model.safetensors can't be read" in message(damaged, output)
    assert "no config.yaml" in message(run / "tester", output)
    assert "prompts.test is null" in message(run, output, "--prompts.test", "null")
    assert "expected prompts" in message(run, output, prompts=[])
    assert "prompts 1 and 3 are the same" in message(run, output, prompts=["a b", "c d", "a b"])
    unknown = message(run, output, "--evaluation.scorers", '{"other": {"name": "guard"}}')
    assert "evaluation.scorers.other" in unknown
    assert "unknown scorer 'guard'" in unknown
    assert "'reward'" in message(run, output, "--evaluation.scorers", '{"reward": {}}')
    assert not output.exists()
    assert "rollout.tree_depth (2, now 3)" in message(run, tmp_path / "done", "--rollout.tree_depth", "3")
    capsys.readouterr()
    assert main(["compare", str(run), str(tmp_path / "done")]) == 2
    assert "no evaluation.json" in capsys.readouterr().err


def test_harmless_requests_are_asked_once_and_refusals_are_told(run, tmp_path, capsys):
    """Also by an evaluation that has ended; and others are asked anew."""
    output = tmp_path / "evaluation"
    assert evaluate(run, output) == 0
    assert "benign/refusal" not in figures(output)
    benign = ("--evaluation.benign.source", "benign", "--evaluation.benign.split", "train[:5]")
    assert evaluate(run, output, *benign) == 0
    rows = EvaluationFolder(output).benign_rows()
    assert [row["refused"] for row in rows] == [False] * 5  # a tiny model says nothing that is a refusal
    assert figures(output)["benign/refusal"]["value"] == 0
    assert "benign/refusal" in capsys.readouterr().out
    written = (output / "benign.parquet").stat().st_mtime_ns
    assert evaluate(run, output, *benign) == 0
    assert EvaluationFolder(output).benign_rows() == rows
    assert (output / "benign.parquet").stat().st_mtime_ns > written  # judged anew
    assert evaluate(run, output, *benign[:3], "train[5:7]") == 0
    assert len(EvaluationFolder(output).benign_rows()) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--evaluation.benign.source", "no.jsonl"), "evaluation.benign.source: prompts 'no.jsonl': no such file"),
        (("--evaluation.refusal_scorer.name", "no"), "evaluation.refusal_scorer.name: unknown scorer 'no'"),
        (("--evaluation.refusal_scorer.options", '{"a": 1}'), "scorer 'refusal' takes no option 'a'"),
        (
            (
                "--evaluation.refusal_scorer",
                '{"name": "local_judge", "options": {"model": "m", "rubric": "harmbench"}}',
            ),
            "evaluation.refusal_scorer judges by a goal",
        ),
    ],
)
def test_mistakes_about_harmless_requests(run, tmp_path, capsys, monkeypatch, more, message):
    def load(*_):
        raise AssertionError("weights were loaded before the mistake was found")

    monkeypatch.setattr(model_files.ModelFiles, "load", load)
    assert evaluate(run, tmp_path / "evaluation", "--evaluation.benign.source", "benign", *more) == 2
    assert message in capsys.readouterr().err
