"""What one run found is where another begins: `mle` after `tb`, and what can't be begun with is told early."""

import json
import shutil
from pathlib import Path

import pytest

from astra_accel.algorithms import build_algorithm
from astra_accel.errors import ConfigurationError
from astra_accel.training.replay_source import check_source, find_replay
from tests.helpers.runs import ROOT, metrics, train_tiny

CONFIGS = ROOT / "examples" / "configs"
SHORT = (
    *("--training.eval_steps", "null", "--prompts.test", "null"),
    *("--training.replay.size", "12", "--training.replay.share", "0.5"),
)
ALIKE = "tester: {path: null}\n"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Path:
    """A run by trajectory balance, with a checkpoint."""
    folder = tmp_path_factory.mktemp("runs") / "tb"
    train_tiny(
        folder, *SHORT, "--training.training_steps", "2", "--training.save_steps", "1", config=CONFIGS / "tiny_tb.yaml"
    )
    return folder


def mle(folder: Path, source: Path, *options: str, steps: int = 1, resume: Path | None = None):
    options = (*SHORT, "--training.replay.source", str(source), "--training.training_steps", str(steps), *options)
    return train_tiny(folder, *options, resume=resume, config=CONFIGS / "tiny_mle.yaml")


def kept(run: Path, step: int) -> list[dict]:
    lines = (run / "checkpoints" / f"step-{step:06d}" / "replay.jsonl").read_text().splitlines()[1:]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("which", ["run", "checkpoint"])
def test_likelihood_goes_on_from_what_trajectory_balance_found(found, which, tmp_path, capsys):
    source = found if which == "run" else found / "checkpoints" / "step-000002"
    trainer = mle(tmp_path, source, "--training.save_steps", "1")
    groups = [line["step"]["fields"] for line in kept(found, 2)]
    wanted = {json.dumps(probe) for fields in groups for probe in fields["probes"]["tuple"]}
    earlier = [line for line in kept(tmp_path, 1) if line["collected"] == -1]
    assert earlier
    assert {json.dumps(line["step"]["fields"]["probe"]) for line in earlier} <= wanted
    # They were counted as any example is, and learned from in the first step.
    assert all(line["step"]["fields"]["num_tokens"] > 0 for line in earlier)
    assert all(line["step"]["fields"]["fluency"] < 0 for line in earlier)
    assert metrics(tmp_path)[0]["replay/drawn"] > 0
    assert f"the replay begins with {min(12, len(wanted))} examples of {source}" in " ".join(
        capsys.readouterr().out.split()
    )
    assert trainer.state.step == 1


def test_a_resumed_run_has_its_own(found, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    mle(whole, found, "--training.save_steps", "1", steps=2)
    shutil.copytree(found, tmp_path / "moved")
    mle(again, tmp_path / "moved", "--training.save_steps", "1", steps=2, resume=whole / "checkpoints" / "step-000001")
    assert kept(whole, 2) == kept(again, 2)


def test_what_is_no_source_is_told_before_models_load(found, tmp_path, monkeypatch):
    monkeypatch.setattr("astra_accel.jobs.train.build_sampler", None)
    without = tmp_path / "without"
    shutil.copytree(found, without)
    for step in (1, 2):
        folder = without / "checkpoints" / f"step-{step:06d}"
        (folder / "replay.jsonl").unlink()
        manifest = json.loads((folder / "manifest.json").read_text())
        del manifest["files"]["replay.jsonl"]
        (folder / "manifest.json").write_text(json.dumps(manifest))
    damaged = tmp_path / "damaged"
    shutil.copytree(found, damaged)
    for file in damaged.glob("checkpoints/*/replay.jsonl"):
        file.write_text("nonsense")
    newer = tmp_path / "newer"
    shutil.copytree(found, newer)
    manifest = newer / "checkpoints" / "step-000002" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    for source, message in (
        (tmp_path / "nowhere", r"training\.replay\.source: .*nowhere is not a checkpoint"),
        (without, r"training\.replay\.source: .*step-000002 has no replay\.jsonl: its run had no training\.replay"),
        (newer, r"training\.replay\.source: .*step-000002 has checkpoint format 99; this version reads"),
        (damaged, r"training\.replay\.source: .*damaged has no whole checkpoint: .*replay\.jsonl"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            mle(tmp_path / "run", source)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("dpo", ALIKE, "has examples of 'tb', from which DPO can't learn; expected those of its own, or with mle"),
        (
            "mle",
            ALIKE.replace("{path: null}", "{path: other}"),
            "tester.path is '.*', but here it is 'other'; expected",
        ),
    ],
)
def test_examples_of_another_kind_are_refused(found, name, text, message):
    with pytest.raises(ConfigurationError, match=message):
        check_source(found, build_algorithm(name, None), text)


def test_the_tester_may_be_the_one_that_the_run_has_trained(found):
    check_source(found, build_algorithm("mle", None), (found / "config.yaml").read_text())
    check_source(found, build_algorithm("mle", None), f"tester: {{path: {found / 'tester'}}}\n")
    assert find_replay(found).parent.name == "step-000002"
