"""What a text reaches of a model, against the gradients of a backward pass and what is known of each architecture."""

from __future__ import annotations

import pytest
import torch

from astra_accel.models.loading.text_forward import adaptable_layers, freeze_unreached, is_linear, text_ids
from tests.helpers.architectures import build
from tests.helpers.special_models import SPECIAL, build_special

ROUTERS = {"phi_moe": "mlp.router", "llama4": "feed_forward.router"}
NOT_CALLED = {"jamba": "dt_proj", "mamba": "dt_proj", "falcon_mamba": "dt_proj", "gemma3": "vision_tower"}


@pytest.mark.parametrize("name", SPECIAL)
def test_linear_layers_that_are_called_are_told_from_those_that_are_not_and_from_routers(name):
    model = build_special(name)
    reached, routers = adaptable_layers(model)
    layers = [each for each, module in model.named_modules() if is_linear(module)]
    # Zamba 2 has an adapter for each place of a shared block, of which a place uses its own.
    idle = [each for each in layers if each not in reached and "adapter_list" not in each]
    assert all(NOT_CALLED[name] in each for each in idle)
    assert idle or name not in NOT_CALLED
    assert all(each.endswith(ROUTERS[name]) for each in routers)
    assert len(routers) == (2 if name in ROUTERS else 0)
    assert [each for each in layers if each in reached] == reached


def test_layers_that_hold_their_weights_the_other_way_round_are_linear():
    reached, routers = adaptable_layers(build("gpt2"))
    assert {each.rpartition(".")[2] for each in reached} == {"c_attn", "c_proj", "c_fc", "lm_head"}
    assert routers == set()


@pytest.mark.parametrize("name", ["gemma3", "deepseek_v3", "zamba2", "gpt_oss"])
def test_what_is_frozen_is_what_gets_no_gradient_from_a_text(name):
    model = build_special(name).requires_grad_(True)
    frozen = {id(parameter) for parameter in freeze_unreached(model)}
    assert bool(frozen) == (name == "gemma3")
    model.requires_grad_(True)
    model(input_ids=torch.arange(1, 40)[None], use_cache=False).logits.sum().backward()
    assert {id(parameter) for parameter in model.parameters() if parameter.grad is None} == frozen


def test_a_model_is_left_as_it_was():
    model = build_special("phi_moe").requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    before = torch.random.get_rng_state()
    adaptable_layers(model)
    freeze_unreached(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert [name for name, one in model.named_parameters() if one.requires_grad] == ["lm_head.weight"]
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_text_holds_no_token_that_stands_for_something_else():
    model = build_special("gemma3")
    model.config.image_token_id = model.config.text_config.eos_token_id = 7
    ids = text_ids(model)
    assert ids.shape == (1, 16)
    assert 7 not in ids
    assert torch.equal(ids, text_ids(model))
