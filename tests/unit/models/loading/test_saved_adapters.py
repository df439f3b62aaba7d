"""Saved adapters of every kind: loaded they say what PEFT says on a model of its own, or they are refused for a reason.

The roles share a base, so besides the tester the frozen roles are asked, before and after it moves.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from astra_accel import HFASTSystem
from astra_accel.config import ModelConfiguration
from astra_accel.models.loading.tiny import build_tiny, save_tiny
from astra_accel.models.roles import find_roles
from tests.helpers.special_models import save_special

CONTEXT, PROBE = "Good morning.", "You are late again."

pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`", "ignore:Model "),
    pytest.mark.filterwarnings(
        "ignore:Setting `save_embedding_layers`", "ignore:You are trying to", "ignore:Unsupported"
    ),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "tied": save_tiny(folder / "tied", "llama"),
        "untied": save_tiny(folder / "untied", "qwen2"),
        "mixture": save_special(folder / "mixture", "qwen3_moe"),
    }


def plain(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def save_adapter(folder: Path, base: Path, seed: int = 0, **options: Any) -> Path:
    """An adapter all of whose weights are moved away from where they began."""
    torch.manual_seed(seed)
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"} | options
    model = get_peft_model(plain(base), LoraConfig(**settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    model.save_pretrained(folder)
    return folder


def by_peft(base: Path, adapter: Path | None, system: HFASTSystem) -> torch.Tensor:
    """The log-probs of the probe, by PEFT's own forward of the one sequence."""
    model = plain(base)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    state = system.start(CONTEXT)
    context = system.views.tester.own_turn(state, system.rollout_config.tester.max_new_tokens)
    probe = system.views.segment("probe", PROBE).sampled_ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*context, *probe]]), use_cache=False).logits[0]
    return logits.log_softmax(-1)[-len(probe) - 1 : -1].gather(-1, torch.tensor(probe)[:, None])[:, 0]


def scores(system: HFASTSystem) -> list[torch.Tensor]:
    """Of tester, target and baseline; forgetting what these remember."""
    for role in (system.roles.target, system.roles.baseline):
        role.recall.clear()
    roles = (system.get_tester_logprobs, system.get_target_logprobs, system.get_baseline_logprobs)
    return [role([CONTEXT], [PROBE])[0].detach() for role in roles]


def assert_says(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected[: len(found)], rtol=1e-4, atol=1e-4)


