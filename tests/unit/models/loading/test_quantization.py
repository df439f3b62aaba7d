"""Models in 4 bits: what their layers compute, that roles share them, and who is refused.

The oracle is the same model in plain layers, whose weights are the quantised ones turned back.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer

from astra_accel.config import ComputeConfiguration, LoRAConfiguration, ModelConfiguration, SamplingConfiguration
from astra_accel.models.forward.capabilities import transformers_model
from astra_accel.models.generators.local import LocalGenerator
from astra_accel.models.layers.merged_adapter import merged_adapter
from astra_accel.models.loading import quantization
from astra_accel.models.loading.model_files import find_model
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny, save_tiny
from astra_accel.models.logprobs import can_pack, sequence_logprobs
from astra_accel.models.roles import TESTER_ADAPTER, Roles, find_roles, load_roles

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra `quantization` is not installed")

CONTEXTS = [(1, 2, 3), (9,), (30, 20, 10, 5, 60)]
CONTINUATIONS = [(7, 8), (11, 12, 13, 14), (100,)]
LORA = LoRAConfiguration(r=4, alpha=8)

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")


def model(path: str | Path = "tiny", kind: str | None = "nf4", **options: Any) -> ModelConfiguration:
    return ModelConfiguration(path=str(path), quantization=kind, **options)


def load(tester: ModelConfiguration, target: ModelConfiguration, packing: str = "auto") -> Roles:
    """Roles whose adapter does something: its B is not the zeros that it begins with."""
    torch.manual_seed(0)
    roles = load_roles(find_roles(tester, target, None, LORA), "cpu", ComputeConfiguration(packing=packing))
    with torch.no_grad():
        for name, parameter in roles.trained.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape) / 4)
    return roles


def quantised(module: torch.nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, bitsandbytes.nn.Linear4bit)]


def in_plain_layers(architecture: str, roles: Roles, adapted: bool) -> torch.nn.Module:
    """The tester (or its base) with the numbers that its 4 bits stand for, the adapter added to them."""
    plain = build_tiny(architecture)[0]
    layers = {
        name.removeprefix("base_model.model."): part
        for name, part in roles.trained.named_modules()
        if isinstance(part, LoraLayer)
    }
    with torch.no_grad():
        for name, layer in layers.items():
            weight = layer.base_layer.weight
            whole = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
            if adapted:
                whole = whole + layer.get_delta_weight(TESTER_ADAPTER)
            own = plain.get_submodule(name).weight
            own.copy_(whole.T if architecture == "gpt2" else whole)
    return plain


def assert_same(found, expected) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_all_roles_share_one_base_and_say_what_its_numbers_say(architecture, kind):
    roles = load(*[model(f"tiny:{architecture}", kind)] * 2)
    assert roles.tester.model is roles.target.model is roles.baseline.model
    assert len(quantised(roles.trained)) == sum(isinstance(part, LoraLayer) for part in roles.trained.modules()) > 0
    with torch.no_grad():
        for role, adapted in ((roles.tester, True), (roles.target, False), (roles.baseline, False)):
            expected = sequence_logprobs(in_plain_layers(architecture, roles, adapted), CONTEXTS, CONTINUATIONS)
            assert_same(role.logprobs(CONTEXTS, CONTINUATIONS), expected)
            far = sequence_logprobs(build_tiny(architecture)[0], CONTEXTS, CONTINUATIONS)
            assert not torch.allclose(expected[1], far[1], atol=1e-3)  # 4 bits are not all


def test_it_is_read_packed_where_that_is_the_same():
    roles = load(model(), model())
    assert can_pack(transformers_model(roles.tester.model), required=True)


def test_the_adapters_gradients_are_those_over_plain_layers():
    roles = load(model(), model())
    plain = copy.deepcopy(roles.trained)
    for part in plain.modules():
        if isinstance(part, LoraLayer):
            weight = part.base_layer.weight
            base = torch.nn.Linear(part.in_features, part.out_features, bias=False)
            base.weight = torch.nn.Parameter(
                bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state), requires_grad=False
            )
            part.base_layer = base
    for one in (roles.trained, plain):
        sum(row.sum() for row in sequence_logprobs(transformers_model(one), CONTEXTS, CONTINUATIONS)).backward()
    found, expected = (
        {name: parameter.grad for name, parameter in one.named_parameters() if parameter.requires_grad}
        for one in (roles.trained, plain)
    )
    assert found.keys() == expected.keys()
    assert any(float(gradient.abs().max()) > 1e-3 for gradient in expected.values())
    assert_same(found.values(), expected.values())


def test_a_rollout_goes_with_the_adapter_beside_the_layers():
    """Nothing is merged, and the tokens are those of the plain layers with the adapter merged."""
    roles = load(model(), model())
    assert merged_adapter(roles.tester.model, TESTER_ADAPTER) is None
    plain = load(model(kind=None), model(kind=None))
    plain.tester.generator = LocalGenerator(in_plain_layers("llama", roles, adapted=True))
    sampling = SamplingConfiguration(max_new_tokens=8)
    seeds = [(number,) for number in range(len(CONTEXTS))]
    with roles.rolling_out():
        found = roles.tester.generate(CONTEXTS, seeds, sampling, 8)
    assert [row.ids for row in found] == [row.ids for row in plain.tester.generate(CONTEXTS, seeds, sampling, 8)]
    assert len({row.ids for row in found}) > 1


def test_two_kinds_of_one_model_are_two_copies():
    roles = load(model(), model(kind=None))
    assert roles.tester.model is not roles.target.model
    assert quantised(roles.tester.model)
    assert not quantised(roles.target.model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_four_bits_are_stored_under_the_type_of_the_forward(dtype):
    """As sharding wants them; and no layer computes otherwise in a rollout than in an update."""
    roles = load(model(dtype=dtype), model(dtype=dtype))
    layers = [part for part in roles.trained.modules() if isinstance(part, bitsandbytes.nn.Linear4bit)]
    assert {part.weight.dtype for part in layers} == {part.compute_dtype for part in layers} == {getattr(torch, dtype)}
    assert not any(getattr(part, "support_avx512bf16_for_cpu", False) for part in layers)
    trained = [parameter for parameter in roles.trained.parameters() if parameter.requires_grad]
    assert {parameter.dtype for parameter in trained} == {torch.float32}


# --- Who is refused, before weights load --------------------------------------------------------------------


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"target\.quantization is 'nf4'.*pip install 'astra-accel\[quantization\]'"):
        find_roles(model(kind=None), model(), None, LORA)


def test_a_tester_that_is_trained_in_full():
    with pytest.raises(ValueError, match=r"tester\.quantization is 'nf4', but lora is null, which trains all"):
        find_roles(model(), model(), None, None)


def test_a_checkpoint_that_is_quantised_already(tmp_path):
    save_tiny(tmp_path)
    find_model(model(tmp_path), "tester").load(torch.float32, quantization="nf4").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"tester\.quantization .* quantised already \(by bitsandbytes\)"):
        find_roles(model(tmp_path), model(tmp_path), None, LORA)


def test_a_launch_that_would_split_them(monkeypatch):
    files = find_roles(model(), model(), None, LORA)
    monkeypatch.setattr("transformers.integrations.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match=r"tester\.quantization is 'nf4', but the launch is DeepSpeed ZeRO-3"):
        load_roles(files, "cpu")


def test_a_device_that_has_no_kernels(monkeypatch):
    monkeypatch.setattr(bitsandbytes, "supported_torch_devices", {"cuda", "cpu"})
    files = find_roles(model(kind=None), model(), None, LORA)
    with pytest.raises(ValueError, match=r"target\.quantization .* on mps here; expected one of cpu, cuda"):
        load_roles(files, "mps")
