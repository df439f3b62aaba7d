"""What depends on the launch: where gradients go, which process holds which weights, and how to gather them.

The trainer and the checkpoints only use an engine. This one serves a single process and DDP, where every process holds
all weights; ``fsdp.py`` and ``zero.py`` serve the launches that spread them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from astra_accel.config import TrainingConfiguration
from astra_accel.core.optional import SavesTester, offers
from astra_accel.distributed.step_module import StepModule

Named = tuple[str, torch.Tensor]
UpdateCheck = Callable[[float], None]


def make_engine(
    accelerator: Accelerator, module: StepModule, optimizer: torch.optim.Optimizer, config: TrainingConfiguration
) -> Engine:
    """Prepare a module and its optimizer for the current launch.

    Raises:
        ValueError: the launch would cast weights of 4 bits.
    """
    check_storage(accelerator, module)
    kind: type[Engine] = Engine
    if accelerator.distributed_type == DistributedType.FSDP:
        from astra_accel.distributed.fsdp import FSDPEngine as kind
    elif accelerator.distributed_type == DistributedType.DEEPSPEED:
        from astra_accel.distributed.zero import ZeROEngine as kind
    return kind(accelerator, module, optimizer, config)


def check_storage(accelerator: Accelerator, module: StepModule) -> None:
    """Reject 4-bit weights stored under a floating type, since casting them would corrupt them."""
    kind, precision = accelerator.distributed_type, accelerator.mixed_precision
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    # DeepSpeed keeps all weights in one type; FSDP2 casts only for mixed precision.
    cast_to = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if cast_to is None and kind == DistributedType.DEEPSPEED:
        cast_to = torch.float32
    for name, parameter in module.named_parameters():
        if type(parameter).__name__ == "Params4bit" and cast_to not in (None, parameter.dtype):
            raise ValueError(
                f"the launch casts weights to {cast_to}, but {name} is of 4 bits, stored under {parameter.dtype}; "
                f"expected {str(cast_to).removeprefix('torch.')} as the dtype of the quantised tester and target, or "
                f"another training.mixed_precision"
            )


def check_saving(system: Any) -> None:
    """Reject, before training, a system that can't write a tester unless it holds all of its weights.

    Raises:
        ValueError: its ``save_pretrained`` takes no ``state_dict``.
    """
    if not offers(system, SavesTester):
        return
    parameters = inspect.signature(system.save_pretrained).parameters.values()
    if not any(one.name == "state_dict" or one.kind == one.VAR_KEYWORD for one in parameters):
        raise ValueError(
            f"the launch shards the weights over processes, but {type(system).__name__}.save_pretrained takes no "
            f"state_dict to write whole ones from; expected save_pretrained(folder, state_dict)"
        )


class Engine:
    """Computes the steps on batches, and holds the weights and the optimizer's state.

    Args:
        accelerator: connects the processes.
        module: its forward is a step; stays reachable unwrapped.
        optimizer: the optimizer of its trained parameters.
        config: batch size, accumulation and clipping, if a launch must know them beforehand.

    Attributes:
        sharded: whether a process holds only a part of the trained weights or of the optimizer's state.
    """

    sharded = False

    def __init__(
        self,
        accelerator: Accelerator,
        module: StepModule,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfiguration,  # noqa: ARG002
    ) -> None:
        self.accelerator = accelerator
        self.module = module
        self.prepared, self.optimizer = accelerator.prepare(module, optimizer)

    def backward(self, loss: torch.Tensor) -> None:
        """Compute the gradient of a weighted loss, inside ``accelerator.accumulate``.

        An update sums it over micro-batches and processes. Accelerate divides by the number of micro-batches, and
        averages gradients over processes; both are undone here, since the weights of an update add up to 1.
        """
        accelerator = self.accelerator
        accelerator.backward(loss * accelerator.gradient_accumulation_steps * accelerator.num_processes)

    def step(self, max_norm: float | None, check: UpdateCheck) -> float:
        """Clip the gradients, step the optimizer and clear the gradients, after an update's last backward pass.

        Args:
            max_norm: the norm to clip to; None does not clip.
            check: gets the norm before the optimizer steps, and raises if it must not step.

        Returns:
            The norm of the whole gradient before clipping.
        """
        norm = self._clip(float("inf") if max_norm is None else max_norm)
        check(norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm

    def _clip(self, max_norm: float) -> float:
        return float(self.accelerator.clip_grad_norm_(self.prepared.parameters(), max_norm))

    def unsharded_weights(self) -> AbstractContextManager[None]:
        """A context in which the module's layers run without other processes. All processes must enter and leave it."""
        return nullcontext()

    def trained_state(self) -> Iterator[Named]:
        """The trained weights and the buffers by name, each whole, one after the other. All processes must call it."""
        yield from self.module.trained_state().items()

    def gathered_state(self) -> dict[str, torch.Tensor]:
        """All of them in the main process's memory; empty on the others. All processes must call it."""
        # Processes that don't keep a tensor drop it, so they hold one at a time.
        return {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.trained_state()
            if self.accelerator.is_main_process
        }

    def shape(self, own: torch.Tensor) -> torch.Size:
        """The unsharded shape of a trained weight."""
        return own.shape

    def load_trained_state(self, saved: Iterable[Named]) -> None:
        """Load trained weights and buffers, each whole and the same on every process. All processes must call it."""
        own = self.module.trained_state()
        with torch.no_grad():
            for name, tensor in saved:
                own[name].copy_(tensor)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The optimizer's ``param_groups`` as in its ``state_dict``."""
        groups: list[dict[str, Any]] = self.optimizer.state_dict()["param_groups"]
        return groups

    def optimizer_state(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The optimizer's state as in its ``state_dict``, whole for each parameter. All processes must call it."""
        yield from self.optimizer.state_dict()["state"].items()

    def load_optimizer(self, groups: list[dict[str, Any]], state: Mapping[int, dict[str, Any]]) -> None:
        """Load the optimizer's groups and its whole state."""
        self.optimizer.load_state_dict({"param_groups": groups, "state": dict(state)})
