"""What a run in a process leaves for the next one: nothing."""

import signal
import sys
import warnings
from datetime import timedelta

import pytest
import torch
from accelerate import Accelerator

from astra_accel import AccelTrainer, TrainingConfiguration
from astra_accel.distributed.accelerator import make_accelerator
from tests.helpers.plain import build_plain, reset_accelerate
from tests.helpers.processes import run_processes


@pytest.fixture(autouse=True)
def alone():
    reset_accelerate()
    yield
    reset_accelerate()


def train(folder, **settings):
    """Train the plain system as a notebook's cell does: nothing is reset before."""
    config = TrainingConfiguration(
        **{"output_dir": folder, "lr": 0.05, "batch_size": 4, "training_steps": 3, "sample_steps": None} | settings
    )
    sampler, algorithm = build_plain()
    trainer = AccelTrainer(config, sampler, algorithm)
    trainer.train()
    return trainer, [parameter.detach().clone() for parameter in sampler.system.parameters()]


def same(one, other):
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


def test_each_run_trains_in_the_precision_that_is_configured(tmp_path):
    _, alone = train(tmp_path / "alone")
    first, in_bf16 = train(tmp_path / "a", mixed_precision="bf16")

    second, default = train(tmp_path / "b")
    third, named = train(tmp_path / "c", mixed_precision="no")

    assert [trainer.accelerator.mixed_precision for trainer in (first, second, third)] == ["bf16", "no", "no"]
    assert same(default, alone)
    assert same(named, alone)
    assert not same(in_bf16, alone)


def test_a_default_is_that_of_the_launch(tmp_path, monkeypatch):
    train(tmp_path / "a", mixed_precision="no")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")

    trainer, _ = train(tmp_path / "b")

    assert trainer.accelerator.mixed_precision == "bf16"


def test_each_run_accumulates_as_configured_and_earlier_ones_keep_theirs(tmp_path):
    _, alone = train(tmp_path / "alone")
    first, _ = train(tmp_path / "a", gradient_accumulation_steps=2)

    second, weights = train(tmp_path / "b")

    assert first.accelerator.gradient_accumulation_steps == 2
    assert second.accelerator.gradient_accumulation_steps == 1
    assert same(weights, alone)


def test_an_accelerator_that_got_an_earlier_run_s_precision_is_refused(tmp_path):
    train(tmp_path / "a", mixed_precision="bf16")
    config = TrainingConfiguration(output_dir=tmp_path / "b")
    own = Accelerator(cpu=True, dataloader_config=make_accelerator(config).dataloader_config)
    AccelTrainer(config, *build_plain(), accelerator=own)  # in float32, after one in float32
    train(tmp_path / "c", mixed_precision="bf16")
    own = Accelerator(cpu=True)

    with pytest.raises(ValueError, match=r"^training\.mixed_precision is null, and the accelerator has 'bf16', which"):
        AccelTrainer(config, *build_plain(), accelerator=own)
    with pytest.raises(ValueError, match=r"mixed_precision is 'no', but the accelerator was made with 'bf16'"):
        AccelTrainer(config.model_copy(update={"mixed_precision": "no"}), *build_plain(), accelerator=own)
    AccelTrainer(config.model_copy(update={"mixed_precision": "bf16"}), *build_plain(), accelerator=own)


def test_a_run_leaves_the_process_as_it_found_it(tmp_path):
    before = state_of_process()

    train(tmp_path, mixed_precision="bf16")

    assert state_of_process() == before


def state_of_process():
    return {
        "default type": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "signals": [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)],
        "streams": (sys.stdout, sys.stderr),
        "warnings": list(warnings.filters),
    }


@pytest.mark.slow
def test_on_several_processes_the_group_stays_and_its_timeout_is_the_run_s(tmp_path):
    assert run_processes(2, _train_twice, tmp_path) == [("no", timedelta(seconds=77), True)] * 2


def _train_twice(folder):
    train(folder / "a", mixed_precision="bf16", timeout=55)
    group = torch.distributed.group.WORLD
    trainer, _ = train(folder / "b", timeout=77)
    timeout = group._get_backend(torch.device("cpu")).options._timeout
    return trainer.accelerator.mixed_precision, timeout, torch.distributed.group.WORLD is group
