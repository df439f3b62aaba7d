"""What a launch does differently: where gradients go, who holds which weights, and how to have them whole.

The trainer and the checkpoints talk to an engine alone. This one serves a single process and DDP, where every process
holds all weights; ``fsdp.py`` and ``zero.py`` serve the launches that spread them.
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
    """Prepare a module and its optimizer for the launch that there is.

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
    """Find weights of 4 bits, stored under a floating type, which are no numbers any more once they are cast."""
    kind, precision = accelerator.distributed_type, accelerator.mixed_precision
    if kind not in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        return
    # DeepSpeed has all weights in one type, FSDP2 casts for a mixed precision alone.
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
    """Find a system that can't write a tester whose weights it does not hold whole, before it is trained.

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
    """Steps on batches, and holds the weights and the optimizer's state.

    Args:
        accelerator: the processes.
        module: whose forward is a step; stays reachable as it is.
        optimizer: of its trained parameters.
        config: batch size, accumulation and clipping, where a launch has to know them beforehand.

    Attributes:
        sharded: whether a process holds no more than a part of the trained weights or of the optimizer's state.
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
        """Compute the gradient of a weighted loss, within ``accelerator.accumulate``.

        An update adds it up over micro-batches and processes. Accelerate divides by the number of micro-batches, and
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
        """A context in which the module's layers run on this process alone. All processes enter and leave together."""
        return nullcontext()

    def trained_state(self) -> Iterator[Named]:
        """The trained weights and the buffers by name, each whole, one after the other. All processes together."""
        yield from self.module.trained_state().items()

    def gathered_state(self) -> dict[str, torch.Tensor]:
        """All of them in memory of the main process; empty on the others. All processes together."""
        # Each is dropped where it is not kept, so the others hold one of them at a time.
        return {
            name: tensor.detach().cpu().contiguous()
            for name, tensor in self.trained_state()
            if self.accelerator.is_main_process
        }

    def shape(self, own: torch.Tensor) -> torch.Size:
        """The shape of a trained weight where it is whole."""
        return own.shape

    def load_trained_state(self, saved: Iterable[Named]) -> None:
        """Take over trained weights and buffers, each whole and the same on every process. All processes together."""
        own = self.module.trained_state()
        with torch.no_grad():
            for name, tensor in saved:
                own[name].copy_(tensor)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """The optimizer's ``param_groups`` as in its ``state_dict``."""
        groups: list[dict[str, Any]] = self.optimizer.state_dict()["param_groups"]
        return groups

    def optimizer_state(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The optimizer's state as in its ``state_dict``, each parameter's whole. All processes together."""
        yield from self.optimizer.state_dict()["state"].items()

    def load_optimizer(self, groups: list[dict[str, Any]], state: Mapping[int, dict[str, Any]]) -> None:
        """Take over both, whole."""
        self.optimizer.load_state_dict({"param_groups": groups, "state": dict(state)})
