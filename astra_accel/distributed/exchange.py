"""Python objects from every process to every process, over host memory also where tensors go over NCCL.

A rollout ends in an exchange, so that is where processes wait for one another for minutes. Over NCCL, a wait that takes
too long is ended by its watchdog, which aborts the process; gloo raises an error, and one as soon as another process
has died. https://pytorch.org/docs/stable/distributed.html
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import gather_object as gather_over_default

_made: dict[str, Any] = {}
"""The group for exchanges, and the default group that it was made beside: a process may come to have another."""


def gather_object(own: list[Any]) -> list[Any]:
    """The items of everybody's list, in the order of ranks; all processes call it.

    Raises:
        RuntimeError: a process is gone, or did not answer in the time of the default group; or no group over host
            memory can be made.
    """
    group = _group_on_hosts()
    if group is None:
        return gather_over_default(own)
    results: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(results, own, group=group)
    return [item for result in results for item in result]


def _group_on_hosts() -> Any:
    """A gloo group of all processes, where the default group takes tensors of devices alone; made once."""
    if not dist.is_initialized():
        return None
    default = dist.group.WORLD
    if _takes_host_memory(default):
        return None
    if "beside" not in _made or _made["default"] is not default:
        try:
            _made.update(default=default, beside=dist.new_group(backend="gloo", timeout=_timeout(default)))
        except RuntimeError as error:
            raise RuntimeError(
                "processes can't reach one another over gloo, which exchanges take beside NCCL; set "
                f"GLOO_SOCKET_IFNAME to the network interface between the machines: {error}"
            ) from error
    return _made["beside"]


def _takes_host_memory(group: Any) -> bool:
    return torch.device("cpu") in group._device_types


def _timeout(group: Any) -> timedelta:
    return group._get_backend(group._device_types[0]).options._timeout
