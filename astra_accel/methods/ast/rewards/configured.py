"""The terms that a configuration asks for."""

from __future__ import annotations

from astra_accel.config import RewardConfiguration
from astra_accel.methods.ast.rewards.style import Length, Repetition
from astra_accel.methods.ast.rewards.term import RewardTerm


def build_terms(reward: RewardConfiguration) -> list[tuple[float, RewardTerm]]:
    """The weighted terms besides those that every ``ASTSystem`` has. What weighs nothing is not made."""
    makers = [(reward.length_weight, Length), (reward.repetition_weight, Repetition)]
    return [(weight, make()) for weight, make in makers if weight]
