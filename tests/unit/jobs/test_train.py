"""The figures before and after a run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from astra_accel.jobs import train as training


class Recorder:
    """A trainer that only says what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def find_checkpoint(self, resume: Any) -> None:
        return None

    def evaluate(self, prompts: list[str]) -> dict[str, float]:
        self.asked.append(tuple(prompts))
        return {"reward/mean": 1.0}

    def train(self, resume: Any) -> None:
        self.asked.append("train")


@pytest.mark.parametrize(
    ("prompts", "settings", "asked"),
    [
        (["a", "b"], {}, [("a", "b"), "train", ("a", "b")]),
        (["a", "b"], {"evaluates": False}, ["train"]),
        ([], {}, ["train"]),
    ],
)
def test_test_prompts_are_evaluated_before_and_after_unless_told_otherwise(monkeypatch, prompts, settings, asked):
    shown = []
    monkeypatch.setattr(training, "_show", lambda trainer, before, after, num: shown.append((before, after)))
    trainer = Recorder()
    training.run(trainer, SimpleNamespace(test=prompts), **settings)
    assert trainer.asked == asked
    figures = {"reward/mean": 1.0} if len(asked) == 3 else {}
    assert shown == [(figures, figures)]
