from types import SimpleNamespace

import pytest
from accelerate import DeepSpeedPlugin

from astra_accel import TrainingConfiguration
from astra_accel.distributed.zero import add_gradients_in_float32, check_deepspeed

CONFIG = TrainingConfiguration(batch_size=8, gradient_accumulation_steps=2, max_grad_norm=1.0)


def check(zero_optimization=None, num_processes=2, zero3_init_flag=False, config=CONFIG, **settings):
    """Check the run above against a DeepSpeed configuration."""
    plugin = DeepSpeedPlugin(
        hf_ds_config={"zero_optimization": {"stage": 3, **(zero_optimization or {})}, **settings},
        zero3_init_flag=zero3_init_flag,
    )
    accelerator = SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin), num_processes=num_processes)
    check_deepspeed(accelerator, config)


AUTO = {
    "train_micro_batch_size_per_gpu": "auto",
    "train_batch_size": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
}
SAME = {
    "train_micro_batch_size_per_gpu": 4,
    "train_batch_size": 16,
    "gradient_accumulation_steps": 2,
    "gradient_clipping": 1.0,
}


@pytest.mark.parametrize("settings", [AUTO, SAME])
def test_what_follows_from_the_run_may_be_auto_or_the_same(settings):
    check(**settings)


@pytest.mark.parametrize(("name", "value"), [("train_batch_size", 8), ("gradient_clipping", 0.5)])
def test_another_value_is_an_error(name, value):
    with pytest.raises(
        ValueError, match=rf"{name} is {value} in the DeepSpeed.*but {SAME[name]} follows from training"
    ):
        check(**{**SAME, name: value})


def test_auto_that_nothing_fills_is_an_error():
    with pytest.raises(ValueError, match=r"zero_optimization\.reduce_bucket_size is auto.*nothing fills it"):
        check({"reduce_bucket_size": "auto"}, **AUTO)


@pytest.mark.parametrize(("section", "field"), [("optimizer", "optimizer"), ("scheduler", "lr_scheduler")])
def test_an_optimizer_or_a_schedule_besides_the_runs_own_is_an_error(section, field):
    with pytest.raises(ValueError, match=rf"section '{section}'; expected none, since training\.{field} says it"):
        check(**AUTO, **{section: {"type": "Adam"}})


def test_spreading_the_frozen_models_is_an_error():
    with pytest.raises(ValueError, match="zero3_init_flag is true"):
        check(zero3_init_flag=True, **AUTO)


@pytest.mark.parametrize("optimizer", ["sgd", "rmsprop"])
def test_an_optimizer_that_would_become_another_on_the_host_is_an_error(optimizer):
    offload = {"offload_optimizer": {"device": "cpu"}}
    with pytest.raises(ValueError, match=rf"optimizer is '{optimizer}', for which Accelerate would take Adam"):
        check(offload, config=CONFIG.model_copy(update={"optimizer": optimizer}), **AUTO)
    check(offload, **AUTO)
    check({"offload_optimizer": {"device": "none"}}, config=CONFIG.model_copy(update={"optimizer": optimizer}), **AUTO)


FLOAT32 = {"communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, FLOAT32),
        ({"communication_data_type": None, "data_types": None}, FLOAT32),
        ({"communication_data_type": "bf16"}, {**FLOAT32, "communication_data_type": "bf16"}),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, {**FLOAT32, "data_types": {"grad_accum_dtype": "bf16"}}),
        (
            {"data_types": {"param_dtype": "bf16"}},
            {**FLOAT32, "data_types": {**FLOAT32["data_types"], "param_dtype": "bf16"}},
        ),
    ],
)
@pytest.mark.parametrize("zero", [{"stage": 2}, {"stage": 3, "offload_optimizer": {"device": "cpu"}}])
def test_gradients_are_added_up_in_float32_unless_the_configuration_says_otherwise(given, expected, zero):
    settings = {"zero_optimization": zero, **given}
    add_gradients_in_float32(settings)
    assert settings == {"zero_optimization": zero, **expected}


def test_buffers_on_the_host_keep_their_type():
    """DeepSpeed gives them the forward's at stage 1 and 2, and would mix the two."""
    settings = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    add_gradients_in_float32(settings)
    assert settings["communication_data_type"] == "fp32"
    assert "data_types" not in settings
