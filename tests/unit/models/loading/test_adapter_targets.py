"""What a new adapter is put on: by hand for some architectures, and as PEFT then does it."""

from __future__ import annotations

import pytest
from peft import get_peft_model
from peft.tuners.lora import LoraLayer

from astra_accel.config import LoRAConfiguration, ModelConfiguration
from astra_accel.models.loading.adapter_targets import new_adapter_config
from astra_accel.models.roles import find_roles
from tests.helpers.special_models import build_special, save_special

ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
MLP = {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"}
LATENT = {f"self_attn.{name}" for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")}
SHARED = {f"mlp.shared_experts.{name}" for name in ("gate_proj", "up_proj", "down_proj")}

EXPECTED = {
    ("qwen3_moe", "all-linear"): [ATTENTION, ATTENTION],
    ("phi_moe", "all-linear"): [ATTENTION, ATTENTION],
    ("gpt_oss", "all-linear"): [ATTENTION, ATTENTION],
    # The first layer of these two is dense.
    ("deepseek_v3", "all-linear"): [LATENT | MLP, LATENT | SHARED],
    ("glm4_moe", "all-linear"): [ATTENTION | MLP, ATTENTION | SHARED],
    ("glm4_moe", ("q_proj", "down_proj")): [
        {"self_attn.q_proj", "mlp.down_proj"},
        {"self_attn.q_proj", "mlp.shared_experts.down_proj"},
    ],
    ("qwen3_moe", ("q_proj", "experts.down_proj")): [{"self_attn.q_proj", "mlp.experts"}] * 2,
    ("phi_moe", ("router",)): [{"mlp.router"}] * 2,
    ("gemma3", "all-linear"): [ATTENTION | MLP, ATTENTION | MLP],
    # Also where the vision tower has layers of the same name.
    ("gemma3", ("q_proj",)): [{"self_attn.q_proj"}] * 2,
    ("gemma3", r".*\.q_proj"): [{"self_attn.q_proj"}] * 2,
    ("mamba", "all-linear"): [{"mixer.in_proj", "mixer.x_proj"}] * 2,
}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize(("name", "targets"), EXPECTED)
def test_a_new_adapter_is_on_the_layers_that_were_meant_and_on_no_others(name, targets):
    lora = LoRAConfiguration(target_modules=targets if isinstance(targets, str) else list(targets))
    model = build_special(name)
    adapted = get_peft_model(model, new_adapter_config(lora, model, name)).get_base_model()
    found = {each for each, module in adapted.named_modules() if isinstance(module, LoraLayer)}
    expected = set().union(
        *({f"layers.{at}.{each}" for each in layer} for at, layer in enumerate(EXPECTED[name, targets]))
    )
    assert {each[each.index("layers.") :] for each in found} == expected
    assert not any("vision" in each for each in found)


def test_layers_that_a_text_does_not_call_are_named():
    model = build_special("jamba")
    with pytest.raises(ValueError, match=r"\['dt_proj'\] match no linear layer of jamba that a forward on text calls"):
        new_adapter_config(LoRAConfiguration(target_modules=["q_proj", "dt_proj"]), model, "jamba")


def test_layers_that_peft_refuses_are_named():
    model = build_special("mamba")
    with pytest.raises(ValueError, match=r"lora.target_modules is \['out_proj'\]: .*incompatible with Mamba"):
        new_adapter_config(LoRAConfiguration(target_modules=["out_proj"]), model, "mamba")


def test_a_parameter_that_is_not_there_is_named_before_weights_load(tmp_path):
    model = ModelConfiguration(path=str(save_special(tmp_path, "qwen3_moe")))
    lora = LoRAConfiguration(target_modules=["all-linear", "experts.up_proj"])
    expected = r"lora.target_modules: \['experts.up_proj'\] match no .*; there are .*and the parameters .*gate_up_proj"
    with pytest.raises(ValueError, match=expected):
        find_roles(model, model, None, lora)
    find_roles(model, model, None, LoRAConfiguration(target_modules=["all-linear", "experts.gate_up_proj"]))
