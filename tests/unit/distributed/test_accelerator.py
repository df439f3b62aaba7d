"""The accelerator of a run (``distributed/accelerator.py``)."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, GradientAccumulationPlugin

from astra_accel.config import TrainingConfiguration
from astra_accel.distributed import accelerator as accelerator_module
from astra_accel.distributed.accelerator import check_accelerator, launch_advice, make_accelerator
from astra_accel.models.loading import precision
from tests.helpers.launches import Pretended


class TestMakeAccelerator:
    def test_it_is_as_configured(self):
        accelerator = make_accelerator(
            TrainingConfiguration(gradient_accumulation_steps=3, mixed_precision="bf16"), find_unused_parameters=False
        )

        assert accelerator.split_batches
        assert accelerator.gradient_accumulation_steps == 3
        assert accelerator.mixed_precision == "bf16"
        assert not accelerator.ddp_handler.find_unused_parameters
        assert accelerator.num_processes == 1

    def test_a_loss_may_leave_parameters_out_unless_told_otherwise(self):
        assert make_accelerator(TrainingConfiguration()).ddp_handler.find_unused_parameters

    def test_a_launch_of_processes_that_are_each_alone_is_an_error(self, monkeypatch):
        accelerator = Accelerator(cpu=True)
        check_accelerator(accelerator, TrainingConfiguration())
        monkeypatch.setenv("WORLD_SIZE", "2")

        with pytest.raises(RuntimeError, match=r"WORLD_SIZE is 2, but the accelerator has 1 .*each would train alone"):
            check_accelerator(accelerator, TrainingConfiguration())

    def test_a_batch_is_split_evenly(self, monkeypatch):
        accelerator = Pretended(num_processes=3)
        monkeypatch.setenv("WORLD_SIZE", "3")
        check_accelerator(accelerator, TrainingConfiguration(batch_size=6))

        with pytest.raises(ValueError, match=r"training\.batch_size is 16, .*expected a multiple of 3"):
            check_accelerator(accelerator, TrainingConfiguration())

    def test_trackers_that_the_accelerator_was_made_without_are_an_error(self):
        with pytest.raises(ValueError, match=r"training\.log_with is \['tensorboard'\].*made without trackers"):
            check_accelerator(Accelerator(cpu=True), TrainingConfiguration(log_with=["tensorboard"]))

    def test_accumulation_over_the_ends_of_experiences_is_an_error(self):
        plugin = GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
        accelerator = Accelerator(cpu=True, gradient_accumulation_plugin=plugin)

        with pytest.raises(ValueError, match=r"sync_with_dataloader is False"):
            check_accelerator(accelerator, TrainingConfiguration(gradient_accumulation_steps=2))

    def test_fsdp_1_is_refused(self):
        pretended = Pretended(distributed_type=DistributedType.FSDP, is_fsdp2=False)
        with pytest.raises(ValueError, match=r"by FSDP 1.*expected fsdp_version: 2"):
            check_accelerator(pretended, TrainingConfiguration())
        check_accelerator(Pretended(distributed_type=DistributedType.FSDP, is_fsdp2=True), TrainingConfiguration())

    def test_a_precision_that_the_device_lacks_is_refused(self, monkeypatch):
        with pytest.raises(ValueError, match=r"fp16, which is for GPUs.*expected bf16 or no"):
            make_accelerator(TrainingConfiguration(mixed_precision="fp16"))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "an old GPU")
        old = Pretended(mixed_precision="bf16", device=torch.device("cuda"))
        with pytest.raises(ValueError, match=r"bf16, which an old GPU does not compute in.*expected fp16 or no"):
            check_accelerator(old, TrainingConfiguration(mixed_precision="bf16"))

    @pytest.mark.parametrize(("computes", "expected"), [(True, "bf16"), (False, "no")])
    def test_an_automatic_precision_is_what_the_processor_computes_in(self, computes, expected, monkeypatch):
        monkeypatch.setattr(precision, "computes_in_bf16", lambda: computes)
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")  # the launch's: what is configured comes before it
        config = TrainingConfiguration(mixed_precision="auto")
        assert make_accelerator(config).mixed_precision == expected
        check_accelerator(Pretended(mixed_precision=expected), config)
        other = "no" if computes else "bf16"
        with pytest.raises(ValueError, match=rf"mixed_precision is '{expected}', .*made with '{other}'"):
            check_accelerator(Pretended(mixed_precision=other), config)

    def test_a_launch_that_builds_its_own_models_is_refused(self):
        pretended = Pretended(distributed_type=DistributedType.MEGATRON_LM)
        with pytest.raises(ValueError, match="MEGATRON_LM, which builds models of its own"):
            check_accelerator(pretended, TrainingConfiguration())

    @pytest.mark.parametrize(
        ("field", "configured", "made"), [("gradient_accumulation_steps", 4, 2), ("mixed_precision", "bf16", "no")]
    )
    def test_accelerator_and_configuration_agree(self, field, configured, made):
        config = TrainingConfiguration(**{field: configured})
        check_accelerator(Pretended(**{field: configured}), config)

        with pytest.raises(ValueError, match=rf"training\.{field} is {configured!r}, .*made with {made!r}"):
            check_accelerator(Pretended(**{field: made}), config)

    def test_accumulation_over_the_ends_of_loaders_is_refused(self):
        accelerator = Accelerator(
            cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=2, sync_with_dataloader=False)
        )

        with pytest.raises(ValueError, match=r"sync_with_dataloader is False.*must not span two experiences"):
            check_accelerator(accelerator, TrainingConfiguration(gradient_accumulation_steps=2))

    def test_a_precision_that_is_left_open_is_the_accelerators(self):
        check_accelerator(Pretended(mixed_precision="bf16"), TrainingConfiguration(mixed_precision=None))


class TestLaunchAdvice:
    @pytest.fixture(autouse=True)
    def _machine(self, monkeypatch):
        """8 cores, of which a process uses one."""
        monkeypatch.setattr(accelerator_module, "_num_cores", lambda: 8)
        monkeypatch.setattr(accelerator_module.torch, "get_num_threads", lambda: 1)
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    def test_idle_cores_are_told_with_the_number_to_set(self, monkeypatch):
        (told,) = launch_advice(Pretended(), TrainingConfiguration())
        assert "OMP_NUM_THREADS=8" in told

        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        (told,) = launch_advice(Pretended(num_processes=2), TrainingConfiguration())
        assert "OMP_NUM_THREADS=4" in told

    def test_cores_that_are_used_or_few_or_not_what_computes_are_no_news(self, monkeypatch):
        assert launch_advice(Pretended(device=torch.device("cuda")), TrainingConfiguration()) == []
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
        assert launch_advice(Pretended(num_processes=4), TrainingConfiguration()) == []
        monkeypatch.delenv("LOCAL_WORLD_SIZE")
        monkeypatch.setattr(accelerator_module.torch, "get_num_threads", lambda: 2)
        assert launch_advice(Pretended(), TrainingConfiguration()) == []

    def test_processes_without_an_episode_are_told(self, monkeypatch):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
        config = TrainingConfiguration(num_episodes_per_experience=5)
        assert launch_advice(Pretended(num_processes=5), config) == []
        (told,) = launch_advice(Pretended(num_processes=8), config)
        assert "num_episodes_per_experience is 5, so 3 of the 8 processes" in told


@pytest.mark.parametrize(
    ("environment", "builds"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}, 1),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, 0),
        ({"DS_ACCELERATOR": "cpu"}, 0),
    ],
)
def test_what_deepspeed_compiles_for_cpus_is_built_before_the_processes_meet(monkeypatch, environment, builds):
    done = []
    monkeypatch.setattr(accelerator_module, "build_for_cpu_processes", lambda: done.append("built"))
    monkeypatch.setattr(accelerator_module, "Accelerator", lambda: done.append("met") or Accelerator(cpu=True))
    monkeypatch.delenv("ACCELERATE_USE_DEEPSPEED", raising=False)
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    accelerator_module.new_accelerator()
    assert done == ["built"] * builds + ["met"]
