from __future__ import annotations

from pathlib import Path

import pytest

from astra_accel.config import RunConfiguration
from astra_accel.core.sampler import Graph, Node
from astra_accel.training.callbacks.run_files import RunFolder
from tests.helpers.hub import local_hub
from tests.helpers.written_runs import write_evaluation


@pytest.fixture
def hub(monkeypatch):
    with local_hub(monkeypatch) as hub:
        yield hub


@pytest.fixture
def make_run(tmp_path):
    """Writes the files of a run without training one, with an adapter that is a few bytes; returns its folder."""

    def make(*overrides: str, adapter: bool = True) -> Path:
        folder = tmp_path / "run"
        config = RunConfiguration.load(None, ["--training.output_dir", str(folder), *overrides])
        run = RunFolder(folder)
        run.begin(config.to_yaml(), overwrite=False)
        run.write_metrics({"step": 1, "update": 1, "loss": 0.7, "reward/mean": -0.5})
        run.write_metrics({"step": 2, "update": 2, "loss": 0.4, "reward/mean": 0.25, "eval/reward/mean": 0.125})
        run.write_rollouts(1, GRAPHS)
        run.write_rollouts(2, GRAPHS[:1])
        if adapter:
            run.tester.mkdir()
            (run.tester / "adapter_config.json").write_text('{"base_model_name_or_path": "/home/me/cache/smol"}')
        return folder

    return make


@pytest.fixture
def evaluated():
    """Writes an evaluation of a run into it."""
    return lambda run: write_evaluation(run / "evaluation")


GRAPHS = [
    Graph(
        "Good morning.",
        [
            Node("Good morning.", " a", "b", 1.5, [Node("Good morning. ab", "c", "d", 0.5)], {"response_score": 0.3}),
            Node("Good morning.", " half \ud83d", "e", None, [], {"response_score": None, "kinds": [1, 2]}),
        ],
    ),
    Graph("It rains.", [Node("It rains.", "f", "g", -1.0, [], {"response_score": 0.1, "probe_tokens": 3})]),
]
