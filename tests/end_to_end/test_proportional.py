"""A tester comes to sample in proportion to baseline · exp(return / beta): all probes of one token are enumerated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from astra_accel import AccelTrainer, ASTSampler, HFASTSystem, Scorer, TrainingConfiguration
from astra_accel.algorithms import build_algorithm
from astra_accel.config import RolloutConfiguration, SamplingConfiguration

PROMPT = "Hello."
BETA = 0.4
SETTINGS: dict[str, dict[str, Any]] = {"ctb": {"beta": BETA}, "tb": {"beta": BETA}}
# Of pairs, or of contexts with all of their siblings.
BATCH_SIZES = {"ctb": 60, "tb": 1}


class Grades(Scorer):
    """Five grades from 0 to 1, which follow from a probe's bytes."""

    def score(self, texts):
        return [0.0] * len(texts)

    def score_exchanges(self, probes, responses):
        return [(sum(probe.encode()) + 1) % 5 / 4 for probe in probes]


def make_system() -> HFASTSystem:
    one_token = SamplingConfiguration(max_new_tokens=1)
    return HFASTSystem(
        "tiny",
        "tiny",
        scorer=Grades(),
        lora=None,
        rollout=RolloutConfiguration(tester=one_token, target=one_token),
        ppl_weight=0.0,
        combined_weight=0.0,
        defense_toxicity_weight=1.0,
    )


def train(system: HFASTSystem, name: str, folder: Path, training_steps: int) -> None:
    config = TrainingConfiguration(
        lr=4e-3,
        lr_scheduler="cosine",
        training_steps=training_steps,
        num_episodes_per_experience=8,
        batch_size=BATCH_SIZES[name],
        max_grad_norm=None,
        output_dir=folder,
        save_steps=None,
        sample_steps=None,
    )
    algorithm = build_algorithm(name, system, **SETTINGS[name])
    AccelTrainer(config, ASTSampler(system, [PROMPT], 16, tree_depth=1), algorithm).train()


@torch.no_grad()
def next_token(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """What a model says of the token that follows, ``[vocabulary]``, by a plain forward."""
    return model(torch.tensor([ids])).logits[0, -1].double().softmax(-1)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_tester_comes_to_the_baseline_times_the_exponential_of_the_return(name: str, tmp_path: Path) -> None:
    system = make_system()
    files = system.roles.tester.files
    context = (files.tokenizer.bos_token_id, *system.start(PROMPT).segments[0].tester_ids)
    baseline = next_token(system.roles.baseline.model, context)
    texts = [system.views.probe((token,), files.end_ids).text for token in range(len(baseline))]
    weights = baseline * torch.tensor(Grades().score_exchanges(texts, texts)).double().div(BETA).exp()
    expected = weights / weights.sum()
    assert (baseline - expected).abs().sum() / 2 > 0.4

    train(system, name, tmp_path, training_steps=40)

    found = next_token(system.tester, context)
    assert (found - expected).abs().sum() / 2 < 0.05
