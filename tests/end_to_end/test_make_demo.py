"""What `make demo` starts, without starting it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from astra_accel.config import RunConfiguration
from astra_accel.data import load_prompts

ROOT = Path(__file__).parents[2]
CONFIG = "examples/configs/smollm2_mle.yaml"


@pytest.fixture(scope="module")
def commands() -> list[list[str]]:
    """Training, both evaluations and the report; the environment is taken to be there."""
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    made = ["make", "--dry-run", "--old-file", ".venv/.ready", "demo", "ARGS=--training.seed 7 --training.lr 2e-3"]
    done = subprocess.run(made, cwd=ROOT, check=True, capture_output=True, text=True)
    return [shlex.split(line) for line in done.stdout.replace("\\\n", " ").splitlines() if ".venv/bin" in line]


def test_training_takes_fields_of_yours(commands: list[list[str]]) -> None:
    _, script, option, config, *fields = commands[0]
    assert (script, option, config) == ("examples/train.py", "--config", CONFIG)
    training = RunConfiguration.load(ROOT / CONFIG, fields)
    assert (training.training.seed, training.training.lr) == (7, 2e-3)
    assert training.training.output_dir == Path("runs/demo")
    assert not training.evaluation.around_training


def test_both_testers_hold_three_turns_on_the_same_test_prompts(commands: list[list[str]]) -> None:
    untrained, trained = commands[1:3]
    assert untrained[1:4] == ["evaluate", "runs/demo", "--untrained"]
    assert trained[1:3] == ["evaluate", "runs/demo"]
    assert untrained[4:] == trained[3:]
    config = RunConfiguration.load(ROOT / CONFIG, [*commands[0][4:], *trained[3:]])
    assert config.eval_depth == 3
    assert config.prompts.test is not None
    assert config.prompts.test.source == "bundled"
    held_out = load_prompts(split=config.prompts.test.split)
    assert len(held_out) >= 100
    assert config.prompts.dev is None or config.prompts.dev.split == "dev"


def test_the_report_is_of_both_and_comes_last(commands: list[list[str]]) -> None:
    assert [command[1:] for command in commands[3:]] == [["report", "runs/demo", "runs/demo/evaluation_untrained"]]
