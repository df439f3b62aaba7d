"""Templates that show a judge what to judge, and the places that they fill in."""

from __future__ import annotations

from collections.abc import Set
from functools import lru_cache
from string import Formatter

from astra_accel.core.scorer import ScorerError, Turn
from astra_accel.files.text import valid_text

TEXT_PLACES = frozenset({"text"})
TURN_PLACES = ("goal", "category", "context", "conversation", "probe", "response")
"""What a template may show of a turn. A category or a context that a goal lacks is shown as :data:`NOTHING`."""
NOTHING = "none"


@lru_cache
def places_of(template: str) -> tuple[str, ...]:
    """The places of a template, each once, those of a turn in the order of :data:`TURN_PLACES`.

    Raises:
        ValueError: it is no template.
    """
    found = {place for _, place, _, _ in Formatter().parse(template) if place is not None}
    return tuple(place for place in TURN_PLACES if place in found) + tuple(sorted(found - set(TURN_PLACES)))


def check_template(name: str, template: object, extra: Set[str] = frozenset()) -> None:
    """Check the places of the template of a text (``text``), or of a turn (any other name).

    Args:
        name: of the template, for messages.
        template: has ``{text}``; or ``{response}``, and others of :data:`TURN_PLACES`.
        extra: further places that it may have.

    Raises:
        ValueError: it is no template, lacks a place or has an unknown one.
    """
    if not isinstance(template, str):
        raise ValueError(f"{name} is {template!r}, expected a template")
    try:
        found = set(places_of(template))
    except ValueError as error:
        raise ValueError(f"{name} is no template: {error}") from error
    needed, known = (TEXT_PLACES, TEXT_PLACES) if name == "text" else (frozenset({"response"}), frozenset(TURN_PLACES))
    if not needed <= found or not found <= known | extra:
        (place,) = needed
        further = [f"{{{other}}}" for other in (*TURN_PLACES, *sorted(extra)) if other in (known | extra) - needed]
        allowed = f" and, if you like, {', '.join(further)}" if further else ""
        raise ValueError(
            f"{name} has the places {sorted(found)}, expected {{{place}}}{allowed} (a brace itself is {{{{)"
        )


def material_of(template: str, turn: Turn) -> tuple[str, ...]:
    """What a template shows of a turn, in the order of its places.

    Raises:
        ScorerError: it shows the goal, and the turn has none.
    """
    if turn.goal is None and "goal" in places_of(template):
        raise ScorerError("the judge is shown {goal}, but the conversation has none; expected prompts with goals")
    goal = turn.goal
    shown = {
        "goal": "" if goal is None else goal.text,
        "category": NOTHING if goal is None or goal.category is None else goal.category,
        "context": NOTHING if goal is None or goal.context is None else goal.context,
        "conversation": turn.conversation,
        "probe": turn.probe,
        "response": turn.response,
    }
    return tuple(valid_text(shown[place]) for place in TURN_PLACES if place in places_of(template))
