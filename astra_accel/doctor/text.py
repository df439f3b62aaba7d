"""A diagnosis as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from astra_accel.doctor.diagnosis import Diagnosis, LockFound
from astra_accel.doctor.machine import Device, Machine
from astra_accel.doctor.packages import Package

SIGNS = {True: "ok", False: "no", None: "?"}


def as_text(found: Diagnosis) -> str:
    """What was found, what to do about it, and whether a run can start."""
    return "\n".join(
        [
            f"astra-accel {found.version} on Python {found.python}",
            *_part("Packages", [(_sign(package), *_described(package)) for package in found.required]),
            *_part("Machine", list(_machine(found.machine))),
            *_part("Extras", list(_extras(found))),
            *_part(
                "Launches (accelerate_configs)",
                [(SIGNS[launch.fits], launch.name, "; ".join(launch.notes)) for launch in found.launches],
            ),
            *_part("Builds", [(SIGNS[_is_in_order(lock)], lock.name, lock.advice) for lock in found.build_locks]),
            *_part("Configuration", [(SIGNS[check.good], check.what, check.found) for check in found.configuration]),
            *([] if found.hub is None else ["", found.hub]),
            "",
            *_verdict(found),
        ]
    )


def _part(title: str, rows: Sequence[tuple[str, str, str]]) -> list[str]:
    """A title and its rows with aligned columns; empty if there are no rows."""
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"  {sign:<{widths[0]}}  {name:<{widths[1]}}  {rest}".rstrip() for sign, name, rest in rows]
    return ["", title, *lines] if rows else []


def _is_in_order(lock: LockFound) -> bool | None:
    return None if lock.abandoned is None else not lock.abandoned


def _sign(package: Package) -> str:
    return SIGNS[package.problem is None]


def _described(package: Package) -> tuple[str, str]:
    lowest = f" (at least {package.lowest})" if package.lowest and package.installed is None else ""
    return package.name, f"{package.problem}{lowest}" if package.problem else package.installed or ""


def _machine(machine: Machine) -> Iterator[tuple[str, str, str]]:
    yield "", "system", machine.system
    threads = "" if machine.threads is None else f"; torch computes with {machine.threads} threads"
    yield "", "cores", f"{machine.cores}{threads}"
    if machine.memory_gb is not None:
        yield "", "memory", _amount(machine.memory_gb, machine.free_gb)
    yield "", "disk", f"{machine.disk_gb:.1f} GB free here"
    for device in machine.devices:
        yield "", "device", _device(device)


def _device(device: Device) -> str:
    memory = [] if device.memory_gb is None else [_amount(device.memory_gb, device.free_gb)]
    return ", ".join([device.name, *memory, "computes in bf16" if device.bf16 else "does not compute in bf16"])


def _amount(total: float, free: float | None) -> str:
    return f"{total:.1f} GB" + ("" if free is None else f", {free:.1f} GB free")


def _extras(found: Diagnosis) -> Iterator[tuple[str, str, str]]:
    for extra in found.extras:
        there = ", ".join(" ".join(_described(package)) for package in extra.packages)
        yield SIGNS[extra.install is None], extra.name, there if extra.install is None else f"{there}: {extra.install}"


def _verdict(found: Diagnosis) -> list[str]:
    if not found.problems:
        return ["A run can start."]
    return ["A run can't start:", *(f"  - {problem}" for problem in found.problems)]
