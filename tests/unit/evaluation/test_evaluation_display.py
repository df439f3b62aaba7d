"""Figures as a person reads them."""

from __future__ import annotations

import pytest

from astra_accel.evaluation.display import interval_of, number


@pytest.mark.parametrize(
    ("value", "shown"), [(None, "-"), (0.12345, "0.123"), (-4.5, "-4.500"), (99.9996, "100.000"), (1234.5, "1234")]
)
def test_numbers(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("figure", "shown"),
    [
        ({"value": 0.5, "low": 0.25, "high": 0.75}, "0.250 to 0.750"),
        ({"value": 6.0, "low": 3.0, "high": None}, "from 3.000"),
        ({"value": None, "low": None, "high": None}, ""),
        ({"value": 0.5}, ""),
    ],
)
def test_intervals(figure, shown):
    assert interval_of(figure) == shown
