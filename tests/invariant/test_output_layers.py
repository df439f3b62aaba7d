"""Whatever a model does to its logits, rollouts and updates are of the distribution that its own forward gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from astra_accel.config import ComputeConfiguration, LoRAConfiguration
from astra_accel.methods.ast import HFASTSystem, HFASTValueFunctionSystem
from astra_accel.models.forward.capabilities import transformers_model
from astra_accel.models.forward.head import Head
from astra_accel.models.loading.tiny import build_tiny
from tests.helpers.output_layers import OF_THEIR_OWN, OUTPUT_LAYERS, body, build_output_layer

PROMPTS = ("Good morning, how are you?", "So")
SEEDS = [(1, 2), (3,)]
NO_CACHE = ("rwkv", "xlstm")
"""Their states are no cache that decoding could continue from, so a rollout refuses them."""
QUICK = ("hyperclovax", "opt_350m", "bert")
NAMES = [
    pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
    for name in OUTPUT_LAYERS
    if name not in NO_CACHE
]
COLUMNS = ("logprobs", "values", "entropies")


def save(name: str, folder: Path) -> str:
    build_output_layer(name).save_pretrained(folder)
    build_tiny("llama")[1].save_pretrained(folder)
    return str(folder)


def plain(system: Any, contexts: list[tuple[int, ...]], probes: list[Any]) -> list[torch.Tensor]:
    """Log-probs, values and entropies by one forward a sequence: no mask, no padding, no cache, ``[tokens, 3]`` each.

    Values are of the body's output, or of what the output layer gets where that is something else.
    """
    model = transformers_model(system.tester)
    results = []
    for context, probe in zip(contexts, probes, strict=True):
        ids_1T = torch.tensor([[*context, *probe.sampled_ids]])
        inputs: list[torch.Tensor] = []
        handle = model.get_output_embeddings().register_forward_pre_hook(
            lambda _, given, to=inputs: to.append(given[0])
        )
        logits_1TV = model(input_ids=ids_1T, use_cache=False).logits
        handle.remove()
        own = Head.from_model(model) is None
        hidden_1TH = inputs[0] if own else body(model)(input_ids=ids_1T, use_cache=False)[0]
        before = slice(len(context) - 1, -1)
        logprobs_SV = logits_1TV[0, before].float().log_softmax(-1)
        tokens_S1 = torch.tensor(probe.sampled_ids)[:, None]
        values_S = hidden_1TH[0, before] @ system.value_head.weight + system.value_head.bias
        entropies_S = torch.distributions.Categorical(logits=logprobs_SV).entropy()
        results.append(torch.stack([logprobs_SV.gather(-1, tokens_S1)[:, 0], values_S, entropies_S], dim=-1))
    return results


def assert_the_models_own(system: HFASTValueFunctionSystem) -> None:
    """Compare what updates read with plain forwards and with what the rollout said, and the gradients."""
    with torch.no_grad():
        system.value_head.weight.copy_(torch.linspace(-1, 1, len(system.value_head.weight)))
    states = [system.start(prompt) for prompt in PROMPTS]
    probes = system.rollout_prompt_with_tester(states, seeds=SEEDS)
    contexts = [system.views.tester.own_turn(state, system.rollout_config.tester.max_new_tokens) for state in states]
    read = system.read_tester(states, probes, COLUMNS)
    found = torch.cat(
        [read[name][row, : len(probe.sampled_ids)] for name in COLUMNS for row, probe in enumerate(probes)]
    )
    by_row = plain(system, contexts, probes)
    expected = torch.cat([rows[:, column] for column in range(len(COLUMNS)) for rows in by_row])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    # The policy that wrote the probes: a ratio of 1.
    sampled = torch.tensor([value for probe in probes for value in probe.sampled_logprobs])
    torch.testing.assert_close(found[: len(sampled)].detach(), sampled, atol=1e-4, rtol=1e-4)
    parameters = list(system.parameters())
    weights = torch.linspace(-1, 2, len(found))
    mine, others = (
        torch.autograd.grad((each * weights).sum(), parameters, allow_unused=True) for each in (found, expected)
    )
    for one, other in zip(mine, others, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert (one - other).norm() <= 1e-3 * other.norm() + 1e-3
    assert max(float(gradient.norm()) for gradient in others if gradient is not None) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_log_probs_values_entropies_and_gradients_are_the_models_own(name: str, tmp_path: Path) -> None:
    system = HFASTValueFunctionSystem(save(name, tmp_path), "tiny", scorer=object(), lora=None)
    assert (Head.from_model(transformers_model(system.tester)) is None) == (name in OF_THEIR_OWN)
    assert_the_models_own(system)


@pytest.mark.parametrize("name", NAMES)
def test_the_ratio_to_the_sampled_policy_is_1_without_a_value_head(name: str, tmp_path: Path) -> None:
    system = HFASTSystem(save(name, tmp_path), "tiny", scorer=object(), lora=None)
    states = [system.start(prompt) for prompt in PROMPTS]
    probes = system.rollout_prompt_with_tester(states, seeds=SEEDS)
    logprobs = system.get_tester_logprobs(states, probes)
    for row, probe in zip(logprobs, probes, strict=True):
        ratio = (row[: len(probe.sampled_ids)] - torch.tensor(probe.sampled_logprobs)).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-4, rtol=0)


@pytest.mark.parametrize("packing", ["auto", pytest.param("none", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["granite", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_an_adapter_on_the_output_layer_has_its_part_in_log_probs_and_gradients(
    name: str, packing: str, tmp_path: Path
) -> None:
    """The layer then is none that can be run by its weights, so the model makes its logits itself."""
    model = build_output_layer(name)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.save_pretrained(tmp_path)
    build_tiny("llama")[1].save_pretrained(tmp_path)
    system = HFASTValueFunctionSystem(
        str(tmp_path),
        "tiny",
        scorer=object(),
        lora=LoRAConfiguration(r=4, target_modules=["q_proj", "lm_head"]),
        compute=ComputeConfiguration(packing=packing),  # type: ignore[arg-type]
    )
    with torch.no_grad():
        for name, parameter in system.tester.named_parameters():
            if parameter.requires_grad and "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    assert Head.from_model(transformers_model(system.tester)) is None
    assert_the_models_own(system)
    adapted = [parameter for name, parameter in system.tester.named_parameters() if "lm_head.lora_" in name]
    assert sum(parameter.requires_grad for parameter in adapted) == 2
