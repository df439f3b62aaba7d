"""Layer and adapter in one operation, against PEFT's own forward in float64."""

import copy
from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from transformers.pytorch_utils import Conv1D

from astra_accel.models import lora_linear
from astra_accel.models.lora_linear import fuse_adapters


class Net(nn.Module):
    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8, bias=bias)
        self.second = nn.Linear(8, 5, bias=bias)

    def forward(self, states):
        return self.second(torch.tanh(self.first(states)))


def adapted(*, bias: bool = True, **options):
    """A network with an adapter of random weights (PEFT begins with zeros, which would hide much)."""
    torch.manual_seed(1)
    settings = {"r": 3, "lora_alpha": 5.0, "target_modules": ["first", "second"]} | options
    model = get_peft_model(Net(bias), LoraConfig(**settings)).eval()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return model


@pytest.fixture
def calls(monkeypatch):
    """How often the one operation was used."""
    count = []
    apply = lora_linear._LoraLinear.apply
    monkeypatch.setattr(lora_linear._LoraLinear, "apply", lambda *args: count.append(1) or apply(*args))
    return count


def outputs_and_gradients(model, states):
    states = states.clone().requires_grad_()
    output = model(states)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return [output, *torch.autograd.grad(output.square().sum(), [states, *trained])]


@pytest.mark.parametrize(("bias", "shape"), list(product([True, False], [(7, 6), (2, 3, 6), (1, 6)])))
def test_outputs_and_gradients_are_those_of_peft(calls, bias, shape):
    model = adapted(bias=bias)
    states = torch.randn(shape)
    expected = outputs_and_gradients(copy.deepcopy(model).double(), states.double())
    fuse_adapters(model)
    found = outputs_and_gradients(model, states)
    assert len(calls) == 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)


def test_gradients_are_the_slopes_of_the_outputs():
    model = adapted().double()
    fuse_adapters(model)
    layer = model.base_model.model.first
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight

    def run(states, *_):
        return layer(states)

    assert torch.autograd.gradcheck(run, (torch.randn(4, 6, dtype=torch.float64, requires_grad=True), down, up))


def test_an_adapter_that_is_off_is_not_added(calls):
    model = adapted()
    fuse_adapters(model)
    states = torch.randn(3, 6)
    with model.disable_adapter():
        off = model(states)
    assert calls == []
    base = model.base_model.model
    by_hand = base.second.base_layer(torch.tanh(base.first.base_layer(states)))
    torch.testing.assert_close(off, by_hand)
    assert not torch.allclose(off, model(states))


def test_the_active_one_of_several_adapters_is_added(calls):
    model = adapted()
    model.add_adapter("other", LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False))
    plain = copy.deepcopy(model)
    fuse_adapters(model)
    states = torch.randn(3, 6)
    for name in ("other", "default"):
        model.set_adapter(name)
        plain.set_adapter(name)
        torch.testing.assert_close(model(states), plain(states))
    assert len(calls) == 4


@pytest.mark.parametrize(
    "options", [{"use_dora": True}, {"lora_bias": True}, {"lora_dropout": 0.5}], ids=lambda options: next(iter(options))
)
def test_other_kinds_of_adapters_are_left_to_peft(calls, options):
    model = adapted(**options).train()
    fuse_adapters(model)
    model(torch.randn(3, 6))
    assert calls == []


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")
def test_layers_with_weights_the_other_way_round_are_left_to_peft(calls):
    model = nn.Sequential(nn.Module(), nn.Module())
    model[0].first, model[1].second = Conv1D(8, 6), nn.Linear(8, 5)
    model = get_peft_model(model, LoraConfig(target_modules=["first", "second"], init_lora_weights=False))
    fuse_adapters(model)
    model.base_model.model[1].second(model.base_model.model[0].first(torch.randn(3, 6)))
    assert len(calls) == 1


def test_dropout_that_is_off_is_none(calls):
    model = adapted(lora_dropout=0.5).eval()
    fuse_adapters(model)
    model(torch.randn(3, 6))
    assert len(calls) == 2


def test_mixed_precision_is_left_to_autocast(calls):
    model = adapted()
    fuse_adapters(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.randn(3, 6)).dtype == torch.bfloat16
    assert calls == []


def test_a_layer_that_is_trained_itself_is_left_to_peft(calls):
    model = adapted()
    fuse_adapters(model)
    model.base_model.model.first.base_layer.weight.requires_grad_(True)
    model.base_model.model.second.base_layer.bias.requires_grad_(True)
    model(torch.randn(3, 6)).sum().backward()
    assert calls == []
    assert model.base_model.model.first.base_layer.weight.grad is not None
    assert model.base_model.model.second.base_layer.bias.grad is not None


def test_a_copy_has_weights_of_its_own(calls):
    model = adapted()
    fuse_adapters(model)
    states = torch.randn(3, 6)
    expected = model(states)
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, LoraLinear):
            module.lora_B["default"].weight.data.zero_()
    torch.testing.assert_close(model(states), expected)
    assert not torch.allclose(other(states), expected)
