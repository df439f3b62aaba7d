"""YAML that is read back as it was; how files fill a configuration is in ``test_config.py``."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from astra_accel.errors import ConfigurationError
from astra_accel.yaml_files import dump_yaml, read_yaml

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), plain, max_size=4))
@example({"lr": 1e-4, "revision": "1234e56", "answer": "no", "empty": "", "date": "2024-01-01", "octal": "010"})
@example({"a": "0o17", "b": "0x1F", "c": "12:30", "d": "1_000", "e": "<<", "f": float("inf"), "g": ".inf"})
@example({"1e-4": {"null": ["1_000", ".5", "-3.", "~"]}})
def test_what_is_written_is_read_back(tmp_path_factory, values):
    file = tmp_path_factory.mktemp("yaml") / "config.yaml"
    file.write_text(dump_yaml(values), encoding="utf-8")
    assert read_yaml(file) == values


@pytest.mark.parametrize(
    ("text", "number"), [("1e-4", 1e-4), ("2E5", 2e5), (".5", 0.5), ("3.", 3.0), ("-1.e+2", -100.0)]
)
def test_floats_without_a_dot_or_a_sign(tmp_path: Path, text: str, number: float) -> None:
    (tmp_path / "config.yaml").write_text(f"lr: {text}\n")
    assert read_yaml(tmp_path / "config.yaml") == {"lr": number}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("2026-01-01", "2026-01-01"),
        ("12:30", "12:30"),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("~", None),
    ],
)
def test_scalars_are_those_of_yaml_1_2(tmp_path: Path, text: str, value: object) -> None:
    (tmp_path / "config.yaml").write_text(f"a: {text}\n")
    assert read_yaml(tmp_path / "config.yaml") == {"a": value}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "'a' is given twice"),
        ("a: {b: 1, b: 2}\n", "'b' is given twice"),
        ("a: [\n", "not valid YAML"),
        ("- a\n", "expected sections .*, found list"),
        ("1: a\n", "1: unknown field"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(ConfigurationError, match=message) as caught:
        read_yaml(file)
    assert str(file) in str(caught.value)


def test_nothing_there_and_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        read_yaml(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("# nothing\n")
    assert read_yaml(tmp_path / "config.yaml") == {}
