"""The reference of the configuration, from the models in ``astra_accel/config/``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from markdown_parts import code, table

from astra_accel import config
from astra_accel.config import Named, RunConfiguration

Schema = Mapping[str, Any]

KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "`true` or `false`", "null": "`null`"}
NONE = re.compile(r"\bNone\b")
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def configuration() -> str:
    """A part a section: what it is, and a table of its fields."""
    schema = RunConfiguration.model_json_schema()
    return "\n\n".join(_sections(schema["properties"], schema["$defs"], parent="", level=2))


def _sections(properties: Schema, definitions: Schema, parent: str, level: int) -> list[str]:
    """The sections among some fields and, behind each, those within it. Fields of the same kind share one."""
    names_of: dict[str, list[str]] = {}
    for name, field in properties.items():
        kind = section_kind(field)
        if kind is not None:
            names_of.setdefault(kind, []).append(name)
    parts = []
    for kind, names in names_of.items():
        fields = definitions[kind]["properties"]
        paths = [f"{parent}{name}" for name in names]
        parts.append(f"{'#' * level} {', '.join(paths)}")
        parts.append(_what(definitions[kind]))
        parts += [f"{code(path)}: {_meaning(field)}" for path, field in _described(paths, names, properties)]
        parts.append(_table(kind, fields, paths))
        for path in paths:
            parts += _sections(fields, definitions, parent=f"{path}.", level=level + 1)
    return parts


def section_kind(field: Schema) -> str | None:
    """The class of the section that a field holds, or may hold; None for a value."""
    for choice in field.get("anyOf", [field]):
        if "$ref" in choice:
            return str(choice["$ref"]).rpartition("/")[2]
    return None


def _what(definition: Schema) -> str:
    """The first paragraph of a section's docstring."""
    return str(definition["description"]).partition("\n\n")[0]


def _described(paths: list[str], names: list[str], properties: Schema) -> list[tuple[str, Schema]]:
    """The fields that say more than their section does."""
    fields = [(path, properties[name]) for path, name in zip(paths, names, strict=True)]
    return [(path, field) for path, field in fields if "description" in field]


def _table(kind: str, fields: Schema, paths: list[str]) -> str:
    rows = []
    for name, field in fields.items():
        if section_kind(field) is None:
            anchors = "".join(f'<a id="{path}.{name}"></a>' for path in paths)
            default = code(json.dumps(field["default"], ensure_ascii=False)) if "default" in field else "needed"
            rows.append((anchors + code(name), _type_of(kind, name, field), default, _meaning(field)))
    return table(("field", "type", "default", "meaning"), rows)


def _meaning(field: Schema) -> str:
    """A description, with the word of YAML for what is None in Python."""
    return NONE.sub("null", field["description"])


def _type_of(kind: str, name: str, field: Schema) -> str:
    section = getattr(config, kind)
    if name == "name" and issubclass(section, Named):
        return ", ".join(map(code, section.registry))
    return _type(field)


def _type(schema: Schema) -> str:
    """What a field takes, in words and signs."""
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(map(code, schema["enum"]))
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if schema.get("type") == "object":
        return "mapping"
    if schema.get("format") == "path":
        return "path"
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in BOUNDS.items() if bound in schema]
    bounds += ["not empty"] if schema.get("minLength") else []
    return ", ".join([KINDS[schema["type"]], *bounds])
