"""Which packages a run needs, which are installed, and the command that installs the others."""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

PROJECT = "astra-accel"
CHECKOUT = Path(__file__).parents[2]
FOR_DEVELOPERS = ("dev", "bench", "docs")
"""Extras that no run needs."""
MODULES = {"alt-profanity-check": "profanity_check", "mlflow-skinny": "mlflow", "pyyaml": "yaml"}
"""The module names of packages whose module is named differently."""


@dataclass(frozen=True)
class Requirement:
    """A package that this one requires: always, or for an extra."""

    name: str
    lowest: str
    extra: str | None

    @property
    def module(self) -> str:
        """The module that it is imported as."""
        return MODULES.get(self.name.lower(), self.name.replace("-", "_"))


@dataclass(frozen=True)
class Package:
    """A required package and its installation.

    Attributes:
        name: its name for pip.
        lowest: the lowest sufficient version; empty if any is.
        installed: the installed version; None if missing.
        problem: what is wrong with it; None if nothing is.
    """

    name: str
    lowest: str
    installed: str | None
    problem: str | None


def requirements() -> list[Requirement]:
    """The package's declared requirements: from ``pyproject.toml`` in a checkout, else from its installed metadata.

    Raises:
        PackageNotFoundError: there is neither.
    """
    project = CHECKOUT / "pyproject.toml"
    if not project.is_file():
        return [requirement(line) for line in metadata.requires(PROJECT) or []]
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    extras = [(line, extra) for extra, lines in table["optional-dependencies"].items() for line in lines]
    return [requirement(line, extra) for line, extra in [*((line, None) for line in table["dependencies"]), *extras]]


def requirement(line: str, extra: str | None = None) -> Requirement:
    """A requirement as ``pip`` writes it: ``torch>=2.6``, ``detoxify>=0.5.2; extra == "detoxify"``."""
    name = re.match(r"[\w.-]+", line)
    lowest = re.search(r">=\s*([\w.]+)", line)
    marked = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", line)
    return Requirement(
        name=line if name is None else name[0],
        lowest="" if lowest is None else lowest[1],
        extra=marked[1] if marked is not None else extra,
    )


def required_modules() -> set[str]:
    """The modules that every installation can import."""
    return {one.module for one in requirements() if one.extra is None}


def find_package(needed: Requirement) -> Package:
    """Look up a package's installation, without running any of its code."""
    try:
        installed = metadata.version(needed.name)
    except metadata.PackageNotFoundError:
        return Package(needed.name, needed.lowest, None, "missing")
    problem = None
    if _numbers(installed) < _numbers(needed.lowest):
        problem = f"version {installed}, expected at least {needed.lowest}"
    elif not can_be_found(needed.module):
        problem = f"installed, but Python finds no module {needed.module}"
    return Package(needed.name, needed.lowest, installed, problem)


def can_be_found(module: str) -> bool:
    """Whether Python can find a module."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def pip_line(extra: str | None = None) -> str:
    """The command that installs this package with its requirements, or also with an extra."""
    wanted = "" if extra is None else f"[{extra}]"
    if (CHECKOUT / "pyproject.toml").is_file():
        return f"{sys.executable} -m pip install -e '{CHECKOUT}{wanted}'"
    return f"{sys.executable} -m pip install '{PROJECT}{wanted}'"


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: ``2.13.0+cpu`` is (2, 13, 0)."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return () if leading is None else tuple(int(number) for number in leading[0].split("."))
