"""Options of a wrong type, by what a constructor annotates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch

from astra_accel.algorithms import ALGORITHMS, build_algorithm
from astra_accel.arguments import check_options
from astra_accel.errors import ConfigurationError
from astra_accel.lazy import load
from astra_accel.scorers import SCORERS, check_scorer

if TYPE_CHECKING:
    from astra_accel.core.system import System


class Widget:
    def __init__(
        self,
        system: System,
        size: int,
        weight: float = 1.0,
        *,
        cut: float | None = None,
        loud: bool = False,
        name: str = "w",
        kinds: Sequence[str] = (),
        mode: Literal["on", "off"] = "on",
        device: str | torch.device = "cpu",
        other: System | None = None,
        anything: Any = None,
        bare=None,
    ) -> None:
        pass


class Derived(Widget):
    """Has the constructor of its base."""


def check(options: dict[str, Any], cls: type = Widget) -> None:
    check_options(cls, options, "widget 'w'", "widget.options")


@pytest.mark.parametrize("cls", [Widget, Derived])
@pytest.mark.parametrize(
    "options",
    [
        {"size": 3, "weight": 0.5, "loud": True, "name": "x", "kinds": ["a"], "mode": "off", "device": "cuda"},
        {"weight": 1},  # a whole number is a number
        {"cut": None},
        {"cut": 2.5},
        {"kinds": ("a", "b")},
        {"device": torch.device("cpu")},
        {"other": "known to type checkers alone", "anything": object(), "bare": [1]},
    ],
)
def test_values_of_the_annotated_types_are_taken(options, cls):
    check(options, cls)


@pytest.mark.parametrize("cls", [Widget, Derived])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": "0.1"}, "widget.options.weight: found '0.1'; input should be a valid number"),
        ({"weight": None}, "widget.options.weight: found None; input should be a valid number"),
        ({"weight": True}, "widget.options.weight: found True; input should be a valid number"),
        ({"weight": [1.0]}, "widget.options.weight: found [1.0]; input should be a valid number"),
        ({"weight": math.nan}, "widget.options.weight: found nan; input should be a finite number"),
        ({"cut": math.inf}, "widget.options.cut: found inf; input should be a finite number"),
        ({"cut": "x"}, "widget.options.cut: found 'x'; input should be a valid number"),
        ({"size": True}, "widget.options.size: found True; input should be a valid integer"),
        ({"size": 2.0}, "widget.options.size: found 2.0; input should be a valid integer"),
        ({"loud": 1}, "widget.options.loud: found 1; input should be a valid boolean"),
        ({"name": 3}, "widget.options.name: found 3; input should be a valid string"),
        ({"kinds": "abc"}, "widget.options.kinds: found 'abc'; 'str' instances are not allowed as a Sequence value"),
        ({"kinds": ["a", 2]}, "widget.options.kinds: found ['a', 2]; input should be a valid string"),
        ({"mode": "of"}, "widget.options.mode: found 'of'; input should be 'on' or 'off'"),
        (
            {"device": 0},
            "widget.options.device: found 0; input should be a valid string or input should be an instance",
        ),
    ],
)
def test_another_type_is_named_with_its_field(options, message, cls):
    with pytest.raises(ConfigurationError) as error:
        check(options, cls)
    assert str(error.value).startswith(message)


def test_every_wrong_option_is_told_at_once():
    with pytest.raises(ConfigurationError, match=r"options.size: found 'x'; .*; widget.options.weight: found None; "):
        check({"size": "x", "weight": None})


def test_an_unknown_option_is_told_with_the_one_that_was_meant():
    with pytest.raises(ConfigurationError, match=r"^widget.options: .* takes no option 'wieght'; .*mean 'weight'\?$"):
        check({"wieght": 1})


OF_ALGORITHMS = [
    (name, option, 1 if isinstance(default, str) else "x")
    for name, location in ALGORITHMS.items()
    for option, default in load(location).__init__.__kwdefaults__.items()
]


@pytest.mark.parametrize(("name", "option", "value"), OF_ALGORITHMS)
def test_each_option_of_each_algorithm_has_its_type(name, option, value):
    with pytest.raises(ConfigurationError, match=f"^algorithm.options.{option}: found {value!r}"):
        build_algorithm(name, None, **{option: value})


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("value", ["x", None, 8.5, True, [8]])
def test_each_scorer_has_a_batch_size_that_is_a_number(name, value):
    with pytest.raises(ConfigurationError, match=r"^evaluation.scorers.own.options.batch_size: found "):
        check_scorer(name, {"batch_size": value}, "evaluation.scorers.own")
