"""A run is shared as a user shares it: exported, uploaded, and read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import load_dataset
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM

from astra_accel.cli import main
from astra_accel.models.loading import model_files
from tests.helpers.hub import USER, local_hub
from tests.helpers.plain import reset_accelerate
from tests.helpers.runs import TINY_DPO, train_plain, train_tiny

QUICK = ("--training.training_steps", "1", "--training.save_steps", "null", "--training.eval_steps", "null")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A run of one training step, and the logits of its tester."""
    folder = tmp_path_factory.mktemp("run") / "tiny"
    trainer = train_tiny(folder, *QUICK)
    with torch.no_grad():
        return folder, trainer.harness.sampler.system.tester(input_ids=torch.arange(1, 30)[None]).logits


def test_a_run_is_exported(
    shared: tuple[Path, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, expected = shared
    merged, data = tmp_path / "merged", tmp_path / "data"

    assert main(["export", str(run), "--merged", str(merged), "--dataset", str(data)]) == 0

    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(merged)(input_ids=torch.arange(1, 30)[None]).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    rows = load_dataset(str(data), split="train", cache_dir=str(tmp_path / "cache"))
    assert set(rows["step"]) == {1}
    assert all(isinstance(reward, float) for reward in rows["reward"])
    said = capsys.readouterr().out
    assert f"{len(rows)} turns of rollouts" in said
    assert "log-probs differ by at most" in said


def test_a_run_is_uploaded(
    shared: tuple[Path, torch.Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, _ = shared
    with local_hub(monkeypatch) as hub:
        assert main(["push", str(run), "--model", "mine", "--dataset", f"{USER}/found"]) == 0
        assert f"uploaded to {hub.address}/{USER}/mine (private" in capsys.readouterr().out
        assert set(hub.private.values()) == {True}
        model = hub.download("model", f"{USER}/mine", tmp_path / "model")
        data = hub.download("dataset", f"{USER}/found", tmp_path / "data")
    assert (model / "adapter_model.safetensors").read_bytes() == (
        run / "tester" / "adapter_model.safetensors"
    ).read_bytes()
    assert ModelCard.load(model / "README.md").data.library_name == "peft"
    assert len(load_dataset(str(data), split="train", cache_dir=str(tmp_path / "cache"))) > 0


def test_an_evaluation_of_a_run_is_told_in_its_testers_card(shared: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    run, _ = shared
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"Good morning."\n"It rains again."\n', encoding="utf-8")
    reset_accelerate()

    test = ("--prompts.test.source", str(prompts), "--prompts.test.split", "train")
    assert main(["evaluate", str(run), *test, "--evaluation.num_resamples", "50"]) == 0

    card = ModelCard.load(run / "tester" / "README.md")
    assert "2 held-out prompts, 4 turns" in card.text
    assert {result.dataset_name for result in card.data.eval_results} == {"2 held-out prompts"}


def test_a_trainer_uploads_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system of one's own too, whose tester is no language model."""
    with local_hub(monkeypatch) as hub:
        train_plain(tmp_path / "run", training_steps=1, push_to_hub=True, hub_model_id="mine")
        assert set(hub.files["model", f"{USER}/mine"]) == {"README.md", "trained.safetensors"}
        assert hub.private == {("model", f"{USER}/mine"): True}
    reset_accelerate()


def test_an_upload_that_can_not_be_is_told_before_weights_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("weights were loaded before the mistake was found")

    monkeypatch.setattr(model_files.ModelFiles, "load", load)
    to = ("--training.push_to_hub", "true", "--training.hub_model_id", "mine")
    reset_accelerate()
    with local_hub(monkeypatch) as hub:
        hub.role = "read"
        assert main(["train", "--config", str(TINY_DPO), "--training.output_dir", str(tmp_path / "run"), *to]) == 2
        assert hub.writes == []
    assert capsys.readouterr().err.startswith(f"error: the token of {USER} may only read")
    assert not (tmp_path / "run").exists()
    reset_accelerate()


def test_mistakes_are_one_message(
    shared: tuple[Path, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = shared

    def message(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        return capsys.readouterr().err

    assert "nothing to export; expected --merged DIR" in message("export", str(run))
    assert "nothing to upload; expected --model OWNER/NAME" in message("push", str(run))
    assert "no folder" in message("export", str(tmp_path / "none"), "--merged", str(tmp_path / "merged"))
    (tmp_path / "taken").write_text("")
    assert "already exists" in message("export", str(run), "--merged", str(tmp_path / "taken"))
    assert "expected owner/name" in message("push", str(run), "--model", "a/b/c")
