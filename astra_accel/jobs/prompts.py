"""The prompts of a run: read, kept apart, and such as its scorers need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from astra_accel.config import PromptSource, RunConfiguration
from astra_accel.core.prompt import Prompt, have_goals
from astra_accel.data import check_disjoint, read_prompts
from astra_accel.errors import ConfigurationError
from astra_accel.scorers import needs_goal


class Prompts:
    """The prompts of a run. Held-out ones are never among those that are trained on.

    Raises:
        ValueError, FileNotFoundError: a source can't be read, or a held-out prompt is trained on.
    """

    def __init__(self, config: RunConfiguration) -> None:
        self.train = load_source(config.prompts.train, "prompts.train")
        self.dev = load_source(config.prompts.dev, "prompts.dev")
        self.test = load_source(config.prompts.test, "prompts.test")
        for name, held_out in (("dev", self.dev), ("test", self.test)):
            check_disjoint(self.train, held_out, ("train", name))

    def by_name(self) -> dict[str, list[str | Prompt]]:
        """All of them."""
        return {"train": self.train, "dev": self.dev, "test": self.test}


def load_source(source: PromptSource | None, field: str) -> list[str | Prompt]:
    """The prompts of a source; none if there is no source.

    Raises:
        FileNotFoundError, ConfigurationError: it can't be read; names the field.
    """
    if source is None:
        return []
    options = source.model_dump()
    try:
        return list(read_prompts(options.pop("source"), **options))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{field}.source: {error}") from error
    except ValueError as error:
        raise ConfigurationError(f"{field}: {error}") from error


def check_goals(config: RunConfiguration, prompts: Mapping[str, Sequence[Any]]) -> None:
    """Find a scorer that judges by goals which the prompts don't have, or by which it is to judge texts alone.

    Args:
        config: the configuration of the whole run.
        prompts: the prompts for ``train``, ``dev`` and ``test``, by that name.

    Raises:
        ConfigurationError, ValueError: there is one; names the field.
    """
    judges = {"scorer": config.scorer, **{f"evaluation.scorers.{n}": s for n, s in config.evaluation.scorers.items()}}
    for field, judge in judges.items():
        if not needs_goal(judge.name, judge.options):
            continue
        lacking = [name for name, texts in prompts.items() if texts and not have_goals(texts)]
        if lacking:
            raise ConfigurationError(
                f"{field} judges by the goal of a conversation, but prompts.{lacking[0]} has none; expected a column "
                f"of goals (goal: NAME)"
            )
        if field == "scorer" and config.reward.combined_weight:
            raise ConfigurationError(
                f"reward.combined_weight is {config.reward.combined_weight:g}, but the scorer judges by the goal of a "
                f"conversation, and no text alone; expected 0"
            )
