"""Makes the accelerator of a run, and checks that its launch trains what is configured."""

from __future__ import annotations

import os
import weakref
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import (
    DataLoaderConfiguration,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    LoggerType,
)

from astra_accel.config import TrainingConfiguration
from astra_accel.distributed.collectives import gather_results
from astra_accel.distributed.op_builds import build_for_cpu_processes
from astra_accel.models.loading.precision import auto_precision

MANY_CORES = 4
"""From this many cores per process, a single thread is probably not intended."""


EXTRAS = {"tensorboard": "trackers", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow"}
"""The extra of the package that installs each tracker."""


def make_accelerator(config: TrainingConfiguration, *, find_unused_parameters: bool = True) -> Accelerator:
    """The accelerator of a run: one global batch split over the processes, gradients accumulated as configured.

    Args:
        config: batch size, precision, accumulation and trackers.
        find_unused_parameters: whether a loss may leave a trained parameter out (e.g. a value head). Under DDP this
            costs a traversal of the graph for each batch; without it, such a loss hangs or fails.

    Raises:
        ValueError, RuntimeError: see :func:`check_accelerator`; or a tracker is unknown, is not installed, or has no
            folder to write to.
    """
    check_trackers(config)
    timeout = timedelta(seconds=config.timeout)
    accelerator = new_accelerator(
        # Without this, a launch of several CPU processes would train each one independently.
        cpu=not torch.accelerator.is_available(),
        mixed_precision=_asked_precision(config),
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        log_with=config.log_with or None,
        project_dir=None if config.output_dir is None else str(config.output_dir),
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters),
            InitProcessGroupKwargs(timeout=timeout),
        ],
    )
    if torch.distributed.is_initialized():  # a group from an earlier run keeps its own timeout
        torch.distributed.distributed_c10d._set_pg_timeout(timeout)
    check_accelerator(accelerator, config)
    if config.mixed_precision == "auto":
        _check_alike(accelerator)
    return accelerator


def new_accelerator(**options: Any) -> Accelerator:
    """An accelerator that inherits nothing from an earlier one of this process, as in a sweep in a notebook.

    Accelerate keeps the settings of the first one (precision, plugins, accumulation) in classes, for all later ones,
    without a warning if a later one relies on the defaults. So the classes get fresh state here; earlier accelerators
    keep theirs and continue unchanged. The process group stays the same.
    """
    for kind in (PartialState, AcceleratorState, GradientState):
        kind._shared_state = {}
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true" and os.environ.get("DS_ACCELERATOR") == "cpu":
        build_for_cpu_processes()
    accelerator = Accelerator(**options)
    accelerator.state.made_for = weakref.ref(accelerator)
    return accelerator


def check_accelerator(accelerator: Accelerator, config: TrainingConfiguration) -> None:
    """Reject launches that would train something other than configured.

    Raises:
        RuntimeError: several processes were launched, but they are not connected.
        ValueError: the global batch can't be split, the device lacks the precision, or the accelerator and the
            configuration disagree.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise RuntimeError(
            f"WORLD_SIZE is {launched}, but the accelerator has {accelerator.num_processes} process(es): each would "
            f"train alone. On CPU make it with Accelerator(cpu=True), or pass no accelerator"
        )
    _check_sharding(accelerator, config)
    _check_precision(accelerator)
    if not accelerator.gradient_state.sync_with_dataloader:
        raise ValueError(
            "the accelerator accumulates gradients over the ends of loaders (sync_with_dataloader is False), but an "
            "update must not span two experiences; expected True"
        )
    if config.batch_size % accelerator.num_processes:
        raise ValueError(
            f"training.batch_size is {config.batch_size}, which {accelerator.num_processes} processes can't share "
            f"evenly; expected a multiple of {accelerator.num_processes}"
        )
    if config.log_with and not accelerator.log_with:
        raise ValueError(f"training.log_with is {config.log_with}, but the accelerator was made without trackers")
    _check_inherited(accelerator, config)
    asked = {
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "mixed_precision": _asked_precision(config) or accelerator.mixed_precision,
    }
    for name, value in asked.items():
        if getattr(accelerator, name) != value:
            raise ValueError(
                f"training.{name} is {value!r}, but the accelerator was made with {getattr(accelerator, name)!r}"
            )


def _check_sharding(accelerator: Accelerator, config: TrainingConfiguration) -> None:
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        from astra_accel.distributed.zero import check_deepspeed

        check_deepspeed(accelerator, config)
    if kind == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise ValueError(
            "the launch shards the weights by FSDP 1, whose flat parameters must all have one type and be trained "
            "together, which LoRA's are not; expected fsdp_version: 2 in the fsdp_config of the accelerate config"
        )
    if kind == DistributedType.MEGATRON_LM:
        raise ValueError(
            f"the launch is of {kind.value}, which builds models of its own; expected one process, DDP, FSDP2 or "
            f"DeepSpeed (see accelerate_configs)"
        )


def _check_inherited(accelerator: Accelerator, config: TrainingConfiguration) -> None:
    """Reject a caller's accelerator that inherited its precision from an earlier run."""
    made_for = accelerator.state.__dict__.get("made_for")
    if made_for is None or made_for() is accelerator or config.mixed_precision is not None:
        return
    found, expected = accelerator.mixed_precision, os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if found != expected:
        raise ValueError(
            f"training.mixed_precision is null, and the accelerator has {found!r}, which Accelerate keeps from an "
            f"earlier run in this process; expected {expected!r}. Set training.mixed_precision to what is meant, or "
            f"pass no accelerator"
        )


