"""Layer and adapter in one operation, against PEFT's own forward in float64."""

import copy
from itertools import product

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from astra_accel.models.layers import lora_linear
from astra_accel.models.layers.lora_linear import fuse_adapters


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


HALF_TOLERANCE = {torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Of the norm of an output or gradient: twice the step between two numbers of the type."""


def wide(**options):
    """A layer of a usual shape, so that errors of rounding are an average of many."""
    torch.manual_seed(2)
    return get_peft_model(
        nn.Sequential(nn.Linear(96, 64)), LoraConfig(r=4, target_modules=["0"], init_lora_weights=False, **options)
    ).eval()


def relative_error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", HALF_TOLERANCE)
@pytest.mark.parametrize("autocast", ["weights of 16 bits", "weights of 16 bits in autocast", "autocast alone"])
def test_sixteen_bits_are_as_near_to_float64_as_with_peft_and_the_adapters_gradients_float32(calls, dtype, autocast):
    model = wide()
    if autocast != "autocast alone":
        model.base_model.model[0].base_layer.to(dtype)
    states = torch.randn(32, 96).to(torch.float32 if autocast == "autocast alone" else dtype)
    expected = outputs_and_gradients(copy.deepcopy(model).double(), states.double())
    with torch.autocast("cpu", dtype, enabled="autocast" in autocast):
        by_peft = outputs_and_gradients(copy.deepcopy(model), states)
        fuse_adapters(model)
        found = outputs_and_gradients(model, states)
    assert len(calls) == 1
    assert [one.dtype for one in found] == [one.dtype for one in by_peft]
    assert found[0].dtype == dtype
    assert found[2].dtype == found[3].dtype == torch.float32
    for one, peft, exact in zip(found, by_peft, expected, strict=True):
        assert relative_error(peft, exact) < HALF_TOLERANCE[dtype]
        assert relative_error(one, exact) < HALF_TOLERANCE[dtype]


class Operations(TorchDispatchMode):
    """Counts what is computed, or copied; to look at a tensor in another way is neither."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # An operation that returns a view says so by an alias that it does not write to.
        if not any(value.alias_info and not value.alias_info.is_write for value in func._schema.returns):
            self.names.append(func._schema.name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def operations(model, states):
    """How many it takes forward, and back from the output to the input and the adapter."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    with Operations() as forward:
        output = model(states)
    with Operations() as backward:
        torch.autograd.grad(output, [states, *trained], torch.ones_like(output))
    return len(forward.names), len([name for name in backward.names if name != "ones_like"]), backward.names


@pytest.mark.parametrize(
    ("dtype", "before", "after"), [(torch.float32, (5, 7), (3, 5)), (torch.bfloat16, (7, 10), (5, 9))]
)
def test_a_layer_takes_fewer_operations_than_with_peft(dtype, before, after):
    """Of the nine back in 16 bits four turn factors to float32, which is done within the product on a GPU."""
    model = wide()
    model.base_model.model[0].base_layer.to(dtype)
    states = torch.randn(32, 96, dtype=dtype, requires_grad=True)
    assert operations(copy.deepcopy(model), states)[:2] == before
    fuse_adapters(model)
    assert operations(model, states)[:2] == after


def test_a_layer_that_is_adapted_by_its_weights_name_computes_the_same(calls):
    """PEFT has no other way to name a dense layer of some mixtures of experts."""
    model, by_name = adapted(), adapted(target_modules=[], target_parameters=["first.weight", "second.weight"])
    by_name.load_state_dict(model.state_dict())
    states = torch.randn(3, 6)
    expected = outputs_and_gradients(copy.deepcopy(model).double(), states.double())
    fuse_adapters(by_name)
    for one, other in zip(outputs_and_gradients(by_name, states), expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)
    assert len(calls) == 2
    by_name.base_model.model.first.base_layer.weight.requires_grad_(True)
    torch.testing.assert_close(by_name(states).double(), expected[0], atol=1e-5, rtol=1e-5)
    assert len(calls) == 3
    with by_name.disable_adapter():
        assert not torch.allclose(by_name(states).double(), expected[0], atol=1e-3)


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
