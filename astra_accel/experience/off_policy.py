"""Whether an algorithm can learn from what a sampler and a replay bring."""

from __future__ import annotations

from typing import Any

from astra_accel.algorithms import ALGORITHMS
from astra_accel.config import ReplayConfiguration
from astra_accel.core.algorithm import Algorithm
from astra_accel.core.optional import ChecksSampler, offers
from astra_accel.errors import ConfigurationError
from astra_accel.lazy import load


def check_algorithm(algorithm: Any, sampler: Any, replay: ReplayConfiguration | None) -> None:
    """Find what an algorithm can't learn from.

    Args:
        algorithm: ours, or one that follows the contract by shape.
        sampler: or, before models load, the ``RolloutConfiguration`` in its stead.
        replay: None is none.

    Raises:
        ValueError: trees that give no example, or whatever else ``check_sampler`` finds.
        ConfigurationError: it learns on-policy, and there is a replay, or the tester is shown examples; or it does not
            tell what a replay goes by.
    """
    if offers(algorithm, ChecksSampler):
        algorithm.check_sampler(sampler)
    if getattr(sampler, "few_shot", None) is not None:
        _check_off_policy(algorithm, "rollout.few_shot")
    if replay is not None:
        check_replay(algorithm)


def check_replay(algorithm: Any) -> None:
    """Find an algorithm that can't have a replay.

    Raises:
        ConfigurationError: says why, and which can.
    """
    _check_off_policy(algorithm, "training.replay")
    if getattr(type(algorithm), "replay_entry", Algorithm.replay_entry) is Algorithm.replay_entry:
        raise ConfigurationError(
            f"training.replay is set, but {type(algorithm).__name__} does not tell what its examples earned; expected "
            f"null, or a method replay_entry"
        )


def _check_off_policy(algorithm: Any, field: str) -> None:
    if getattr(algorithm, "off_policy", False):
        return
    able = [key for key, location in ALGORITHMS.items() if load(location).off_policy]
    raise ConfigurationError(
        f"{field} is set, but {type(algorithm).__name__} learns on-policy: its loss assumes that the tester of now "
        f"wrote each probe in the context that is learned; expected null, or an algorithm that learns off-policy "
        f"({', '.join(able)})"
    )
