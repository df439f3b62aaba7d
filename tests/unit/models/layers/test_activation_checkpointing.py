"""Activation checkpointing: the same values and gradients from less memory, and a model left as it was."""

from __future__ import annotations

import pytest
import torch

from astra_accel.models.layers.activation_checkpointing import activation_checkpointing, checkpointed_layers
from tests.helpers.architectures import ARCHITECTURES, build

IDS = torch.arange(60).reshape(3, 20)


def kept_bytes(model, checkpointing: bool) -> tuple[torch.Tensor, int]:
    """The logits, and the bytes that autograd keeps for the backward pass, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if checkpointing:
            with activation_checkpointing(model):
                logits = model(IDS, use_cache=False).logits
        else:
            logits = model(IDS, use_cache=False).logits
    return logits, sum(kept.values())


def gradients(model, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    logits.log_softmax(-1)[..., 3].sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_and_gradients_are_the_same(architecture):
    """The backward pass comes after the switch is off again."""
    model = build(architecture)
    assert len(checkpointed_layers(model)) == 2
    expected, more = kept_bytes(model, checkpointing=False)
    expected_gradients = gradients(model, expected)
    found, less = kept_bytes(model, checkpointing=True)
    assert torch.equal(found, expected)
    assert less < 0.6 * more
    for name, gradient in gradients(model, found).items():
        torch.testing.assert_close(gradient, expected_gradients[name], msg=lambda text, name=name: f"{name}: {text}")


def test_dropout_stays_off():
    model = build("gpt2")
    assert model.config.resid_pdrop > 0
    modes = set()
    for module in model.modules():
        module.register_forward_hook(lambda module, *_: modes.add((type(module), module.training)))
    with activation_checkpointing(model):
        first, second = model(IDS).logits, model(IDS).logits
    assert torch.equal(first, second)
    assert not any(training for kind, training in modes if kind is torch.nn.Dropout)


@pytest.mark.parametrize("training", [False, True])
def test_the_layers_are_afterwards_as_before(training):
    """After an error too."""
    model = build("llama").train(training)
    layers = checkpointed_layers(model)
    before = [(layer.forward, layer.training, layer.gradient_checkpointing) for layer in layers]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="in the middle"), activation_checkpointing(model):
            raise RuntimeError("in the middle")
        with activation_checkpointing(model):
            model(IDS)
        assert [(layer.forward, layer.training, layer.gradient_checkpointing) for layer in layers] == before
