"""Builds the reward terms of a configuration."""

from __future__ import annotations

from collections.abc import Callable

import torch

from astra_accel.config import RewardConfiguration
from astra_accel.methods.ast.rewards.embedding import EmbeddingNovelty
from astra_accel.methods.ast.rewards.self_bleu import SelfBLEUNovelty
from astra_accel.methods.ast.rewards.sentence_embedder import SentenceEmbedder
from astra_accel.methods.ast.rewards.term import RewardTerm
from astra_accel.methods.ast.rewards.terms import Length, Repetition


def build_terms(
    reward: RewardConfiguration, seed: int = 0, device: str | torch.device = "cpu"
) -> list[tuple[float, RewardTerm]]:
    """Build the weighted terms besides those that every ``ASTSystem`` has. Terms of weight 0 are not built.

    Args:
        reward: the weights.
        seed: determines which earlier probes novelty compares with.
        device: the device of a term's model.

    Raises:
        ImportError: a term's package is not installed; names the extra.
        ValueError: there is no such embedding model, or it can't be used.
    """

    reservoir = reward.reservoir_size, seed, reward.reservoir_half_life

    def embedding_novelty() -> EmbeddingNovelty:
        embedder = SentenceEmbedder(reward.embedding_model, device=device)
        return EmbeddingNovelty(embedder, *reservoir)

    makers: list[tuple[float, Callable[[], RewardTerm]]] = [
        (reward.length_weight, Length),
        (reward.repetition_weight, Repetition),
        (reward.self_bleu_novelty_weight, lambda: SelfBLEUNovelty(*reservoir)),
        (reward.embedding_novelty_weight, embedding_novelty),
    ]
    return [(weight, make()) for weight, make in makers if weight]
