"""What a run reports about its reward: every term by name, and the number of turns without a reward."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from statistics import fmean

import pytest

from astra_accel import DPO, AccelTrainer, ASTSampler, HFASTSystem, Scorer, TrainingConfiguration
from astra_accel.config import RolloutConfiguration, SamplingConfiguration
from tests.helpers.plain import reset_accelerate
from tests.helpers.runs import metrics, rollouts, train_tiny

WEIGHTS = {
    "combined_score": 2.0,
    "response_score": 0.5,
    "naturalness": 0.1,
    "length": -0.01,
    "repetition": -1.0,
    "self_bleu_novelty": 0.5,
    "embedding_novelty": 0.25,
}
FIELDS = {"combined_score": "combined_weight", "response_score": "defense_toxicity_weight", "naturalness": "ppl_weight"}


def test_every_term_of_a_configuration_is_a_column_and_a_figure(tmp_path: Path) -> None:
    weights = [(f"--reward.{FIELDS.get(name, f'{name}_weight')}", str(value)) for name, value in WEIGHTS.items()]
    settings = (
        "--training.training_steps",
        "2",
        "--training.eval_steps",
        "2",
        "--reward.naturalness_model",
        "baseline",
    )
    train_tiny(tmp_path, *(part for pair in weights for part in pair), *settings)
    steps = rollouts(tmp_path, ["reward", "probe", *WEIGHTS])
    lines = {line["step"]: line for line in metrics(tmp_path)}
    for number, rows in enumerate(steps, start=1):
        for row in rows:
            assert row["reward"] == pytest.approx(sum(weight * row[name] for name, weight in WEIGHTS.items()))
        for name in WEIGHTS:
            assert lines[number][f"reward/{name}"] == pytest.approx(fmean(row[name] for row in rows))
        assert lines[number]["missing_rewards"] == 0
    assert {f"eval/{name}/mean" for name in WEIGHTS} <= lines[2].keys()
    # In the first step there is nothing to compare with, so every probe that is not blank is fully new; later none is.
    assert {row["self_bleu_novelty"] for row in steps[0] if row["probe"].strip()} == {1.0}
    assert all(row["embedding_novelty"] < 1.0 for row in steps[1])


class Refusing(Scorer):
    """Has no score for every third text or so."""

    def score(self, texts):
        numbers = [zlib.crc32(text.encode()) % 1000 for text in texts]
        return [None if number % 3 == 0 else number / 1000 for number in numbers]


def test_turns_without_a_score_are_null_and_trained_on_by_nobody(tmp_path: Path) -> None:
    """Each context has two probes: a pair takes two rewards, and here none of them tie."""
    reset_accelerate()
    sampling = SamplingConfiguration(max_new_tokens=6)
    system = HFASTSystem(
        "tiny", "tiny", scorer=Refusing(), rollout=RolloutConfiguration(tester=sampling, target=sampling)
    )
    config = TrainingConfiguration(
        output_dir=tmp_path, training_steps=1, num_episodes_per_experience=6, save_steps=None, sample_steps=None
    )
    AccelTrainer(config, ASTSampler(system, ["So I said", "Hm"], 2, 2), DPO(system)).train()
    (rows,) = rollouts(tmp_path, ["episode", "path", "reward", "combined_score", "response_score", "naturalness"])
    for row in rows:
        missing = None in (row["combined_score"], row["response_score"])
        assert (row["reward"] is None) == missing
        assert math.isfinite(row["naturalness"])
    known = [row["reward"] for row in rows if row["reward"] is not None]
    (line,) = metrics(tmp_path)
    assert 0 < line["missing_rewards"] == len(rows) - len(known) < len(rows)
    assert line["reward/mean"] == pytest.approx(fmean(known))
    assert line["reward/response_score"] == pytest.approx(
        fmean(row["response_score"] for row in rows if row["response_score"] is not None)
    )
    siblings: dict[tuple, list[float | None]] = {}
    for row in rows:
        siblings.setdefault((row["episode"], *row["path"][:-1]), []).append(row["reward"])
    assert line["examples"] == sum(None not in rewards for rewards in siblings.values())
    assert 0 < line["examples"] < len(siblings)
