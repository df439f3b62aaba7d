"""Scorers by name. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from astra_accel.lazy import load_attribute, load_named

if TYPE_CHECKING:
    import torch

    from astra_accel.core.scorer import Scorer
    from astra_accel.scorers.classifier import ClassifierScorer
    from astra_accel.scorers.detoxify import DetoxifyScorer
    from astra_accel.scorers.llama_guard import LlamaGuardScorer
    from astra_accel.scorers.profanity import ProfanityScorer

__all__ = [
    "SCORERS",
    "ClassifierScorer",
    "DetoxifyScorer",
    "LlamaGuardScorer",
    "ProfanityScorer",
    "build_scorer",
]

SCORERS: dict[str, str] = {
    "profanity": "astra_accel.scorers.profanity:ProfanityScorer",
    "detoxify": "astra_accel.scorers.detoxify:DetoxifyScorer",
    "llama_guard": "astra_accel.scorers.llama_guard:LlamaGuardScorer",
    "classifier": "astra_accel.scorers.classifier:ClassifierScorer",
}
"""Where each scorer is, as "module:Class"."""


def build_scorer(name: str, *, device: str | torch.device, **options: Any) -> Scorer:
    """The scorer of a name.

    Args:
        name: A key of :data:`SCORERS`.
        device: Where its model runs; a scorer without device does not get it.
        options: The scorer's other arguments, by name.

    Raises:
        ValueError: No scorer of that name, an option that it does not have, or one that it needs is missing.
    """
    scorer_class = load_named(SCORERS, name, "scorer", options)
    parameters = inspect.signature(scorer_class).parameters
    if "device" in parameters:
        options["device"] = device
    for option, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(f"scorer {name!r} needs the option {option!r}")
    return scorer_class(**options)


def __getattr__(name: str) -> Any:
    locations = {location.rpartition(":")[2]: location for location in SCORERS.values()}
    return load_attribute(__name__, name, locations)
