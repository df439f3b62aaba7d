import tomllib
from importlib import metadata

import pytest

from astra_accel.doctor import packages
from astra_accel.doctor.packages import (
    FOR_DEVELOPERS,
    Package,
    Requirement,
    find_package,
    pip_line,
    required_modules,
    requirement,
    requirements,
)
from astra_accel.scorers import SCORERS
from tests.helpers.runs import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("torch>=2.6", Requirement("torch", "2.6", None)),
        ("types-PyYAML", Requirement("types-PyYAML", "", None)),
        ('detoxify>=0.5.2; extra == "detoxify"', Requirement("detoxify", "0.5.2", "detoxify")),
        ("gguf[all] (>=0.17) ; extra == 'two-words'", Requirement("gguf", "0.17", "two-words")),
    ],
)
def test_a_requirement_is_read_as_pip_writes_it(line, expected):
    assert requirement(line) == expected


def test_requirements_are_those_of_the_project():
    found = requirements()

    assert [one.name for one in found if one.extra is None] == [
        requirement(line).name for line in PROJECT["dependencies"]
    ]
    assert {one.extra for one in found} == {None, *PROJECT["optional-dependencies"]}


def test_without_a_checkout_requirements_are_those_of_the_installation(monkeypatch, tmp_path):
    monkeypatch.setattr(packages, "CHECKOUT", tmp_path)
    monkeypatch.setattr(metadata, "requires", lambda name: ["torch>=2.6", "ninja>=1; extra == 'fast'"])

    assert requirements() == [Requirement("torch", "2.6", None), Requirement("ninja", "1", "fast")]
    assert pip_line("fast").endswith("-m pip install 'astra-accel[fast]'")


@pytest.mark.parametrize("needed", [one for one in requirements() if one.extra not in FOR_DEVELOPERS], ids=str)
def test_a_package_is_imported_as_what_its_distribution_has(needed):
    names = {
        name
        for name, dists in metadata.packages_distributions().items()
        if needed.name.lower() in map(str.lower, dists)
    }
    if names:  # what is not installed here can't be looked at
        assert needed.module in names


def test_extras_of_scorers_have_their_names():
    """The doctor finds what a scorer needs by its name."""
    for name, location in SCORERS.items():
        text = (ROOT / location.partition(":")[0].replace(".", "/")).with_suffix(".py").read_text()
        assert (
            ("astra-accel[" in text) == (f"astra-accel[{name}]" in text) == (name in PROJECT["optional-dependencies"])
        )


def test_what_is_found_of_a_package():
    assert find_package(Requirement("numpy", "1.0", None)) == Package("numpy", "1.0", metadata.version("numpy"), None)
    assert find_package(Requirement("no-such-package", "1.0", None)).problem == "missing"
    old = find_package(Requirement("numpy", "99.1", None)).problem
    assert old == f"version {metadata.version('numpy')}, expected at least 99.1"


def test_a_package_whose_module_is_hidden_is_told(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)

    assert find_package(Requirement("gguf", "", None)).problem == "installed, but Python finds no module gguf"


def test_required_modules_are_named_as_they_are_imported():
    assert {"torch", "yaml", "pydantic_settings"} <= required_modules()
    assert "detoxify" not in required_modules()
