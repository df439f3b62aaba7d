"""Which Accelerate configurations a machine can run, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astra_accel.doctor.machine import Machine
from astra_accel.doctor.packages import can_be_found, pip_line


@dataclass(frozen=True)
class Launch:
    """An Accelerate configuration on this machine.

    Attributes:
        name: the name of its file.
        fits: whether it can be launched unchanged.
        notes: why not, or what the user should know.
    """

    name: str
    fits: bool
    notes: list[str]


def look_at_launch(file: Path, machine: Machine) -> Launch:
    """Check whether a configuration fits the machine."""
    if machine.kind is None:
        return Launch(file.stem, False, ["needs torch"])
    try:
        import yaml
    except ImportError as error:
        return Launch(file.stem, False, [f"can't be read: {error}"])
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    problems = reasons_against(settings, machine)
    return Launch(file.stem, not problems, problems or notes_on(settings))


def reasons_against(settings: Mapping[str, Any], machine: Machine) -> list[str]:
    """Why a configuration can't be launched; empty if it can."""
    processes = settings["num_processes"] // settings["num_machines"]
    if settings.get("use_cpu"):
        few = processes > machine.cores
        return [f"num_processes is {processes}, but there are {machine.cores} cores"] if few else []
    if machine.kind == "cpu":
        return ["is for GPUs, and there is none"]
    reasons = []
    if processes > len(machine.devices):
        each = " on this machine" if settings["num_machines"] > 1 else ""
        reasons.append(
            f"num_processes comes to {processes}{each}, but there are {len(machine.devices)} devices; set it to "
            f"{len(machine.devices) * settings['num_machines']}"
        )
    if settings["mixed_precision"] == "bf16" and not all(device.bf16 for device in machine.devices[:processes]):
        reasons.append("mixed_precision is bf16, in which not all devices compute; set it to fp16")
    if settings["distributed_type"] == "DEEPSPEED" and not can_be_found("deepspeed"):
        reasons.append(f"needs DeepSpeed: {pip_line('deepspeed')}")
    return reasons


def notes_on(settings: Mapping[str, Any]) -> list[str]:
    """What the user should know about a configuration that fits."""
    num_machines = settings["num_machines"]
    if num_machines == 1:
        return []
    return [
        f"the same command on each of {num_machines} machines, with its own --machine_rank; main_process_ip is "
        f"{settings['main_process_ip']}"
    ]
