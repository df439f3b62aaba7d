"""The tester's value head: one forward with the log-probs, trained with the tester, and kept where the tester is."""

from __future__ import annotations

import pytest
import torch

from astra_accel.config import ComputeConfiguration, LoRAConfiguration, ModelConfiguration
from astra_accel.distributed.step_module import StepModule
from astra_accel.methods.ast import HFASTSystem, HFASTValueFunctionSystem
from astra_accel.models.loading.tiny import save_tiny


def make(tester="tiny", **options) -> HFASTValueFunctionSystem:
    system = HFASTValueFunctionSystem(tester, "tiny", scorer=object(), **options)
    with torch.no_grad():
        system.value_head.weight.copy_(torch.linspace(-1, 1, 48))
    return system


def examples(system):
    states = [system.start(prompt) for prompt in ("a", "So I said")]
    probes = system.rollout_prompt_with_tester(states, seeds=[(0,), (1,)])
    return states, probes


@pytest.mark.parametrize("lora", [None, LoRAConfiguration(r=2)])
@pytest.mark.parametrize("packing", ["prefix_tree", "none"])
def test_one_forward_reads_what_each_method_says(lora, packing):
    """The log-probs are those of get_tester_logprobs, the values those of a plain forward with the adapter on."""
    system = make(lora=lora, compute=ComputeConfiguration(packing=packing))
    states, probes = examples(system)
    read = system.read_tester(states, probes, ["values", "logprobs", "entropies"])
    torch.testing.assert_close(read["logprobs"], system.get_tester_logprobs(states, probes), atol=1e-5, rtol=1e-5)
    assert torch.equal(read["values"], system.value(states, probes))
    for row, (state, probe) in enumerate(zip(states, probes, strict=True)):
        context = system.views.tester.own_turn(state, 32)
        ids = torch.tensor([[*context, *probe.sampled_ids]])
        output = system.tester(input_ids=ids, output_hidden_states=True)
        hidden = output.hidden_states[-1][0, len(context) - 1 : -1]
        length = len(probe.sampled_ids)
        torch.testing.assert_close(read["values"][row, :length], system.value_head(hidden), atol=1e-5, rtol=1e-5)
        logprobs = output.logits[0, len(context) - 1 : -1].log_softmax(-1)
        entropies = torch.distributions.Categorical(logits=logprobs).entropy()
        torch.testing.assert_close(read["entropies"][row, :length], entropies, atol=1e-4, rtol=1e-5)
        assert not read["values"][row, length:].any()


def test_a_probe_without_tokens_has_no_values():
    system = make()
    assert system.value(["a", "b"], ["", "xy"]).shape == (2, 2)
    assert system.value(["a"], [""]).shape == (1, 0)


def test_the_head_is_trained_and_checkpointed_with_the_tester():
    system = make(lora=LoRAConfiguration(r=2))
    head = [id(parameter) for parameter in system.value_head.parameters()]
    assert [id(parameter) for parameter in system.parameters()][-2:] == head

    class Algorithm:
        def step(self, batch):
            return system.value(*examples(system)).sum(), {}

    module = StepModule(system, Algorithm())
    assert {"value_head.weight", "value_head.bias"} <= module.trained_state().keys()
    loss, _ = module(None)
    loss.backward()
    assert all(parameter.grad is not None for parameter in system.value_head.parameters())
    assert any(parameter.grad.abs().max() > 0 for parameter in system.tester.parameters() if parameter.requires_grad)


def test_the_head_is_saved_with_the_tester_and_goes_on_from_there(tmp_path):
    system = make(lora=LoRAConfiguration(r=2))
    system.save_pretrained(tmp_path / "adapter")
    again = HFASTValueFunctionSystem(ModelConfiguration(path="tiny", adapter=str(tmp_path / "adapter")), "tiny")
    assert torch.equal(again.value_head.weight, system.value_head.weight)
    full = make(str(save_tiny(tmp_path / "full")), lora=None)
    full.save_pretrained(tmp_path / "trained")
    again = HFASTValueFunctionSystem(str(tmp_path / "trained"), "tiny", lora=None)
    assert torch.equal(again.value_head.weight, full.value_head.weight)
    HFASTSystem(str(tmp_path / "trained"), "tiny", lora=None)
