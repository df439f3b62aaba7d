"""A run's configuration as text for its files and trackers, and the differences between two of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from astra_accel.config import RunConfiguration, Section, TrainingConfiguration
from astra_accel.yaml_files import to_yaml


class _Training(Section):
    training: TrainingConfiguration


def config_yaml(config: TrainingConfiguration, run_config: RunConfiguration | None) -> str:
    """The whole configuration as YAML, or the section ``training`` if only that is known."""
    return to_yaml(_Training(training=config) if run_config is None else run_config)


def changed_fields(before: str, after: str) -> dict[str, str]:
    """The fields that differ between two YAML configurations, by name, as ``training.lr: 0.001, now 0.01``.

    A field that an earlier version did not have yet is no difference while it has its default. A run that was set up in
    Python has no sections but ``training``, and what it did is not known.
    """
    old, new = flat(before), flat(after)
    default = flat(RunConfiguration().to_yaml()) if "algorithm.name" in old else {}
    added = {name for name in new.keys() - old.keys() if not _is_within(name, old) and new[name] == default.get(name)}
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name) and name not in added]
    return {name: f"{name}: {old.get(name)!r}, now {new.get(name)!r}" for name in names}


def _is_within(name: str, fields: Collection[str]) -> bool:
    """Whether a field of this name lies in a section that is null among these fields, such as ``lora``."""
    parts = name.split(".")
    return any(".".join(parts[:end]) in fields for end in range(1, len(parts)))


def flat(config: str) -> dict[str, Any]:
    """A YAML configuration as one mapping with dotted names; lists become text, which every tracker accepts."""
    return _flat(yaml.safe_load(config), "")


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flattened: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flattened |= _flat(value, f"{prefix}{name}.")
        else:
            flattened[f"{prefix}{name}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flattened
