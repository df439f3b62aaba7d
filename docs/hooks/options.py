"""What algorithms, scorers and reward terms are and take, from their docstrings and constructors.

The code is read, not imported: torch stays out of a build of the documents.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import griffe
from docstrings import to_markdown
from markdown_parts import code, table

from astra_accel.algorithms import ALGORITHMS
from astra_accel.config import RewardConfiguration
from astra_accel.scorers import SCORERS

ROOT = Path(__file__).parents[2]
REWARDS = "methods.ast.rewards"
# Terms whose weights have the names that the reference gave them.
WEIGHTS = {
    "combined_score": "combined_weight",
    "response_score": "defense_toxicity_weight",
    "naturalness": "ppl_weight",
}


def algorithms() -> str:
    """One section per algorithm, headed by its name in configurations."""
    return _registry(ALGORITHMS)


def scorers() -> str:
    """One section per scorer, headed by its name in configurations."""
    return _registry(SCORERS)


def terms() -> str:
    """One section per term of the reward: its name, its weight, and what it is."""
    parts = []
    for name, cls in sorted(_terms(), key=lambda term: list(_weights()).index(weight_of(term[0]))):
        weight = weight_of(name)
        parts.append(f"## {name}")
        parts.append(f"Weight: {code(f'reward.{weight}')}, {_weights()[weight]:g} by default. Class: {code(cls.name)}.")
        parts.append(_text(cls))
    return "\n\n".join(parts)


def weight_of(term: str) -> str:
    """The field of the configuration that weighs a term."""
    return WEIGHTS.get(term, f"{term}_weight")


def _weights() -> dict[str, float]:
    return {name: value for name, value in RewardConfiguration().model_dump().items() if name.endswith("_weight")}


def _terms() -> Iterator[tuple[str, Any]]:
    for module in _package()[REWARDS].modules.values():
        for cls in module.classes.values():
            if not cls.is_alias and "name" in cls.attributes and cls.attributes["name"].value is not None:
                yield str(cls.attributes["name"].value).strip("'\""), cls


def _registry(registry: Mapping[str, str]) -> str:
    parts = []
    for name, location in registry.items():
        cls = _package()[location.replace(":", ".").removeprefix("astra_accel.")]
        parts += [f"## {name}", _text(cls), _options(cls)]
    return "\n\n".join(parts)


@cache
def _package() -> Any:
    return griffe.load("astra_accel", search_paths=[ROOT])


def _text(cls: Any) -> str:
    """What a docstring says before its sections."""
    return to_markdown("\n\n".join(section.value for section in _sections(cls) if section.kind.value == "text"))


def _options(cls: Any) -> str:
    rows = [
        (code(option.name), code(option.annotation), _default(option), to_markdown(_meaning(cls, option.name)))
        for option in cls.parameters
        if option.name not in ("self", "system")
    ]
    return table(("option", "type", "default", "meaning"), rows)


def _default(option: Any) -> str:
    return "needed" if option.default is None else code(option.default)


def _meaning(cls: Any, option: str) -> str:
    """What a docstring says of an argument; one that points to a base class is asked there."""
    meaning = ""
    for owner in [cls, *cls.mro()]:
        meaning = _arguments(owner).get(option, meaning)
        if meaning and not meaning.startswith("see "):
            break
    return meaning


def _arguments(cls: Any) -> dict[str, str]:
    """The meanings of arguments by name; one line of a docstring may describe several."""
    described = [item for section in _sections(cls) if section.kind.value == "parameters" for item in section.value]
    return {name.strip(): " ".join(item.description.split()) for item in described for name in item.name.split(",")}


def _sections(cls: Any) -> list[Any]:
    return [] if cls.docstring is None else cls.docstring.parse("google", warnings=False)
