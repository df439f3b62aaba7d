"""The algorithms, one file per family. :data:`ALGORITHMS` lists their names for configurations.

Light to import: the classes load on first access.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from astra_accel.lazy import load_attribute, load_named
from astra_accel.registries import ALGORITHMS

if TYPE_CHECKING:
    from astra_accel.algorithms.contrastive import CTB
    from astra_accel.algorithms.dpo import DPO, IPO
    from astra_accel.algorithms.grpo import GRPO, RLOO
    from astra_accel.algorithms.mle import MLE
    from astra_accel.algorithms.ppo import PPO
    from astra_accel.algorithms.trajectory_balance import TB
    from astra_accel.core.algorithm import Algorithm
    from astra_accel.core.system import System

__all__ = ["ALGORITHMS", "CTB", "DPO", "GRPO", "IPO", "MLE", "PPO", "RLOO", "TB", "build_algorithm"]


def build_algorithm(name: str, system: System | None, **options: Any) -> Algorithm:
    """Build the named algorithm for a system; an unknown name or option raises ``ValueError``."""
    return load_named(ALGORITHMS, name, "algorithm", options)(system, **options)


def __getattr__(name: str) -> Any:
    return load_attribute(__name__, name, {location.rpartition(":")[2]: location for location in ALGORITHMS.values()})
