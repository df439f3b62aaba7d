"""Reads and writes YAML configurations: what is written is read back unchanged, and duplicate names are errors."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from astra_accel.errors import ConfigurationError

LINE_BREAKS = frozenset("\x85\u2028\u2029")


def to_yaml(section: BaseModel) -> str:
    """A section or a whole configuration as YAML, in the order of its fields."""
    return dump_yaml(section.model_dump(mode="json"))


def dump_yaml(values: Any) -> str:
    """Plain values as YAML that :func:`read_yaml` reads back unchanged."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(path: Path, may_be_empty: Callable[[Sequence[str]], bool] = lambda _: True) -> dict[str, Any]:
    """The sections of a file, whatever they contain.

    Args:
        path: the file.
        may_be_empty: whether a field, given by the names that lead to it, may be left empty (``name:`` and nothing, or
            only comments), which then means null. An explicit ``null`` is always allowed.

    Raises:
        FileNotFoundError: the file does not exist.
        ConfigurationError: it is not a YAML mapping with names, or a field is empty that may not be.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no configuration file at {path}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid YAML: {error}") from error
    if values is None or isinstance(values, _Empty):
        return {}
    if not isinstance(values, dict):
        raise ConfigurationError(f"{path}: expected sections (training, tester, …), found {type(values).__name__}")
    for name in values:
        if not isinstance(name, str):
            raise ConfigurationError(f"{path}: {name!r}: unknown field")
    return _filled(values, (), may_be_empty, path)


@dataclass(frozen=True)
class _Empty:
    """A value that is left empty, and its line."""

    line: int


def _filled(value: Any, names: tuple[str, ...], may_be_empty: Callable[[Sequence[str]], bool], path: Path) -> Any:
    """A value with null in place of what is left empty."""
    if isinstance(value, dict):
        return {_key(name): _filled(inner, (*names, str(name)), may_be_empty, path) for name, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, (*names, str(place)), may_be_empty, path) for place, inner in enumerate(value)]
    if not isinstance(value, _Empty):
        return value
    if may_be_empty(names):
        return None
    raise ConfigurationError(
        f"{path}, line {value.line}: {'.'.join(names)} is left empty (nothing, or comments alone); expected what it "
        f"holds, {{}} for all defaults of a section, or null if none is meant"
    )


def _key(name: Any) -> Any:
    return None if isinstance(name, _Empty) else name


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema, for which duplicate names are errors.

    So ``1e-4`` is a number, ``no`` and ``2026-01-01`` are texts, and ``010`` is ten.
    """

    def construct_null(self, node: yaml.ScalarNode) -> _Empty | None:
        """Distinguish an empty value from ``null`` and ``~``."""
        return None if node.value else _Empty(node.start_mark.line + 1)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for name in names:
            if names.count(name) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)

    def construct_int(self, node: yaml.ScalarNode) -> int:
        """Decimal, or octal and hexadecimal after ``0o`` and ``0x``."""
        return int(node.value, 0 if node.value[1:2].isalpha() else 10)


_Loader.add_constructor("tag:yaml.org,2002:null", _Loader.construct_null)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_int)


class _Dumper(yaml.SafeDumper):
    """SafeDumper that quotes whatever a reader could misinterpret.

    :class:`_Loader` would take a revision ``1234e56`` for a number, a reader of YAML 1.1 ``no`` for false. Unicode line
    breaks are escaped: otherwise they would be read back as spaces.
    """

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Quote strings that hold a line break."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style='"' if LINE_BREAKS & set(data) else None)


_Dumper.add_representer(str, _Dumper.represent_str)

# https://yaml.org/spec/1.2.2/#1032-tag-resolution; an integer is tried before a float.
_NUMBERS = {
    "int": re.compile(r"^([-+]?\d+|0o[0-7]+|0x[0-9a-fA-F]+)$"),
    "float": re.compile(r"^([-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"),
}
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in (
    ("null", re.compile(r"^(null|Null|NULL|~|)$"), [*"nN~", ""]),
    ("bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), [*"tTfF"]),
    ("merge", re.compile(r"^<<$"), ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, _first)
for _class in (_Loader, _Dumper):
    for _kind, _pattern in _NUMBERS.items():
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", _pattern, [*"-+.0123456789"])
