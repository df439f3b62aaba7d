"""Algorithms by name, as a configuration gives them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from astra_accel.algorithms import ALGORITHMS, build_algorithm
from astra_accel.core.algorithm import Algorithm


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_name_builds_its_algorithm(name):
    algorithm = build_algorithm(name, system="the system")
    assert isinstance(algorithm, Algorithm)
    assert algorithm.system == "the system"
    assert type(algorithm).__name__.lower() == name


def test_options_are_the_arguments_of_the_class():
    assert build_algorithm("dpo", None, beta=0.7).beta == 0.7


def test_an_unknown_name_lists_the_names():
    with pytest.raises(ValueError, match=f"unknown algorithm 'sft'; expected one of {', '.join(ALGORITHMS)}"):
        build_algorithm("sft", None)


def test_an_unknown_option_lists_the_options():
    with pytest.raises(ValueError, match="algorithm 'dpo' takes no option 'temperature'; expected beta, loss"):
        build_algorithm("dpo", None, temperature=1.0)


def test_importing_the_algorithms_loads_no_heavy_library():
    code = "import sys, astra_accel.algorithms; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
