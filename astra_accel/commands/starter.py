"""Writes a configuration as YAML with the meaning of each field, generated from the models in `config/`."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from astra_accel.algorithms import ALGORITHMS
from astra_accel.config import Named, RunConfiguration, section_of
from astra_accel.config.fields import choices_of
from astra_accel.lazy import load
from astra_accel.scorers import SCORERS

USUAL = (
    "training.lr",
    "training.batch_size",
    "training.training_steps",
    "training.num_episodes_per_experience",
    "training.seed",
    "training.output_dir",
    "training.save_steps",
    "training.eval_steps",
    "training.log_with",
    "tester.path",
    "target.path",
    "lora.r",
    "lora.alpha",
    "rollout.tree_width",
    "rollout.tree_depth",
    "rollout.format",
    "rollout.tester.max_new_tokens",
    "rollout.target.max_new_tokens",
    "scorer.name",
    "scorer.options",
    "prompts.train.source",
    "prompts.train.split",
    "algorithm.name",
    "algorithm.options",
    "evaluation.threshold",
)
"""The fields that a file contains unless it is full: those that most runs set."""

WIDTH = 100
NOT_OPTIONS = ("system", "device")
REGISTRIES: Mapping[str, Mapping[str, str]] = {"algorithm": ALGORITHMS, "scorer": SCORERS}


def starter(config: RunConfiguration, full: bool) -> str:
    """The YAML text of a configuration, with every field or only the usual ones; the others have their defaults.

    Args:
        config: the configuration to write. Its fields that are not usual have their defaults.
        full: whether to write every field.
    """
    what = "every field" if full else "the usual fields (every one: `astra-accel init - --full`)"
    head = [
        f"# A run of astra_accel: {what}. What is left out has its default.",
        "# Check it with `astra-accel doctor --config FILE`, start it with `astra-accel train --config FILE`.",
    ]
    return "\n".join([*head, *_fields(config, config.model_dump(mode="json"), "", full)]) + "\n"


def _fields(model: BaseModel, values: Mapping[str, Any], prefix: str, full: bool) -> Iterator[str]:
    """The lines of a section's fields; those of subsections are indented further."""
    indent = "  " * prefix.count(".")
    for name, field in type(model).model_fields.items():
        section = getattr(model, name)
        if isinstance(section, BaseModel):
            lines = list(_fields(section, values[name], f"{prefix}{name}.", full))
            if lines:
                yield from [] if indent else [""]
                yield from _comment(field.description or _first_sentence(section), indent)
                yield f"{indent}{name}:"
                yield from lines
        elif full or f"{prefix}{name}" in USUAL:
            yield from _comment(_meaning(field.description or "", choices_of(type(model), name)), indent)
            if isinstance(model, Named) and name == "options":
                yield from _options(model, indent)
            if (left_out := section_of(field.annotation)) is not None:
                yield from _section(left_out, indent)
            yield f"{indent}{name}: {_as_yaml(values[name])}"


def _meaning(description: str, choices: tuple[str, ...]) -> str:
    """The meaning of a field, and its allowed values unless the description already names them."""
    text = re.sub(r"\bNone\b", "null", " ".join(description.split()))
    return text if all(choice in text for choice in choices) else f"{text} One of {', '.join(choices)}."


def _first_sentence(section: BaseModel) -> str:
    text = " ".join((type(section).__doc__ or "").split())
    return text.partition(". ")[0].rstrip(".") + "."


def _options(section: Named, indent: str) -> list[str]:
    """The options that a class accepts, with the defaults of its constructor."""
    parameters = inspect.signature(load(REGISTRIES[section.kind][section.name])).parameters
    options = {
        name: parameter.default
        for name, parameter in parameters.items()
        if name not in NOT_OPTIONS and parameter.default is not inspect.Parameter.empty
    }
    lines = _comment(f"Of {section.name}, with their defaults:", indent)
    return lines + [f"{indent}#   {name}: {_as_yaml(value)}" for name, value in options.items()]


def _section(section: type[BaseModel], indent: str) -> Iterator[str]:
    """The fields of an omitted section, with their defaults, as comments."""
    yield from _comment("Its fields, with their defaults:", indent)
    for name, value in section.model_construct().model_dump(mode="json").items():
        meaning = _meaning(section.model_fields[name].description or "", choices_of(section, name))
        yield from _comment(meaning, f"{indent}#   ")
        yield f"{indent}#   {name}: {_as_yaml(value)}"


def _comment(text: str, indent: str) -> list[str]:
    return [f"{indent}# {line}" for line in textwrap.wrap(text, WIDTH - len(indent), break_on_hyphens=False)]


def _as_yaml(value: Any) -> str:
    """A value on one line; JSON is valid YAML, but words don't need its quotes."""
    if isinstance(value, str) and re.fullmatch(r"[A-Za-z_.][\w./:-]*", value) and yaml.safe_load(value) == value:
        return value
    return json.dumps(value, ensure_ascii=False)
