"""The engine of FSDP2: every parameter is a ``DTensor``, and each process holds a slice of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from astra_accel.config import TrainingConfiguration
from astra_accel.distributed.engine import Engine, Named
from astra_accel.distributed.step_module import StepModule


class FSDPEngine(Engine):
    """See :class:`~astra_accel.distributed.engine.Engine`."""

    sharded = True

    def __init__(
        self,
        accelerator: Accelerator,
        module: StepModule,
        optimizer: torch.optim.Optimizer,
        config: TrainingConfiguration,
    ) -> None:
        plugin = accelerator.state.fsdp_plugin
        if plugin.mixed_precision_policy is not None:
            # Accelerate would reduce gradients, and return the loss, in the forward's type, with 8 bits of a number.
            plugin.mixed_precision_policy = replace(
                plugin.mixed_precision_policy, reduce_dtype=torch.float32, output_dtype=None
            )
        super().__init__(accelerator, module, optimizer, config)

    def _clip(self, max_norm: float) -> float:
        return float(_to_full(self.accelerator.clip_grad_norm_(self.prepared.parameters(), max_norm)))

    @contextmanager
    def unsharded_weights(self) -> Iterator[None]:
        """Gather the weights, one all-gather per layer; then no forward waits for another process."""
        shards = [module for module in self.prepared.modules() if isinstance(module, FSDPModule)]
        for shard in shards:
            shard.unshard()
        try:
            with without_hooks(self.prepared):
                yield
        finally:
            for shard in shards:
                shard.reshard()

    def trained_state(self) -> Iterator[Named]:
        """Each trained weight, gathered when it is its turn."""
        for name, tensor in super().trained_state():
            yield name, _to_full(tensor)

    def load_trained_state(self, saved: Iterable[Named]) -> None:
        """Load this process's part of each weight."""
        own = self.module.trained_state()
        super().load_trained_state((name, _shard_like(tensor, own[name])) for name, tensor in saved)

    def optimizer_state(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each parameter's state, gathered when it is its turn."""
        for index, values in super().optimizer_state():
            yield index, {name: _to_full(value) for name, value in values.items()}

    def load_optimizer(self, groups: list[dict[str, Any]], state: Mapping[int, dict[str, Any]]) -> None:
        """Load the groups, and this process's part of the state."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        sliced = {
            index: {name: _shard_like(value, parameters[index]) for name, value in values.items()}
            for index, values in state.items()
        }
        super().load_optimizer(groups, sliced)


@contextmanager
def without_hooks(module: torch.nn.Module) -> Iterator[None]:
    """Run a module's layers without the hooks on their forwards.

    Sharding hooks gather a layer's weights, or count its forwards to gather the next ones early; either would wait for
    processes that run other forwards, or fewer of them.
    """
    kept = [(layer, layer._forward_pre_hooks, layer._forward_hooks) for layer in module.modules()]
    for layer, _, _ in kept:
        layer._forward_pre_hooks, layer._forward_hooks = OrderedDict(), OrderedDict()
    try:
        yield
    finally:
        for layer, before, after in kept:
            layer._forward_pre_hooks, layer._forward_hooks = before, after


def _to_full(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _shard_like(saved: Any, own: torch.Tensor) -> Any:
    """A whole tensor, sliced like ``own``. A number, or a tensor of another shape (a count of steps), is unchanged."""
    if not isinstance(own, DTensor) or not isinstance(saved, torch.Tensor) or saved.shape != own.shape:
        return saved
    # Every process has the whole tensor, so no source is named and nothing is sent. A view would keep the whole alive.
    return distribute_tensor(saved.to(own.device), own.device_mesh, own.placements, src_data_rank=None).clone()
