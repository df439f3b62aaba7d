"""Models are built whole where DeepSpeed's stage 3 is on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from astra_accel.config import ModelConfiguration
from astra_accel.models.loading.model_files import find_model
from astra_accel.models.loading.tiny import build_tiny, save_tiny
from astra_accel.scorers.pretrained import load_frozen
from astra_accel.whole_models import build_skeleton, loaded_whole

SETTINGS = {"train_batch_size": 1, "zero_optimization": {"stage": 3}}


@pytest.fixture
def stage_3() -> Iterator[None]:
    """What an accelerator of such a launch leaves behind; kept alive, since transformers holds it weakly."""
    settings = HfDeepSpeedConfig(SETTINGS)
    assert is_deepspeed_zero3_enabled()
    yield
    unset_hf_deepspeed_config()
    del settings


@pytest.mark.usefixtures("stage_3")
def test_the_stage_is_off_in_the_block_alone() -> None:
    with loaded_whole():
        assert not is_deepspeed_zero3_enabled()
    assert is_deepspeed_zero3_enabled()
    with pytest.raises(KeyError), loaded_whole():
        raise KeyError
    assert is_deepspeed_zero3_enabled()


def test_without_a_stage_there_is_none_afterwards() -> None:
    with loaded_whole():
        assert not is_deepspeed_zero3_enabled()
    assert not is_deepspeed_zero3_enabled()


@pytest.mark.usefixtures("stage_3")
def test_a_skeleton_has_the_sizes_of_the_model_and_no_numbers() -> None:
    model, _ = build_tiny()
    skeleton = build_skeleton(model.config, trust_remote_code=False)
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert {name: tensor.shape for name, tensor in skeleton.named_parameters()} == {
        name: tensor.shape for name, tensor in model.named_parameters()
    }


@pytest.mark.usefixtures("stage_3")
@pytest.mark.parametrize("who", ["role", "scorer"])
def test_saved_models_load_with_all_of_their_weights(who: str, tmp_path: Path) -> None:
    save_tiny(tmp_path)
    if who == "role":
        loaded = find_model(ModelConfiguration(path=str(tmp_path)), "target").load("auto")
    else:
        loaded = load_frozen(AutoModelForCausalLM, str(tmp_path), "cpu", None)
    model, _ = build_tiny()
    expected = model.state_dict()
    assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(bool((tensor == expected[name]).all()) for name, tensor in loaded.state_dict().items())
