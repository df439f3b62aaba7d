"""The benchmarks' scripts, which find the modules beside them."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.plain import reset_accelerate

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A script finds the modules beside it, and the test has the process to itself."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    reset_accelerate()
    return


def script(name: str) -> Any:
    """The module of a script, in a test with the fixture ``scripts``."""
    return importlib.import_module(name)
