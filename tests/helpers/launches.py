"""Every kind of launch on CPU processes, as ``accelerate launch`` makes them of GPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator, DeepSpeedPlugin, FullyShardedDataParallelPlugin, InitProcessGroupKwargs
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DataLoaderConfiguration, DistributedType

from astra_accel import TrainingConfiguration
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.distributed.engine import Engine
from astra_accel.distributed.op_builds import build_for_cpu_processes

SHARDED = ("fsdp2", "zero1", "zero2", "zero3")
OFFLOADED = ("zero2_offload", "zero3_offload")
"""Optimizer state, and at stage 3 weights too, in memory of the host."""
LAUNCHES = ("ddp", *SHARDED)


class Pretended:
    """An accelerator of this process that says something else of itself."""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)
        self._accelerator = Accelerator(cpu=True)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._accelerator, name)


def make_launch(kind: str, config: TrainingConfiguration) -> Accelerator:
    """The accelerator of a launch kind (one of ``LAUNCHES`` or ``OFFLOADED``) on the processes that there are."""
    if kind == "ddp":
        return make_accelerator(config)
    if kind == "fsdp2":
        return _fsdp2(config)
    stage, _, offload = kind.removeprefix("zero").partition("_")
    return _zero(int(stage), config, offload="cpu" if offload else "none")


def step_on(engine: Engine, batches: Sequence[Any]) -> float:
    """One update whose loss is the sum over some batches; the norm of its gradient."""
    accelerator = engine.accelerator
    accelerator.step, accelerator.gradient_accumulation_steps = 0, len(batches)
    for batch in batches:
        with accelerator.accumulate(engine.prepared):
            loss, _ = engine.prepared(batch)
            engine.backward(loss)
    return engine.step(None, lambda _: None)


def _fsdp2(config: TrainingConfiguration) -> Accelerator:
    """FSDP2 over gloo, which torch has and Accelerate offers for GPUs alone."""
    accelerator = make_accelerator(config)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        reshard_after_forward=True,
        state_dict_type="SHARDED_STATE_DICT",
    )
    if accelerator.mixed_precision != "no":
        accelerator.state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
    for shared in (AcceleratorState._shared_state, PartialState._shared_state):
        shared["distributed_type"] = DistributedType.FSDP
    return accelerator


def _zero(stage: int, config: TrainingConfiguration, offload: str) -> Accelerator:
    """DeepSpeed over gloo: with ``cpu=True`` Accelerate would leave DeepSpeed out."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    build_for_cpu_processes()
    return Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[InitProcessGroupKwargs(backend="gloo")],
        deepspeed_plugin=DeepSpeedPlugin(
            zero_stage=stage,
            zero3_init_flag=False,
            offload_optimizer_device=offload,
            offload_param_device=offload if stage == 3 else "none",
        ),
    )
