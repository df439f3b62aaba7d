"""Processes that train models of which a text reaches only parts: every step gives each trained weight a gradient.

DDP without a search for unused parameters dies at the second step otherwise; what shards weights waits for ever.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from astra_accel.config import RunConfiguration
from astra_accel.jobs.train import build_trainer
from tests.helpers.launches import SHARDED, make_launch
from tests.helpers.plain import reset_accelerate
from tests.helpers.processes import run_processes
from tests.helpers.runs import TINY_DPO, largest_difference
from tests.helpers.special_models import save_special

SETTINGS = {
    "training": {"training_steps": 3, "eval_steps": None, "save_steps": None, "sample_steps": None, "timeout": 100},
    "prompts": {"dev": None, "test": None},
}
VARIANTS = {
    "lora": {},
    "full": {"lora": None},
    "experts": {"lora": {"target_modules": ["all-linear", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"]}},
    "an adapter of idle layers too": {},
}
CASES = [
    *(("gemma3", variant) for variant in ("lora", "full", "an adapter of idle layers too")),
    *(("qwen3_moe", variant) for variant in ("full", "experts")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "variant"), CASES)
@pytest.mark.parametrize("kind", ["ddp", *SHARDED])
def test_two_processes_train_what_a_text_reaches_and_save_the_tester_whole(
    kind: str, name: str, variant: str, tmp_path: Path
) -> None:
    base = save_special(tmp_path / "base", name)
    config = {**SETTINGS, **VARIANTS[variant], "tester": {"path": str(base)}, "target": {"path": str(base)}}
    if variant == "an adapter of idle layers too":
        config["tester"]["adapter"] = str(_adapter_of_all_layers(tmp_path / "adapter", base))
    before = _weights(tmp_path / "adapter") if "adapter" in config["tester"] else _weights(base)
    for trained in run_processes(2, _train, tmp_path / "run", kind, config):
        assert trained
        assert not any("vision" in each or "multi_modal" in each for each in trained)
    after = _weights(tmp_path / "run" / "tester")
    if variant in ("full", "an adapter of idle layers too"):
        assert set(after) == set(before)
        idle = {each for each in before if "vision" in each or "multi_modal" in each}
        assert all(torch.equal(after[each], before[each]) for each in idle)
        assert largest_difference(after, before) > 1e-4
    run_processes(1, _train, tmp_path / "alone", "ddp", config)
    assert largest_difference(after, _weights(tmp_path / "alone" / "tester")) < 1e-3


def _train(folder: Path, kind: str, settings: dict) -> list[str]:
    """Train; the names of what was trained."""
    reset_accelerate()
    values = RunConfiguration.load(TINY_DPO).model_dump(mode="json")
    for section, fields in settings.items():
        values[section] = {**values[section], **fields} if isinstance(fields, dict) else fields
    values["training"]["output_dir"] = str(folder)
    config = RunConfiguration(**values)
    # The launch of DDP is the run's own, which looks for no unused parameter.
    accelerator = None if kind == "ddp" else make_launch(kind, config.training)
    trainer, _ = build_trainer(config, None, accelerator=accelerator)
    names = [name for name, parameter in trainer.engine.module.named_parameters() if parameter.requires_grad]
    trainer.train()
    return names


def _adapter_of_all_layers(folder: Path, base: Path) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}
