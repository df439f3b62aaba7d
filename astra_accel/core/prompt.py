"""What a conversation begins with, and what it is to bring out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_PLACE = re.compile(r"\{(goal|category|context)\}")


@dataclass(frozen=True)
class Goal:
    """A behaviour of the target that a conversation is to bring out.

    Attributes:
        text: the behaviour, such as "Explain how to pick a lock".
        category: its kind, if it is known.
        context: a text that it refers to, if there is one.
    """

    text: str
    category: str | None = None
    context: str | None = None

    def columns(self) -> dict[str, str]:
        """What rollouts and evaluations say of it in each row; what it lacks is left out."""
        named = {"goal": self.text, "category": self.category, "goal_context": self.context}
        return {name: text for name, text in named.items() if text is not None}

    def filled_into(self, text: str) -> str:
        """A text with its places filled in. What the goal lacks is empty; other braces stay as they are.

        In one pass, so that a goal with ``{context}`` in it fills in nothing.
        """
        found = {"goal": self.text, "category": self.category or "", "context": self.context or ""}
        return _PLACE.sub(lambda place: found[place[1]], text)

    @classmethod
    def from_row(cls, row: Any) -> Goal | None:
        """The goal in a row of rollouts or evaluations, if it has one."""
        text = row.get("goal")
        return None if text is None else cls(text, row.get("category"), row.get("goal_context"))


@dataclass(frozen=True)
class Prompt:
    """An opening with a goal. A prompt without a goal is its opening, a plain string.

    Attributes:
        goal: what the conversation is to bring out.
        opening: what it begins with; may be empty, and the tester's first probe then comes first.
    """

    goal: Goal
    opening: str = ""

    def __str__(self) -> str:
        return self.opening


def tells_goal(text: str | None) -> bool:
    """Whether a text has a place for a goal: ``{goal}``, ``{category}`` or ``{context}``."""
    return text is not None and _PLACE.search(text) is not None


def goal_of(thing: Any) -> Goal | None:
    """The goal of a prompt or a state: its attribute ``goal``, or None where it has none."""
    return getattr(thing, "goal", None)


def as_json(prompt: Any) -> Any:
    """A prompt as JSON; anything else as it is."""
    return {"opening": prompt.opening, **prompt.goal.columns()} if isinstance(prompt, Prompt) else prompt


def have_goals(prompts: Sequence[Any]) -> bool:
    """Whether prompts have goals; those of one source have, or none has."""
    return any(isinstance(prompt, Prompt) for prompt in prompts)
