"""An adapter makes one policy of rollout, update and PEFT, on models whose layers are not all plain and called once.

The oracle is PEFT on a model of its own: its forward of one sequence at a time, with the adapter that was saved.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from astra_accel import HFASTSystem
from astra_accel.config import LoRAConfiguration, ModelConfiguration, RolloutConfiguration, SamplingConfiguration
from astra_accel.models.loading.tiny import save_tiny
from tests.helpers.special_models import MIXTURES, SPECIAL, save_special

QUICK = ("deepseek_v3", "phi_moe")
WEIGHTS = "adapter_model.safetensors"
TURNS = SamplingConfiguration(max_new_tokens=6)
ROLLOUT = RolloutConfiguration(tester=TURNS, target=TURNS)

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`", "ignore:Model with `tie", "ignore:Model has `tie", "ignore:Setting `save_emb"
)


def fast(names: Any) -> list[Any]:
    return [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in names]


def system_of(path: Path, targets: str | list[str] = "all-linear", adapter: Path | None = None) -> HFASTSystem:
    tester = ModelConfiguration(path=str(path), adapter=None if adapter is None else str(adapter))
    lora = LoRAConfiguration(r=4, alpha=8, target_modules=targets)
    return HFASTSystem(tester, path, path, lora=lora, rollout=ROLLOUT)


def move(system: HFASTSystem) -> None:
    """Give what is trained weights of its own: a new adapter's are zero, and say nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def said(system: HFASTSystem) -> tuple[Any, Any, list[float]]:
    """A state, what the tester said to it in a rollout, and with which log-probs."""
    state = system.start("Good morning.")
    with torch.no_grad(), system.rolling_out(1):
        (probe,) = system.rollout_prompt_with_tester([state], seeds=[[1]])
    return state, probe, list(probe.sampled_logprobs)


@torch.no_grad()
def plain_logprobs(model: Any, system: HFASTSystem, state: Any, probe: Any) -> torch.Tensor:
    ids = torch.tensor([[*system.views.tester.own_turn(state, TURNS.max_new_tokens), *probe.sampled_ids]])
    count = len(probe.sampled_ids)
    logprobs = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)[-count - 1 : -1]
    return logprobs.gather(-1, ids[0, -count:, None])[:, 0]


def assert_one_policy(system: HFASTSystem, path: Path, folder: Path) -> None:
    """Rollout, update and PEFT agree; the frozen roles are the base; so it stays when it is loaded again."""
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    state, probe, sampled = said(system)
    updated = system.get_tester_logprobs([state], [probe])[0].detach()
    of_base = plain_logprobs(base, system, state, probe)
    for frozen in (system.get_target_logprobs, system.get_baseline_logprobs):
        count = len(frozen([state], [probe])[0])
        torch.testing.assert_close(frozen([state], [probe])[0], of_base[:count], rtol=1e-4, atol=1e-3)
    system.save_pretrained(folder)
    by_peft = plain_logprobs(PeftModel.from_pretrained(base, folder).eval(), system, state, probe)
    assert (by_peft - of_base).abs().max() > 1e-2
    torch.testing.assert_close(updated, by_peft, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(torch.tensor(sampled), by_peft, rtol=1e-4, atol=1e-3)
    again = system_of(path, adapter=folder)
    torch.testing.assert_close(torch.tensor(said(again)[2]), torch.tensor(sampled), rtol=1e-4, atol=1e-3)
    assert names(again) == names(system)


def names(system: HFASTSystem) -> set[str]:
    return {name for name, parameter in system.tester.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", fast(SPECIAL))
def test_the_default_adapter_makes_one_policy_of_rollout_update_and_peft(name: str, tmp_path: Path) -> None:
    path = save_special(tmp_path / "base", name)
    system = system_of(path)
    assert names(system)
    assert not any(
        "router" in each or "vision" in each or "dt_proj" in each or ".gate." in each for each in names(system)
    )
    move(system)
    # Every weight that is trained has a gradient in every step, as processes that average gradients need.
    state, probe, _ = said(system)
    system.get_tester_logprobs([state], [probe]).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in system.parameters())
    assert_one_policy(system, path, tmp_path / "adapter")


FUSED = ("gate_up_proj", "down_proj", "input_linear.weight", "output_linear.weight")


@pytest.mark.parametrize("name", fast(MIXTURES))
def test_experts_that_are_asked_for_by_name_are_adapted_too(name: str, tmp_path: Path) -> None:
    path = save_special(tmp_path / "base", name)
    parameters = dict(AutoModelForCausalLM.from_pretrained(path).named_parameters())
    experts = {
        each.split(".", 3)[3] for each, weight in parameters.items() if weight.dim() == 3 and each.endswith(FUSED)
    }
    assert experts
    system = system_of(path, ["all-linear", *sorted(experts)])
    assert len(names(system)) > len(names(system_of(path)))
    move(system)
    assert_one_policy(system, path, tmp_path / "adapter")


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"]])
@pytest.mark.parametrize("tied", [True, False])
def test_an_adapted_head_leaves_the_embedding_that_it_is_tied_to_alone(
    targets: list[str], tied: bool, tmp_path: Path
) -> None:
    path = save_tiny(tmp_path / "base", "llama", tie_word_embeddings=tied)
    system = system_of(path, targets)
    assert system.roles.merges
    move(system)
    assert_one_policy(system, path, tmp_path / "adapter")


@pytest.mark.parametrize("name", [pytest.param("jamba", marks=pytest.mark.slow), "gemma3"])
def test_an_adapter_that_peft_put_on_idle_layers_too_makes_one_policy_and_trains_the_others(
    name: str, tmp_path: Path
) -> None:
    """Jamba reads the weight of ``dt_proj`` past the layer, so merged there it would count, and beside it not."""
    path = save_special(tmp_path / "base", name)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(path), config).save_pretrained(tmp_path / "made")
    system = system_of(path, adapter=tmp_path / "made")
    assert not any("dt_proj" in each or "vision" in each for each in names(system))
    move(system)
    state, probe, sampled = said(system)
    updated = system.get_tester_logprobs([state], [probe])[0].detach()
    system.save_pretrained(tmp_path / "saved")
    base = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    by_peft = plain_logprobs(PeftModel.from_pretrained(base, tmp_path / "saved").eval(), system, state, probe)
    for found in (updated, torch.tensor(sampled)):
        torch.testing.assert_close(found, by_peft, rtol=1e-4, atol=1e-3)
    assert set(load_file(tmp_path / "saved" / WEIGHTS)) == set(load_file(tmp_path / "made" / WEIGHTS))
