"""The terms that a configuration asks for."""

from __future__ import annotations

from collections.abc import Callable

from astra_accel.config import RewardConfiguration
from astra_accel.methods.ast.rewards.self_bleu import SelfBLEUNovelty
from astra_accel.methods.ast.rewards.style import Length, Repetition
from astra_accel.methods.ast.rewards.term import RewardTerm


def build_terms(reward: RewardConfiguration, seed: int = 0) -> list[tuple[float, RewardTerm]]:
    """The weighted terms besides those that every ``ASTSystem`` has. What weighs nothing is not made.

    Args:
        reward: the weights.
        seed: of the choice of earlier probes that novelty compares with.

    Raises:
        ImportError: a term's package is not installed; names the extra.
    """
    makers: list[tuple[float, Callable[[], RewardTerm]]] = [
        (reward.length_weight, Length),
        (reward.repetition_weight, Repetition),
        (reward.self_bleu_novelty_weight, lambda: SelfBLEUNovelty(reward.reservoir_size, seed)),
    ]
    return [(weight, make()) for weight, make in makers if weight]
