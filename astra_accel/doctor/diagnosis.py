"""Everything that the doctor found, and which of it keeps a run from starting."""

from __future__ import annotations

import os
import platform
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from astra_accel import __version__
from astra_accel.distributed.op_builds import BuildLock, find_locks
from astra_accel.doctor.launches import Launch, look_at_launch
from astra_accel.doctor.machine import Machine, look_at_machine
from astra_accel.doctor.packages import FOR_DEVELOPERS, Package, find_package, pip_line, requirements
from astra_accel.launching import accelerate_configs

if TYPE_CHECKING:
    from astra_accel.doctor.configuration import Check

HUB = "https://huggingface.co"
PATIENCE = 5.0


@dataclass(frozen=True)
class Extra:
    """An extra: packages for an optional feature.

    Attributes:
        name: its name for pip.
        packages: the packages that it includes.
        install: the command that installs what is missing; None if nothing is.
    """

    name: str
    packages: list[Package]
    install: str | None


@dataclass(frozen=True)
class LockFound:
    """A lock under which an operation is, or was, compiled.

    Attributes:
        name: the operation's name.
        abandoned: whether certainly no process holds it; None if that can't be known.
        advice: what holds it, and what to do.
    """

    name: str
    abandoned: bool | None
    advice: str


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        version, python: the versions of this package and of Python.
        required: packages that every run needs.
        extras: packages that some runs need.
        machine: processor, memory, devices.
        launches: the Accelerate configurations that come with the package.
        build_locks: locks on DeepSpeed operations that are, or were, being compiled.
        configuration: checks of a run's YAML file; empty if none was given.
        hub: whether the model hub answered; None if it was not asked.
        problems: what keeps a run from starting; empty if nothing does.
    """

    version: str
    python: str
    required: list[Package]
    extras: list[Extra]
    machine: Machine
    launches: list[Launch]
    build_locks: list[LockFound]
    configuration: list[Check]
    hub: str | None
    problems: list[str]


def diagnose(config: Path | None = None, ask_hub: bool = False) -> Diagnosis:
    """Examine this installation and machine.

    Args:
        config: a run's YAML file to check as well.
        ask_hub: whether to try to reach the model hub, the only thing that uses the network.
    """
    needed = requirements()
    required = [find_package(one) for one in needed if one.extra is None]
    machine = look_at_machine(Path.cwd())
    problems = [f"{package.name}: {package.problem}; {pip_line()}" for package in required if package.problem]
    if machine.problem is not None and not any(problem.startswith("torch:") for problem in problems):
        problems.append(machine.problem)
    checks: list[Check] = []
    if config is not None and not problems:
        from astra_accel.doctor.configuration import check_configuration

        checks = check_configuration(config)
        problems += [f"{check.what}: {check.found}" for check in checks if check.good is False]
    extras = dict.fromkeys(one.extra for one in needed if one.extra is not None and one.extra not in FOR_DEVELOPERS)
    return Diagnosis(
        version=__version__,
        python=platform.python_version(),
        required=required,
        extras=[_extra(name, [find_package(one) for one in needed if one.extra == name]) for name in extras],
        machine=machine,
        launches=[look_at_launch(file, machine) for file in accelerate_configs().values()],
        build_locks=[_lock_found(lock) for lock in find_locks()],
        configuration=checks,
        hub=_ask_hub() if ask_hub else None,
        problems=problems,
    )


def _lock_found(lock: BuildLock) -> LockFound:
    name = lock.path.parent.name
    if lock.holder is not None:
        return LockFound(name, False, f"{lock}: wait for it")
    if lock.abandoned:
        return LockFound(name, True, f"{lock}: a run with offload removes it, others wait for ever; {lock.command}")
    return LockFound(name, None, f"{lock}: if none is, {lock.command}")


def _extra(name: str, packages: list[Package]) -> Extra:
    return Extra(name, packages, pip_line(name) if any(package.problem for package in packages) else None)


def _ask_hub() -> str:
    address = os.environ.get("HF_ENDPOINT", HUB)
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PATIENCE):
            return f"{address} answers"
    except (OSError, ValueError) as error:  # no connection or an error response; an invalid address
        return f"{address} can't be reached: {error}"
