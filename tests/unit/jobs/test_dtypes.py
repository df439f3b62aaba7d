"""What the type of a run comes to: said once, alike on all processes, and kept."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from astra_accel.config import LoRAConfiguration, ModelConfiguration, RunConfiguration
from astra_accel.jobs import dtypes
from astra_accel.models import roles
from astra_accel.models.loading import precision


@pytest.fixture(autouse=True)
def processors(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each process's processor computes in bfloat16; all processes are asked here, one after another."""
    every = [True]

    def gather(accelerator: Any, ask: Any) -> list[Any]:
        found = []
        for computes in every:
            monkeypatch.setattr(precision, "computes_in_bf16", lambda computes=computes: computes)
            found.append(ask())
        return found

    monkeypatch.setattr(dtypes, "gather_results", gather)
    return every


def settled(config: RunConfiguration, *, device: str = "cpu", before: Any = None, width: int = 576) -> dict[str, str]:
    """The types of tester, target and baseline, by what the run's file says."""
    model = SimpleNamespace(config=LlamaConfig(hidden_size=width, num_attention_heads=1))
    baseline = config.tester if config.baseline is None else config.baseline
    configurations = {"tester": config.tester, "target": config.target, "baseline": baseline}
    files = roles.RoleFiles(model, model, model, configurations, config.lora)
    accelerator = SimpleNamespace(device=torch.device(device), is_main_process=True)
    written = dtypes.settle_dtype(config, files, accelerator, before)
    # Whoever reads the file gets the same, whatever the processor.
    kept = RunConfiguration.model_validate(written.model_dump(mode="json"))
    return {
        role: model.dtype for role, model in precision.with_dtypes(files, device, kept.compute).configurations.items()
    }


def alike(dtype: str) -> dict[str, str]:
    return dict.fromkeys(("tester", "target", "baseline"), dtype)


def test_a_processor_that_computes_in_bfloat16_is_used_and_said(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert settled(RunConfiguration()) == alike("bfloat16")
    assert "bfloat16, in which this processor computes" in caplog.text
    assert "--compute.dtype float32" in caplog.text


def test_where_processors_differ_all_take_float32(processors: list[bool], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    processors[:] = [True, False]
    assert settled(RunConfiguration()) == alike("float32")
    assert "not all processors compute in bfloat16" in caplog.text


def test_one_field_forces_float32_and_a_role_may_say_otherwise() -> None:
    config = RunConfiguration.load(None, ["--compute.dtype", "float32"])
    assert settled(config) == alike("float32")
    config = RunConfiguration.load(None, ["--compute.dtype", "float32", "--target.dtype", "bfloat16"])
    assert settled(config) == {**alike("float32"), "target": "bfloat16"}


def test_a_narrow_model_a_processor_without_and_a_gpu(processors: list[bool], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert settled(RunConfiguration(), width=48) == alike("float32")
    assert settled(RunConfiguration(), device="cuda") == alike("auto")
    processors[:] = [False]
    assert settled(RunConfiguration()) == alike("float32")
    assert [record.getMessage() for record in caplog.records] == [
        "dtype auto: float32, since the tester is so narrow that bfloat16 is no faster",
        "dtype auto: each model's own type, as its checkpoint says (the device is cuda)",
        "dtype auto: float32, since this processor has no instructions for bfloat16",
    ]


def test_a_tester_trained_in_full_and_its_baseline_are_float32() -> None:
    in_full = RunConfiguration(lora=None)
    assert settled(in_full) == {**alike("float32"), "target": "bfloat16"}
    assert settled(in_full, device="cuda") == {**alike("auto"), "tester": "float32"}
    continued = RunConfiguration(lora=None, tester=ModelConfiguration(adapter="some/adapter"))
    assert settled(continued) == alike("bfloat16")
    forced = RunConfiguration.load(None, ["--lora", "null", "--compute.dtype", "bfloat16"])
    assert settled(forced) == {**alike("float32"), "target": "bfloat16"}


def test_four_bits_on_a_cpu_are_computed_in_float32(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = ModelConfiguration(quantization="nf4")
    assert settled(RunConfiguration(tester=model, target=model, lora=LoRAConfiguration())) == alike("float32")
    assert "the tester has 4-bit weights" in caplog.text


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ({"tester.dtype": "auto", "compute.dtype": "bfloat16"}, "bfloat16"),
        ({"tester.dtype": "auto", "compute.dtype": "float32"}, "float32"),
        ({"tester.dtype": "auto"}, "float32"),
        ({"training.lr": 0.1}, "bfloat16"),
    ],
    ids=["bfloat16", "float32", "a version that took float32 on every CPU", "a run from Python"],
)
@pytest.mark.parametrize("computes", [True, False])
def test_a_run_that_is_resumed_keeps_its_type(
    before: dict[str, Any], expected: str, computes: bool, processors: list[bool]
) -> None:
    processors[:] = [computes]
    if "tester.dtype" not in before and not computes:
        expected = "float32"
    assert settled(RunConfiguration(), before=before) == alike(expected)


def test_what_is_said_now_comes_before_what_was() -> None:
    before = {"tester.dtype": "auto", "compute.dtype": "bfloat16"}
    assert settled(RunConfiguration.load(None, ["--compute.dtype", "float32"]), before=before) == alike("float32")
    config = RunConfiguration(target=ModelConfiguration(dtype="float16"))
    assert settled(config, before=before) == {**alike("bfloat16"), "target": "float16"}
