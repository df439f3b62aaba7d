"""The reference's training loop, written out plainly, is the oracle for ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from astra_accel import DPO, AccelTrainer, ASTSampler, HFASTSystem, TrainingConfiguration
from astra_accel.config import LoRAConfiguration, RolloutConfiguration, SamplingConfiguration
from tests.helpers.plain import reset_accelerate

NUM_UPDATES, LR = 5, 0.01

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


class RecordedDPO(DPO):
    """DPO that remembers the batches that it was given, in order."""

    def __init__(self, system: HFASTSystem) -> None:
        super().__init__(system)
        self.batches: list[Any] = []

    def step(self, batch: Any) -> Any:
        self.batches.append(batch)
        return super().step(batch)


def _system() -> HFASTSystem:
    torch.manual_seed(0)
    short = SamplingConfiguration(max_new_tokens=6)
    rollout = RolloutConfiguration(tester=short, target=short)
    return HFASTSystem("tiny", "tiny", lora=LoRAConfiguration(r=2, alpha=4), rollout=rollout)


def _train(algorithm: RecordedDPO, tmp_path: Path, **settings: Any) -> AccelTrainer:
    reset_accelerate()
    config = TrainingConfiguration(lr=LR, output_dir=tmp_path, sample_steps=None, save_steps=None, **settings)
    sampler = ASTSampler(algorithm.system, ["Hello there.", "What a day it was!"], tree_width=2, tree_depth=2)
    trainer = AccelTrainer(config, sampler, algorithm)
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_weights_after_five_updates_are_those_of_the_reference_loop(
    optimizer: str, accumulation: int, tmp_path: Path
) -> None:
    """Four episodes of three pairs: an update is one batch of 12, or four batches of 3."""
    system = _system()
    start = [parameter.detach().clone() for parameter in system.parameters()]
    algorithm = RecordedDPO(system)
    trainer = _train(
        algorithm,
        tmp_path,
        optimizer=optimizer,
        batch_size=12 // accumulation,
        gradient_accumulation_steps=accumulation,
        training_steps=NUM_UPDATES,
        num_episodes_per_experience=4,
    )
    ours = [parameter.detach().clone() for parameter in system.parameters()]
    batches, algorithm.batches = algorithm.batches, []
    assert trainer.state.update == NUM_UPDATES
    assert [len(batch.prefixes) for batch in batches] == [12 // accumulation] * NUM_UPDATES * accumulation

    with torch.no_grad():
        for parameter, value in zip(system.parameters(), start, strict=True):
            parameter.copy_(value)
            parameter.grad = None
    reference = OPTIMIZERS[optimizer](system.parameters(), LR)
    for counter, batch in enumerate(batches, start=1):
        loss = algorithm.step(batch)[0] / accumulation
        loss.backward()
        if counter % accumulation == 0:
            reference.step()
            reference.zero_grad()

    theirs = [parameter.detach() for parameter in system.parameters()]
    differences = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    moved = [float((a - b).abs().max()) for a, b in zip(ours, start, strict=True)]
    assert max(differences) < 1e-6
    assert max(moved) > 1e-4


def test_a_smaller_batch_makes_more_updates_of_the_same_examples(tmp_path: Path) -> None:
    """The first experience in batches of 4 or 16: the same pairs, four updates or one."""
    seen = {}
    for batch_size, updates in ((4, 4), (16, 1)):
        algorithm = RecordedDPO(_system())
        trainer = _train(
            algorithm,
            tmp_path / str(batch_size),
            batch_size=batch_size,
            training_steps=1,
            num_episodes_per_experience=5,
        )
        assert trainer.state.update == updates
        seen[batch_size] = [
            pair
            for batch in algorithm.batches
            for pair in zip(
                map(str, batch.prefixes), map(str, batch.suffix_pos), map(str, batch.suffix_neg), strict=True
            )
        ]
    assert len(seen[16]) == 15
    assert seen[4] == seen[16]
