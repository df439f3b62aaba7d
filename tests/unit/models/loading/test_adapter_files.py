"""LoRA adapters that are damaged, of another kind or of another model, found before weights load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model

from astra_accel.config import ModelConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.models.loading.adapter_files import check_adapter_files
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny, save_tiny
from astra_accel.models.roles import find_roles

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
WEIGHTS = "adapter_model.safetensors"


def save_adapter(folder: Path, architecture: str = "llama", targets: str | list[str] = "all-linear", **config) -> Path:
    model, _ = build_tiny(architecture, **config)
    lora = LoraConfig(r=2, target_modules=targets, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(folder)
    return folder


def check(adapter: Path | str, architecture: str = "llama", **config) -> None:
    check_adapter_files(
        str(adapter), "target.adapter", build_tiny(architecture, **config)[0].config, f"tiny:{architecture}"
    )


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_an_adapter_of_the_model_fits(architecture, tmp_path):
    check(save_adapter(tmp_path, architecture), architecture)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\n"),
            "a pointer of Git",
        ),
        (lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-8]), "it is cut off"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b""), f"{WEIGHTS} is empty"),
        (lambda folder: (folder / WEIGHTS).unlink(), f"it has no weights that can be loaded (expected {WEIGHTS} or"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json is no JSON"),
    ],
)
def test_a_damaged_adapter_is_told_with_its_field(damage, message, tmp_path):
    damage(save_adapter(tmp_path))
    with pytest.raises(ConfigurationError) as error:
        check(tmp_path)
    assert str(error.value).startswith(f"target.adapter is {str(tmp_path)!r}, in whose folder ")
    assert message in str(error.value)


def test_what_is_no_adapter_is_told(tmp_path):
    whole = save_tiny(tmp_path / "whole", "llama")
    with pytest.raises(
        FileNotFoundError, match=r"target.adapter is the folder .*, but the config.json of a whole model"
    ):
        check(whole)
    with pytest.raises(FileNotFoundError, match=r"target.adapter is .*nowhere', and there is no such folder"):
        check(tmp_path / "nowhere")
    other = save_adapter(tmp_path / "other")
    settings = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "IA3"}))
    with pytest.raises(ConfigurationError, match=r"^target.adapter: the adapter .* is of type IA3; expected LORA"):
        check(other)


def test_an_adapter_of_another_size_is_told_with_the_layer(tmp_path):
    adapter = save_adapter(tmp_path, hidden_size=96)
    with pytest.raises(ConfigurationError, match=r"does not fit 'tiny:llama': its .*_proj takes .* numbers to .*"):
        check(adapter)


@pytest.mark.parametrize(("made_for", "put_on"), [("gpt2", "llama"), ("llama", "gpt2")])
def test_an_adapter_of_another_architecture_is_told(made_for, put_on, tmp_path):
    adapter = save_adapter(tmp_path, made_for)
    with pytest.raises(ConfigurationError, match=f"does not fit 'tiny:{put_on}': it adapts .* no layer of that name"):
        check(adapter, put_on)


@pytest.mark.parametrize("role", ["tester", "target", "baseline"])
def test_every_roles_adapter_is_looked_at_before_weights_load(role, tmp_path):
    adapter = save_adapter(tmp_path)
    (adapter / WEIGHTS).write_bytes(b"")
    models = {name: ModelConfiguration(path="tiny") for name in ("tester", "target", "baseline")}
    models[role] = ModelConfiguration(path="tiny", adapter=str(adapter))
    with pytest.raises(ConfigurationError, match=f"^{role}.adapter is "):
        find_roles(models["tester"], models["target"], models["baseline"], None)
