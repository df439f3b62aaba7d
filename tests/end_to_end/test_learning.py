"""Every algorithm learns: a tiny tester comes to write the letters that a scorer counts, within so many updates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from astra_accel import AccelTrainer, ASTSampler, HFASTSystem, HFASTValueFunctionSystem, Scorer, TrainingConfiguration
from astra_accel.algorithms import build_algorithm
from astra_accel.config import RolloutConfiguration, SamplingConfiguration
from tests.helpers.plain import reset_accelerate
from tests.helpers.runs import metrics

PROBE_TOKENS = 6
PAIRS = {"pairs": "all", "width": 8, "num_episodes": 8, "lr": 2e-3, "training_steps": 18, "most_updates": 45}
GROUPS = {"width": 16, "num_episodes": 4, "lr": 3e-3, "training_steps": 18, "most_updates": 18, "kl_coef": 0}
SETTINGS: dict[str, dict[str, Any]] = {
    "dpo": PAIRS,
    "ipo": PAIRS,
    "ctb": PAIRS | {"beta": 0.02},
    "tb": {"beta": 0.02, "width": 8, "num_episodes": 8, "lr": 2e-3, "training_steps": 18, "most_updates": 45},
    "mle": {"best": 0.25, "width": 8, "num_episodes": 8, "lr": 3e-3, "training_steps": 18, "most_updates": 45},
    "grpo": GROUPS,
    "rloo": GROUPS,
    "ppo": GROUPS | {"epochs": 3, "training_steps": 24, "most_updates": 72},
}


class Vowels(Scorer):
    """The share of a probe that is vowels; 1 where every token that it may have is one."""

    def score(self, texts):
        return [0.0] * len(texts)

    def score_exchanges(self, probes, responses):
        return [sum(letter in "aeiou" for letter in probe) / PROBE_TOKENS for probe in probes]


def train(
    folder: Path,
    name: str,
    seed: int,
    *,
    width: int,
    num_episodes: int,
    lr: float,
    training_steps: int,
    epochs: int = 1,
    **options: Any,
) -> list[dict[str, Any]]:
    """Train a whole tiny tester; the figures of its updates."""
    needs_values = build_algorithm(name, None, **options).needs_values
    rollout = RolloutConfiguration(
        tester=SamplingConfiguration(max_new_tokens=PROBE_TOKENS), target=SamplingConfiguration(max_new_tokens=1)
    )
    system = (HFASTValueFunctionSystem if needs_values else HFASTSystem)(
        "tiny",
        "tiny",
        scorer=Vowels(),
        lora=None,
        rollout=rollout,
        ppl_weight=0.0,
        combined_weight=0.0,
        defense_toxicity_weight=1.0,
    )
    config = TrainingConfiguration(
        lr=lr,
        training_steps=training_steps,
        num_episodes_per_experience=num_episodes,
        batch_size=64,
        epochs_per_experience=epochs,
        max_grad_norm=1.0,
        seed=seed,
        output_dir=folder,
        save_steps=None,
        sample_steps=None,
    )
    sampler = ASTSampler(system, ["Hello.", "What a day!"], width, tree_depth=1)
    AccelTrainer(config, sampler, build_algorithm(name, system, **options)).train()
    return metrics(folder)


def rewards(lines: list[dict[str, Any]]) -> list[float]:
    """The mean reward of each training step."""
    return list({line["step"]: line["reward/mean"] for line in lines}.values())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_mean_reward_rises_from_a_tenth_to_four_fifths_of_the_possible(
    name: str, seed: int, tmp_path: Path
) -> None:
    settings = dict(SETTINGS[name])
    most_updates = settings.pop("most_updates")
    lines = train(tmp_path, name, seed, **settings)
    means = rewards(lines)
    assert means[0] < 0.1
    assert sum(means[-3:]) / 3 > 0.8
    assert len(lines) <= most_updates


@pytest.mark.parametrize("kl_in", ["loss", pytest.param("reward", marks=pytest.mark.slow)])
def test_a_kl_holds_the_tester_to_its_baseline(kl_in: str, tmp_path: Path) -> None:
    """In nats a token: far from where it began without, near to it with a large coefficient."""
    settings = {**GROUPS, "training_steps": 10, "kl_in": kl_in, "kl_estimator": "k3"}
    del settings["most_updates"]
    # The smallest coefficient that still has the KL logged.
    free = train(tmp_path / "free", "grpo", 0, **settings | {"kl_coef": 1e-9})
    reset_accelerate()
    held = train(tmp_path / "held", "grpo", 0, **settings | {"kl_coef": 3.0})
    assert free[-1]["grpo/kl"] > 1.0
    assert held[-1]["grpo/kl"] < 0.2 * free[-1]["grpo/kl"]
    assert rewards(held)[-1] < rewards(free)[-1]
