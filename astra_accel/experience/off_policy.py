"""Checks whether an algorithm can learn from the examples of a sampler and a replay."""

from __future__ import annotations

from typing import Any

from astra_accel.algorithms import ALGORITHMS
from astra_accel.config import ReplayConfiguration
from astra_accel.core.algorithm import Algorithm
from astra_accel.core.optional import ChecksSampler, offers
from astra_accel.errors import ConfigurationError
from astra_accel.lazy import load


def check_algorithm(algorithm: Any, sampler: Any, replay: ReplayConfiguration | None) -> None:
    """Check that an algorithm can learn from a sampler and a replay.

    Args:
        algorithm: an ``Algorithm``, or an object with its methods.
        sampler: the sampler, or the ``RolloutConfiguration`` before models load.
        replay: the configuration of the replay; None if there is none.

    Raises:
        ValueError: the trees give no example, or ``check_sampler`` finds another fault.
        ConfigurationError: the algorithm is on-policy, but there is a replay or the tester is shown examples; or it
            lacks ``replay_entry``, which a replay needs.
    """
    if offers(algorithm, ChecksSampler):
        algorithm.check_sampler(sampler)
    if getattr(sampler, "few_shot", None) is not None:
        _check_off_policy(algorithm, "rollout.few_shot")
    if replay is not None:
        check_replay(algorithm)


def check_replay(algorithm: Any) -> None:
    """Check that an algorithm can use a replay.

    Raises:
        ConfigurationError: it can't; the message says why, and which algorithms can.
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