def move(system: HFASTSystem) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilised": {"use_rslora": True, "lora_alpha": 3},
    "DoRA": {"use_dora": True},
    "ranks by layer": {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 5}},
    "some layers": {"layers_to_transform": [1]},
    "modules left out": {"target_modules": "all-linear", "exclude_modules": ["q_proj"]},
    "parameters by name": {"target_parameters": ["up_proj.weight"]},
    "biases of its own": {"lora_bias": True},
    "the head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "dropout": {"lora_dropout": 0.5},
    "the head saved whole": {"modules_to_save": ["lm_head"]},
    "embeddings saved whole": {"modules_to_save": ["embed_tokens"]},
    "both saved whole": {"modules_to_save": ["lm_head", "embed_tokens"]},
    "a norm saved whole": {"modules_to_save": ["input_layernorm"]},
    "some tokens": {"trainable_token_indices": [3, 80, 101]},
    "drawn orthogonal": {"init_lora_weights": "orthogonal"},
}
TIED = {"both saved whole, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}}
QUICK = ("parameters by name", "both saved whole", "some tokens", "both saved whole, tied")
CASES = [
    pytest.param(base, kind, marks=[] if kind in QUICK else pytest.mark.slow, id=f"{base}-{kind}")
    for base in ("tied", "untied")
    for kind in KINDS | (TIED if base == "tied" else {})
]


@pytest.mark.parametrize(("base", "kind"), CASES)
def test_an_adapter_goes_on_training_and_the_frozen_roles_stay_what_they_are(
    bases: dict[str, Path], base: str, kind: str, tmp_path: Path
) -> None:
    path, options = bases[base], (KINDS | TIED)[kind]
    adapter = save_adapter(tmp_path / "adapter", path, **options)
    system = HFASTSystem(ModelConfiguration(path=str(path), adapter=str(adapter)), path)
    start, of_base = by_peft(path, adapter, system), by_peft(path, None, system)
    assert (start - of_base).abs().max() > 1e-2
    for found, expected in zip(scores(system), (start, of_base, start), strict=True):
        assert_says(found, expected)
    trained = {name for name, parameter in system.tester.named_parameters() if parameter.requires_grad}
    kinds = ["lora_"] + ["modules_to_save"] * ("modules_to_save" in options) + ["tokens_delta"] * ("some" in kind)
    assert all(any(part in name for name in trained) for part in kinds if kind != "some layers")
    move(system)
    with system.rolling_out(1):
        moved, *frozen = scores(system)
    assert (moved - start).abs().max() > 1e-2
    for found, expected in zip(frozen, (of_base, start), strict=True):
        assert_says(found, expected)
    system.save_pretrained(tmp_path / "saved")
    assert_says(moved, by_peft(path, tmp_path / "saved", system))
    again = HFASTSystem(ModelConfiguration(path=str(path), adapter=str(tmp_path / "saved")), path)
    assert_says(scores(again)[0], moved)
    assert trained == {name for name, parameter in again.tester.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("mine", "its"),
    [
        pytest.param(mine, its, marks=[] if mine == "both saved whole" else pytest.mark.slow)
        for mine in ("plain", "both saved whole", "parameters by name", "some tokens")
        for its in ("plain", "the head saved whole", "embeddings saved whole", "some tokens", "parameters by name")
    ],
)
def test_tester_and_target_with_adapters_of_different_kinds(
    bases: dict[str, Path], mine: str, its: str, tmp_path: Path
) -> None:
    """What they can't have on one base, each has on its own."""
    path = bases["untied"]
    options = KINDS[its] if its != "parameters by name" else {"target_parameters": ["down_proj.weight"]}
    adapters = [
        save_adapter(tmp_path / "mine", path, 1, **KINDS[mine]),
        save_adapter(tmp_path / "its", path, 2, **options),
    ]
    models = [ModelConfiguration(path=str(path), adapter=str(adapter)) for adapter in adapters]
    system = HFASTSystem(models[0], models[1], path)
    expected = [by_peft(path, adapter, system) for adapter in (*adapters, None)]
    for found, value in zip(scores(system), expected, strict=True):
        assert_says(found, value)
    trained = {id(parameter) for parameter in system.parameters()}
    move(system)
    for found, value in zip(scores(system)[1:], expected[1:], strict=True):
        assert_says(found, value)
    assert trained == {id(parameter) for parameter in system.parameters()}


def test_an_adapter_on_all_layers_of_a_mixture_as_peft_made_it_still_loads(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """PEFT's ``all-linear`` adapts the fused experts and routers, as this package's did."""
    path = bases["mixture"]
    adapter = save_adapter(tmp_path / "adapter", path, target_modules="all-linear")
    assert any("experts" in name for name in load_file(adapter / "adapter_model.safetensors"))
    system = HFASTSystem(ModelConfiguration(path=str(path), adapter=str(adapter)), path)
    start = by_peft(path, adapter, system)
    for found, expected in zip(scores(system), (start, by_peft(path, None, system), start), strict=True):
        assert_says(found, expected)


def test_an_adapter_of_the_single_experts_of_old_checkpoints_loads(bases: dict[str, Path], tmp_path: Path) -> None:
    """A layer for each expert, as before transformers 5; the product of both factors is what counts."""
    path = bases["mixture"]
    torch.manual_seed(0)
    tensors, size = {}, {"gate_proj": (48, 32), "up_proj": (48, 32), "down_proj": (32, 48)}
    for layer in range(2):
        for expert in range(4):
            for name, (wide, high) in size.items():
                key = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}.{name}"
                tensors[f"{key}.lora_A.weight"] = torch.randn(3, wide) * 0.2
                tensors[f"{key}.lora_B.weight"] = torch.randn(high, 3) * 0.2
    LoraConfig(r=3, lora_alpha=6, target_modules=list(size), task_type="CAUSAL_LM").save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    system = HFASTSystem(ModelConfiguration(path=str(path), adapter=str(tmp_path)), path)
    merged = plain(path)
    for layer, block in enumerate(merged.model.layers):
        for expert in range(4):
            key = f"base_model.model.model.layers.{layer}.mlp.experts.{expert}"
            change = {
                name: 2 * tensors[f"{key}.{name}.lora_B.weight"] @ tensors[f"{key}.{name}.lora_A.weight"]
                for name in size
            }
            gate_up = torch.cat([change["gate_proj"], change["up_proj"]])
            block.mlp.experts.gate_up_proj.data[expert] += gate_up
            block.mlp.experts.down_proj.data[expert] += change["down_proj"]
    merged.save_pretrained(tmp_path / "merged")
    assert_says(scores(system)[0], by_peft(tmp_path / "merged", None, system))


REFUSED: dict[str, tuple[Any, str]] = {
    "all biases": (LoraConfig(bias="all"), r"has bias = 'all', so it changes biases of its base model"),
    "some biases": (LoraConfig(bias="lora_only"), r"has bias = 'lora_only'.* which the roles share; expected 'none'"),
    "layers repeated": (LoraConfig(layer_replication=[(0, 2), (1, 2)]), r"layer_replication = \[\[0, 2\], \[1, 2\]\]"),
    "PiSSA": (
        LoraConfig(init_lora_weights="pissa_niter_4"),
        r"init_lora_weights = 'pissa_niter_4', which changes weights",
    ),
    "OLoRA": (LoraConfig(init_lora_weights="olora"), r"init_lora_weights = 'olora'.* saved as a plain LoRA"),
    "activated": (LoraConfig(alora_invocation_tokens=[1]), r"has alora_invocation_tokens = \[1\]"),
    "IA3": (IA3Config(feedforward_modules=[]), "is of type IA3; expected LORA"),
}


@pytest.mark.parametrize("role", ["tester", "target", "baseline"])
@pytest.mark.parametrize("kind", REFUSED)
def test_an_adapter_that_changes_the_shared_base_is_refused_by_field_and_reason_before_weights_load(
    bases: dict[str, Path], role: str, kind: str, tmp_path: Path
) -> None:
    config, reason = REFUSED[kind]
    config.target_modules = ["q_proj"]
    config.save_pretrained(tmp_path)
    base = ModelConfiguration(path="tiny")
    models = {"tester": base, "target": base, "baseline": base}
    models[role] = ModelConfiguration(path="tiny", adapter=str(tmp_path))
    with pytest.raises(ValueError, match=rf"^{role}\.adapter: the adapter {tmp_path} .*{reason}"):
        find_roles(**models, lora=None)


def test_an_adapter_that_is_not_there_is_named_by_its_field(tmp_path: Path) -> None:
    base = ModelConfiguration(path="tiny")
    with pytest.raises(
        FileNotFoundError, match=rf"target\.adapter is the folder {tmp_path}, which has no adapter_conf"
    ):
        find_roles(base, ModelConfiguration(path="tiny", adapter=str(tmp_path)), None, None)


def test_an_adapter_that_brings_other_embeddings_for_the_base_is_refused(tmp_path: Path) -> None:
    """PEFT would write them into the base, which target and baseline share."""
    base = save_tiny(tmp_path / "base", "llama")
    adapter = save_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "embed_tokens"])
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    (key,) = [name for name in tensors if name.endswith("embed_tokens.base_layer.weight")]
    save_file(tensors | {key: tensors[key] + 0.5}, file)
    with pytest.raises(ValueError, match=r"brings weights of its base model along \(.*embed_tokens.*modules_to_save"):
        HFASTSystem(ModelConfiguration(path=str(base), adapter=str(adapter)), base)


def test_an_adapter_of_a_wider_model_does_not_fit(tmp_path: Path) -> None:
    wide = build_tiny("llama", hidden_size=96)[0]
    get_peft_model(wide, LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=rf"tester\.adapter is '{tmp_path}'.* does not fit 'tiny': its .*q_proj takes 96 numbers"
    ):
        HFASTSystem(ModelConfiguration(path="tiny", adapter=str(tmp_path)), "tiny")
