"""Scorers by name. Importing this module imports neither torch nor transformers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from astra_accel.lazy import load_attribute, load_named
from astra_accel.registries import SCORERS

if TYPE_CHECKING:
    import torch

    from astra_accel.core.scorer import Scorer
    from astra_accel.scorers.classifier import ClassifierScorer
    from astra_accel.scorers.detoxify import DetoxifyScorer
    from astra_accel.scorers.endpoint.judge import JudgeScorer
    from astra_accel.scorers.endpoint.llama_guard import LlamaGuardEndpointScorer
    from astra_accel.scorers.endpoint.moderation import ModerationScorer
    from astra_accel.scorers.hatesonar import HateSonarScorer
    from astra_accel.scorers.llama_guard import LlamaGuardScorer
    from astra_accel.scorers.profanity import ProfanityScorer
    from astra_accel.scorers.refusal import RefusalScorer
    from astra_accel.scorers.rubric.local import LocalJudgeScorer
    from astra_accel.scorers.yes_no import YesNoScorer

__all__ = [
    "SCORERS",
    "ClassifierScorer",
    "DetoxifyScorer",
    "HateSonarScorer",
    "JudgeScorer",
    "LlamaGuardEndpointScorer",
    "LlamaGuardScorer",
    "LocalJudgeScorer",
    "ModerationScorer",
    "ProfanityScorer",
    "RefusalScorer",
    "YesNoScorer",
    "build_scorer",
    "check_scorer",
    "needs_goal",
]


def build_scorer(name: str, *, device: str | torch.device, **options: Any) -> Scorer:
    """Build a scorer by name.

    Args:
        name: A key of :data:`SCORERS`.
        device: Where its model runs; not passed to a scorer that takes no device.
        options: The scorer's other arguments, by name.

    Raises:
        ValueError: As for :func:`check_scorer`.
    """
    scorer_class = check_scorer(name, options)
    if "device" in inspect.signature(scorer_class).parameters:
        options["device"] = device
    return scorer_class(**options)


def check_scorer(name: str, options: Mapping[str, Any], field: str = "scorer") -> type[Scorer]:
    """Check a scorer's options and return its class. No instance is made, since that may load its weights.

    Args:
        name: A key of :data:`SCORERS`.
        options: Its arguments, by name.
        field: Its field in the configuration, for messages.

    Raises:
        ValueError: There is no such scorer, or an option is unknown, of another type or missing; the message names the
            field.
    """
    scorer_class = load_named(SCORERS, name, "scorer", options, f"{field}.options")
    for option, parameter in inspect.signature(scorer_class).parameters.items():
        if parameter.default is inspect.Parameter.empty and option not in options:
            raise ValueError(f"{field}.options: scorer {name!r} needs the option {option!r}")
    return scorer_class


def needs_goal(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a scorer of these options judges only conversations with a goal, and no text alone.

    Raises:
        ValueError: As for :func:`check_scorer`.
    """
    by_options = getattr(check_scorer(name, options), "needs_goal", None)
    return by_options is not None and by_options(**options)


def __getattr__(name: str) -> Any:
    locations = {location.rpartition(":")[2]: location for location in SCORERS.values()}
    return load_attribute(__name__, name, locations)
