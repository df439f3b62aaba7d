"""The one module that Accelerate prepares: its forward is the algorithm's step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch


class StepModule(torch.nn.Module):
    """Holds the system's trained modules; ``forward(batch)`` is ``algorithm.step(batch)``.

    So the hooks of DDP, the sharding of FSDP2 and the engine of DeepSpeed see exactly one forward per batch, whatever
    the algorithm does inside, and the modules stay reachable, unwrapped, for rollouts.

    The modules are the system's attributes (an attribute may also be a list, tuple or dict of modules, or a parameter)
    that own the parameters yielded by ``system.parameters()``. The system itself need not be a module.

    Raises:
        ValueError: ``system.parameters()`` yields nothing that can be trained, or a parameter that no attribute owns.
    """

    def __init__(self, system: Any, algorithm: Any) -> None:
        super().__init__()
        # The method, not the algorithm: an algorithm that is a module would register its system's frozen parts.
        self._step = algorithm.step
        wanted = [parameter for parameter in system.parameters() if parameter.requires_grad]
        if not wanted:
            raise ValueError(f"{type(system).__name__}.parameters() yields no parameter that requires a gradient")
        owners = dict(_owners(system))
        missing = {id(parameter): parameter for parameter in wanted}
        for name, owner in owners.items():
            owned = [owner] if isinstance(owner, torch.nn.Parameter) else list(owner.parameters())
            if any(id(parameter) in missing for parameter in owned):
                setattr(self, self._free_name(name.replace(".", "_")), owner)
                for parameter in owned:
                    missing.pop(id(parameter), None)
        # FSDP finds the layers to shard one by one under this name.
        self._no_split_modules = sorted(_layer_classes(self))
        for index, parameter in enumerate(wanted):
            if id(parameter) in missing:
                raise ValueError(
                    f"parameter {index} of {type(system).__name__}.parameters(), of shape {tuple(parameter.shape)}, "
                    f"belongs to no attribute of the system; expected it in one of {', '.join(owners) or 'none'}"
                )

    def forward(self, batch: Any) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """The loss of a batch and what to log."""
        return self._step(batch)

    def _free_name(self, name: str) -> str:
        """The name, with underscores appended if the module already has such an attribute."""
        while hasattr(self, name):
            name += "_"
        return name

    def trained_state(self) -> dict[str, torch.Tensor]:
        """The trained parameters and the buffers by name, without copying: what a checkpoint must hold."""
        trained = {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}
        persistent = self.state_dict(keep_vars=True)
        return trained | {name: buffer for name, buffer in self.named_buffers() if name in persistent}


def _layer_classes(module: torch.nn.Module) -> set[str]:
    """The layer classes, by name, that the models inside declare and contain."""
    named = {name for part in module.modules() for name in getattr(part, "_no_split_modules", None) or ()}
    return named & {type(part).__name__ for part in module.modules()}


def _owners(system: Any) -> Iterator[tuple[str, torch.nn.Module | torch.nn.Parameter]]:
    attributes = dict(vars(system))
    if isinstance(system, torch.nn.Module):
        for name in vars(torch.nn.Module()):  # its registries, which hold the children under other names
            attributes.pop(name, None)
        attributes |= dict(system.named_children()) | dict(system.named_parameters(recurse=False))
    for name, value in attributes.items():
        if isinstance(value, Mapping):
            members = [(f"{name}.{key}", member) for key, member in value.items()]
        elif isinstance(value, list | tuple):
            members = [(f"{name}.{index}", member) for index, member in enumerate(value)]
        else:
            members = [(name, value)]
        for label, member in members:
            if isinstance(member, torch.nn.Module | torch.nn.Parameter):
                yield label, member
