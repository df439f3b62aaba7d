"""The layers of a decoding step: the sums of an ordinary linear layer, taken in another order."""

import pytest
import torch
from torch import nn

from astra_accel.models.layers.small_batch_linear import MAX_ROWS, for_few_rows


def model(bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 20, bias=bias), nn.Linear(20, 7, bias=bias)).to(dtype)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 12), (2, 12), (5, 1, 12), (3, 4, 12), (MAX_ROWS, 12), (MAX_ROWS + 1, 12)])
@torch.no_grad()
def test_layers_give_what_they_gave(shape, bias):
    layers, states = model(bias), torch.randn(shape)
    expected = states.double()
    for layer in layers:
        expected = expected @ layer.weight.double().T
        if bias:
            expected += layer.bias.double()
    with for_few_rows(layers):
        found = layers(states)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_few_rows_have_the_weights_on_the_left_and_many_do_not():
    layers = model()
    usual = layers[0].forward
    calls = []
    layers[0].forward = lambda states: calls.append(len(states)) or usual(states)
    with for_few_rows(layers):
        for num_rows in (1, 2, MAX_ROWS, MAX_ROWS + 1):
            layers(torch.randn(num_rows, 12))
    assert calls == [1, MAX_ROWS + 1]


@torch.no_grad()
def test_every_layer_has_its_own_forward_again_also_after_an_error():
    layers = model()
    layers[1].forward = layers[1].forward
    before = [dict(vars(layer)) for layer in layers]
    with pytest.raises(RuntimeError), for_few_rows(layers):
        layers(torch.randn(3, 13))
    assert [dict(vars(layer)) for layer in layers] == before


@torch.no_grad()
def test_layers_in_bfloat16_too_and_those_of_other_types_are_left_alone():
    layers, states = model(dtype=torch.bfloat16), torch.randn(5, 12).bfloat16()
    expected = layers(states)
    with for_few_rows(layers):
        assert all("forward" in vars(layer) for layer in layers)
        torch.testing.assert_close(layers(states), expected, atol=2e-2, rtol=2e-2)
    layers = model(dtype=torch.float16)
    with for_few_rows(layers):
        assert all("forward" not in vars(layer) for layer in layers)