def _asked_precision(config: TrainingConfiguration) -> str | None:
    """The precision that is configured; None for that of the launch."""
    if config.mixed_precision != "auto":
        return config.mixed_precision
    # Before there is an accelerator: Accelerate wants to know the precision when it makes one.
    kind = torch.accelerator.current_accelerator(check_available=True)
    return auto_precision(kind or "cpu")


def _check_alike(accelerator: Accelerator) -> None:
    found = gather_results(accelerator, lambda: accelerator.mixed_precision)
    if len(set(found)) > 1:
        raise ValueError(
            f"training.mixed_precision is auto, which is {', '.join(found)} on the {len(found)} processes; expected "
            f"devices that compute alike, or bf16 or no"
        )


def _check_precision(accelerator: Accelerator) -> None:
    precision, device = accelerator.mixed_precision, accelerator.device.type
    if precision == "fp16" and device == "cpu":
        raise ValueError("mixed precision is fp16, which is for GPUs, but the device is a CPU; expected bf16 or no")
    if precision == "bf16" and device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ValueError(
            f"mixed precision is bf16, which {torch.cuda.get_device_name(accelerator.device)} does not compute in; "
            f"expected fp16 or no"
        )


def launch_advice(accelerator: Accelerator, config: TrainingConfiguration) -> list[str]:
    """Advice on a launch that works as configured but leaves a part of the machine idle."""
    advice = []
    num_processes, num_episodes = accelerator.num_processes, config.num_episodes_per_experience
    if num_processes > num_episodes:
        advice.append(
            f"training.num_episodes_per_experience is {num_episodes}, so {num_processes - num_episodes} of the "
            f"{num_processes} processes have nothing to roll out"
        )
    threads = _num_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if accelerator.device.type == "cpu" and torch.get_num_threads() == 1 and threads >= MANY_CORES:
        advice.append(
            f"each process computes on one of the {threads} cores that it could have; set OMP_NUM_THREADS={threads} "
            f"(`accelerate launch` sets 1 unless you give --num_cpu_threads_per_process {threads})"
        )
    return advice


def _num_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_trackers(config: TrainingConfiguration) -> None:
    """Reject trackers that would write nothing. Accelerate silently drops one that is not installed.

    Raises:
        ValueError: one is unknown, is not installed, or has no folder to write to.
    """
    of_accelerate, installed = LoggerType.list(), [str(name) for name in get_available_trackers()]
    for name in config.log_with:
        if name not in of_accelerate and name not in LOGGER_TYPE_TO_CLASS:
            raise ValueError(f"training.log_with has {name!r}; expected some of {', '.join(of_accelerate)}")
        if name in of_accelerate and name not in ("all", *installed):
            install = f"'astra-accel[{EXTRAS[name]}]'" if name in EXTRAS else name
            raise ValueError(
                f"training.log_with has {name!r}, whose package is not installed; "
                f"installed are: {', '.join(installed) or 'none'} (pip install {install})"
            )
    for name in installed if "all" in config.log_with else config.log_with:
        if LOGGER_TYPE_TO_CLASS[name].requires_logging_directory and config.output_dir is None:
            raise ValueError(f"training.log_with has {name!r}, which writes files; expected a training.output_dir")
