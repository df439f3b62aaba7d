import ast
import subprocess
import sys
from pathlib import Path

import pytest

import astra_accel

HEAVY = ("torch", "transformers", "pydantic", "accelerate", "peft", "datasets", "numpy")

LOADED = "import sys, astra_accel; print(*(name for name in {heavy!r} if name in sys.modules))"


def in_fresh_interpreter(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_package_imports_nothing_heavy():
    assert in_fresh_interpreter(LOADED.format(heavy=HEAVY)).split() == []


@pytest.mark.parametrize("module", ["astra_accel.config", "astra_accel.scorers", "astra_accel.algorithms"])
def test_what_a_configuration_needs_imports_without_torch(module):
    output = in_fresh_interpreter(f"import sys, {module}; print(*({{'torch', 'transformers'}} & sys.modules.keys()))")

    assert output.split() == []


@pytest.mark.parametrize("name", astra_accel.__all__)
def test_every_public_name_loads(name):
    value = getattr(astra_accel, name)

    assert name in ("Trainer", "__version__") or value.__name__ == name


def test_trainer_is_the_accelerate_trainer_under_the_name_of_the_reference():
    assert astra_accel.Trainer is astra_accel.AccelTrainer


def test_dir_lists_the_public_names():
    assert dir(astra_accel) == sorted(astra_accel.__all__)
    assert {"AccelTrainer", "TrainingConfiguration", "DPO", "HFASTSystem"} <= set(dir(astra_accel))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'astra_accel' has no attribute 'Trainr'"):
        astra_accel.Trainr  # noqa: B018
    with pytest.raises(ImportError):
        from astra_accel import Trainr  # noqa: F401


def test_type_checkers_see_the_names_that_load():
    tree = ast.parse(Path(astra_accel.__file__).read_text(encoding="utf-8"))
    checking = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module.removeprefix("astra_accel.")
        for node in checking.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert seen == astra_accel._MODULES
