"""A tester with a value head trains in bf16 under every launch: its values, how they are saved, and a resumed run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from astra_accel.config import ModelConfiguration
from astra_accel.methods.ast import HFASTValueFunctionSystem
from astra_accel.models.forward.capabilities import transformers_model
from astra_accel.models.loading.tiny import save_tiny
from tests.helpers.launches import LAUNCHES
from tests.helpers.processes import run_processes
from tests.helpers.runs import Weights, largest_difference, train_tiny

SETTINGS = ["--algorithm.name", "ppo", "--algorithm.options", "{}", "--training.eval_steps", "null"]
TWO_STEPS = ["--training.training_steps", "2", "--training.save_steps", "1", "--training.lr", "3e-3"]
VARIANTS: dict[str, list[str]] = {"lora": [], "full": ["--lora", "null"]}
STATES, PROBES = ["Good morning.", "So"], ["you are very kind", "what"]


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("kind", LAUNCHES)
def test_a_value_head_is_trained_saved_and_resumed_in_bf16(kind: str, variant: str, tmp_path: Path) -> None:
    results = run_processes(2, _train_and_resume, tmp_path, kind, VARIANTS[variant], timeout=600)
    tester = str(tmp_path / "whole" / "tester")
    loads = ModelConfiguration(path="tiny", adapter=tester) if variant == "lora" else ModelConfiguration(path=tester)
    expected = _plain_values(HFASTValueFunctionSystem(loads, "tiny", scorer=object()))
    saved = load_file(tmp_path / "whole" / "tester" / "value_head.safetensors")
    for values, head, resumed in results:
        # It began at 0, and continued from where it was saved.
        assert float(head["weight"].abs().max()) > 1e-3
        assert head["weight"].dtype == torch.float32
        assert largest_difference(head, resumed) == 0
        assert largest_difference(head, saved) == 0
        # A forward in bf16 is off by the rounding of its weights and states.
        assert float((values - expected).norm() / expected.norm()) < 0.03
    assert float(expected.norm()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["fsdp2", "zero2"])
def test_a_model_that_makes_its_logits_itself_is_trained_alike_where_weights_are_spread(
    kind: str, tmp_path: Path
) -> None:
    """An adapter on the output layer: the head can't be run apart, so the model's own forward gathers it."""
    save_tiny(tmp_path / "model", "qwen2")  # whose output layer is not the embedding
    run_processes(1, _train_adapted_head, tmp_path, "one", "ddp", timeout=600)
    run_processes(2, _train_adapted_head, tmp_path, "two", kind, timeout=600)
    for file in ("adapter_model", "value_head"):
        one, two = (_trained(tmp_path / run / "tester" / f"{file}.safetensors") for run in ("one", "two"))
        # Adam makes a whole step of a gradient that is nearly 0, whose rounding then counts; a step is 3e-3.
        assert largest_difference(one, two) < 1e-4
        assert max(float(tensor.abs().max()) for tensor in two.values()) > 1e-3
        assert file == "value_head" or any("lm_head" in name for name in two)


def _trained(file: Path) -> Weights:
    """What a file holds but for the base of an adapted output layer, which PEFT adds where it has it at hand."""
    return {name: tensor for name, tensor in load_file(file).items() if "base_layer" not in name}


def _train_adapted_head(folder: Path, run: str, kind: str) -> None:
    model = str(folder / "model")
    options = ["--tester.path", model, "--target.path", model, "--lora.target_modules", "[q_proj, lm_head]"]
    train_tiny(folder / run, *SETTINGS, *TWO_STEPS, *options, launch_kind=kind)


def _train_and_resume(folder: Path, kind: str, options: Sequence[str]) -> tuple[torch.Tensor, Weights, Weights]:
    """Values and value head of a run of two steps, and the head of one that continues after the first."""
    settings = [*SETTINGS, *TWO_STEPS, "--training.mixed_precision", "bf16", *options]
    trainer = train_tiny(folder / "whole", *settings, launch_kind=kind)
    with torch.no_grad(), trainer.engine.unsharded_weights():
        values = _values(trainer.harness.sampler.system)
    head = _head(trainer)
    checkpoint = folder / "whole" / "checkpoints" / "step-000001"
    return values, head, _head(train_tiny(folder / "resumed", *settings, resume=checkpoint, launch_kind=kind))


def _head(trainer) -> Weights:
    state = {name: tensor.detach().clone() for name, tensor in trainer.engine.trained_state() if "value_head" in name}
    return {name.removeprefix("value_head."): tensor for name, tensor in state.items()}


def _values(system) -> torch.Tensor:
    rows = zip(system.value(STATES, PROBES), system.num_probe_tokens(PROBES), strict=True)
    return torch.cat([row[:length] for row, length in rows])


def _plain_values(system: HFASTValueFunctionSystem) -> torch.Tensor:
    """The values of the saved tester by one forward a sequence in float32, and by arithmetic."""
    values = []
    with torch.no_grad():
        for state, probe, length in zip(STATES, PROBES, system.num_probe_tokens(PROBES), strict=True):
            context = system.views.tester.own_turn(system.start(state), system.rollout_config.tester.max_new_tokens)
            ids = torch.tensor([[*context, *system.views.segment("probe", probe).sampled_ids]])
            states = transformers_model(system.tester).base_model(input_ids=ids)[0][0, len(context) - 1 :][:length]
            values.append(states @ system.value_head.weight + system.value_head.bias)
    return torch.cat(values)
