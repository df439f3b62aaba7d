"""Two processes of unlike machines load models in one type, and a run keeps the type that it began with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from astra_accel.config import RunConfiguration
from astra_accel.jobs.train import build_trainer
from astra_accel.models.loading import precision
from astra_accel.models.loading.tiny import build_tiny
from tests.helpers.documents import ROOT
from tests.helpers.plain import reset_accelerate
from tests.helpers.processes import run_processes

TINY_DPO = ROOT / "examples" / "configs" / "tiny_dpo.yaml"


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """The folder of a random model that is wide enough to gain from bfloat16."""
    tiny, tokenizer = build_tiny()
    heads = tiny.config.num_attention_heads
    config = LlamaConfig(**{**tiny.config.to_dict(), "hidden_size": 48 * heads, "head_dim": 48})
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    return tmp_path / "wide"


def _train(
    model: Path, folder: Path, computes: list[bool], steps: int, resume: str | None, mixed_precision: str | None = None
) -> str:
    """Train some steps on processors that compute in bfloat16 or don't; the type of the frozen weights."""
    reset_accelerate()
    values = RunConfiguration.load(TINY_DPO).model_dump(mode="json")
    values["tester"]["path"] = values["target"]["path"] = str(model)
    values["training"] |= {"output_dir": str(folder), "training_steps": steps, "save_steps": 1}
    values["training"]["mixed_precision"] = mixed_precision
    rank = int(os.environ["RANK"])
    before, precision.computes_in_bf16 = precision.computes_in_bf16, lambda: computes[rank]
    try:
        trainer, _ = build_trainer(RunConfiguration(**values), resume)
        trainer.train(resume)
    finally:
        precision.computes_in_bf16 = before
    return str(trainer.harness.sampler.system.roles.target.model.dtype)


def _written(folder: Path, section: str = "compute", field: str = "dtype") -> str:
    return yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))[section][field]


def test_processes_of_unlike_machines_agree_on_float32(wide: Path, tmp_path: Path) -> None:
    found = run_processes(2, _train, wide, tmp_path / "run", [True, False], 1, None)
    assert found == ["torch.float32"] * 2
    assert _written(tmp_path / "run") == "float32"


@pytest.mark.slow
def test_a_run_in_bfloat16_is_resumed_in_it_where_processors_do_not_compute_in_it(wide: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert run_processes(2, _train, wide, run, [True, True], 1, None) == ["torch.bfloat16"] * 2
    assert _written(run) == "bfloat16"
    assert run_processes(2, _train, wide, run, [False, False], 2, "auto") == ["torch.bfloat16"] * 2


def test_processes_that_compute_alike_take_mixed_precision_and_write_it(wide: Path, tmp_path: Path) -> None:
    run_processes(2, _train, wide, tmp_path / "run", [True, True], 1, None, "auto")
    assert _written(tmp_path / "run", "training", "mixed_precision") == "bf16"
    # On other machines, it is what these compute in.
    run_processes(2, _train, wide, tmp_path / "run", [False, False], 2, "auto", "auto")
    assert _written(tmp_path / "run", "training", "mixed_precision") == "no"


def _refused(model: Path, folder: Path) -> str:
    with pytest.raises(ValueError, match=r"^training\.mixed_precision is auto") as error:
        _train(model, folder, [True, False], 1, None, "auto")
    return str(error.value)


def test_processes_that_compute_in_unlike_precision_are_told(wide: Path, tmp_path: Path) -> None:
    for message in run_processes(2, _refused, wide, tmp_path / "run"):
        assert "which is bf16, no on the 2 processes" in message
