"""A whole run of a tiny model: what it writes, and that others can read it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoTokenizer

from astra_accel.config import RunConfiguration
from astra_accel.files.run_status import Status, read_status
from astra_accel.models.loading.tiny import build_tiny
from tests.helpers.runs import TINY_DPO, launch, metrics, rollouts


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of ``tiny_dpo.yaml``, as a user starts it; shorter by one step, by an override.

    No compiler is in reach: none may be needed.
    """
    folder = tmp_path_factory.mktemp("run") / "tiny"
    arguments = ["--config", TINY_DPO, "--training.output_dir", folder, "--training.training_steps", "5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(Path(sys.executable).parent))
        for name in ("CC", "CXX"):
            patch.delenv(name, raising=False)
        assert not any(map(shutil.which, ("cc", "gcc", "g++", "clang", "clang++")))
        result = launch("train.py", *arguments)
    assert result.returncode == 0, result.stderr
    (folder.parent / "screen.txt").write_text(result.stdout)
    return folder


def test_the_files_of_a_run(run: Path) -> None:
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "metrics.jsonl",
        "rollouts",
        "status.json",
        "tester",
    ]
    assert read_status(run) == Status("ended")
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000003", "step-000005"]
    assert sorted(path.name for path in (run / "rollouts").iterdir()) == [
        f"step-{step:06d}.parquet" for step in range(1, 6)
    ]
    names = {path.name for path in (run / "tester").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= names


def test_the_screen_tells_the_figures_before_and_after(run: Path) -> None:
    screen = (run.parent / "screen.txt").read_text()
    assert "120 test prompts" in screen
    assert "reward/mean" in screen
    assert str(run / "tester") in screen.replace("\n", "")


def test_the_resolved_configuration_runs_again(run: Path) -> None:
    text = (run / "config.yaml").read_text()
    assert "# torch " in text
    config = RunConfiguration.load(run / "config.yaml")
    assert config.training.training_steps == 5
    assert config.to_yaml() == yaml.safe_dump(yaml.safe_load(text), sort_keys=False, allow_unicode=True)


def test_one_line_of_metrics_an_update(run: Path) -> None:
    lines = metrics(run)
    assert [line["update"] for line in lines] == list(range(1, len(lines) + 1))
    assert {line["step"] for line in lines} == {1, 2, 3, 4, 5}
    for line in lines:
        assert {"loss", "reward/mean", "tokens", "lr", "grad_norm", "seconds/rollout", "seconds/update"} <= line.keys()
        assert line["tokens"] > 0
    evaluated = {line["step"] for line in lines if "eval/reward/mean" in line}
    assert evaluated == {3, 5}


def test_every_node_of_an_experience_is_written(run: Path) -> None:
    columns = ("episode", "path", "turn", "context", "probe", "response", "reward", "combined_score", "response_score")
    steps = rollouts(run, (*columns, "naturalness"))
    for rows in steps:
        assert len(rows) == 4 * (2 + 4)
        for row in rows:
            assert row["turn"] == len(row["path"])
            parts = 2 * row["combined_score"] + 0.5 * row["response_score"] + 0.0825 * row["naturalness"]
            assert row["reward"] == pytest.approx(parts)
        by_path = {(row["episode"], tuple(row["path"])): row for row in rows}
        for (episode, path), row in by_path.items():
            if len(path) > 1:
                parent = by_path[episode, path[:-1]]
                assert row["context"] == parent["context"] + parent["probe"] + parent["response"]


def test_plain_peft_loads_the_tester_and_generates(run: Path) -> None:
    base, _ = build_tiny("llama")
    model = PeftModel.from_pretrained(base, run / "tester").eval()
    tokenizer = AutoTokenizer.from_pretrained(run / "tester")
    inputs = tokenizer("My day was", return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert output.shape[1] > inputs["input_ids"].shape[1]
    with model.disable_adapter(), torch.no_grad():
        bare = model(**inputs).logits
    with torch.no_grad():
        assert not torch.equal(model(**inputs).logits, bare)


def test_the_tester_of_a_run_is_evaluated_and_trained_on(run: Path) -> None:
    """``evaluate.py`` on the run, on two processes; then a new run that starts from its adapter."""
    result = launch("evaluate.py", run, accelerate_config="cpu_2")
    assert result.returncode == 0, result.stderr
    assert "reward/mean" in result.stdout
    assert result.stdout.count("120 held-out prompts") == 1
    assert (run / "evaluation" / "metrics.json").exists()
    result = launch(
        "train.py",
        *("--config", TINY_DPO, "--training.output_dir", run.parent / "on", "--training.training_steps", "1"),
        *("--tester.adapter", run / "tester", "--prompts.test", "null"),
    )
    assert result.returncode == 0, result.stderr
    # The baseline is the adapter that it started from, so the first loss is that of no preference: log 2.
    assert metrics(run.parent / "on")[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_the_minimal_loop_runs() -> None:
    result = launch("minimal_loop.py")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("mean reward") == 5
