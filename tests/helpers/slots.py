"""A tester that fills slots with words: distinct probes can be counted, and a run takes seconds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from astra_accel import DPO, AccelTrainer, ASTSampler, TrainingConfiguration
from astra_accel.core.scorer import Scorer
from astra_accel.methods.ast.rewards.term import RewardTerm
from astra_accel.methods.ast.system import ASTSystem
from astra_accel.models.decoding.token_sampling import uniforms

NUM_SLOTS, NUM_WORDS = 4, 10


class Rudeness(Scorer):
    """The share of rude words."""

    def score(self, texts: Sequence[str]) -> list[float]:
        """One share a text."""
        return [text.count("rude") / max(len(text.split()), 1) for text in texts]


class Slots(ASTSystem[str, str]):
    """A tester that chooses each of the words of a probe by itself, and a target that repeats the probe.

    Args:
        terms: of the reward, besides how rude the response is.
    """

    def __init__(self, terms: Sequence[tuple[float, RewardTerm]] = ()) -> None:
        super().__init__(Rudeness(), ppl_weight=0.0, combined_weight=0.0, defense_toxicity_weight=1.0, terms=terms)
        self.preferences = torch.nn.Parameter(torch.zeros(NUM_SLOTS, NUM_WORDS))

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The preference for each word in each slot."""
        yield self.preferences

    def get_tester_logprobs(self, context: Sequence[str], continuation: Sequence[str]) -> torch.Tensor:
        """A word is a token, ``[batch, slots]``."""
        chosen = torch.tensor([[_index(word) for word in probe.split()] for probe in continuation])
        return self.preferences.log_softmax(-1)[torch.arange(NUM_SLOTS), chosen]

    def get_baseline_logprobs(self, context: Sequence[str], continuation: Sequence[str]) -> torch.Tensor:
        """All words are as likely."""
        return torch.full((len(continuation), NUM_SLOTS), -math.log(NUM_WORDS))

    get_target_logprobs = get_baseline_logprobs

    def rollout_prompt_with_tester(self, prompt: Sequence[str], *, seeds: Sequence[Sequence[int]]) -> list[str]:
        """Words by the numbers that follow from each seed."""
        cumulative = self.preferences.detach().double().softmax(-1).cumsum(-1)
        probes = []
        for seed in seeds:
            numbers = torch.from_numpy(uniforms(seed, NUM_SLOTS)).unsqueeze(-1)
            chosen = torch.searchsorted(cumulative, numbers).clamp(max=NUM_WORDS - 1).flatten().tolist()
            probes.append(" " + " ".join(_word(slot, index) for slot, index in enumerate(chosen)))
        return probes

    def rollout_prompt_with_target(self, prompt: Sequence[str], *, seeds: Sequence[Sequence[int]]) -> list[str]:
        """The probe once more."""
        return [" " + " ".join(text.split()[-NUM_SLOTS:]) for text in prompt]


def train_slots(
    output_dir: Path,
    terms: Sequence[tuple[float, RewardTerm]],
    resume: Path | None = None,
    width: int = 4,
    **settings: Any,
) -> Slots:
    """Train the slots with DPO on the processes that there are; the system afterwards."""
    system = Slots(terms)
    sampler = ASTSampler(system, ["It is late.", "He was here."], tree_width=width, tree_depth=1)
    config = TrainingConfiguration(**{"output_dir": output_dir, "lr": 0.1, "sample_steps": None} | settings)
    AccelTrainer(config, sampler, DPO(system)).train(resume)
    return system


def _word(slot: int, index: int) -> str:
    return f"{'abcdefgh'[slot]}rude0" if index == 0 else f"{'abcdefgh'[slot]}word{index}"


def _index(word: str) -> int:
    return int("".join(c for c in word if c.isdigit()))
