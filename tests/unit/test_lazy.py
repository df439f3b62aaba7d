import collections

import pytest

from astra_accel.lazy import load, load_attribute, load_named


class Widget:
    def __init__(self, system, size, colour="red"):
        self.arguments = (system, size, colour)


WIDGETS = {"widget": f"{__name__}:Widget", "counter": "collections:Counter"}


def test_load_gives_what_a_location_points_to():
    assert load("collections:OrderedDict") is collections.OrderedDict


def test_load_attribute_gives_the_attribute_or_the_usual_error():
    locations = {"Counter": "collections:Counter"}

    assert load_attribute("package.module", "Counter", locations) is collections.Counter
    with pytest.raises(AttributeError, match=r"module 'package\.module' has no attribute 'Conter'"):
        load_attribute("package.module", "Conter", locations)


def test_load_named_gives_the_class_of_a_name_that_takes_the_options():
    assert load_named(WIDGETS, "widget", "widget", {"size": 3}) is Widget
    assert load_named(WIDGETS, "widget", "widget", {"size": 3, "colour": "blue"}) is Widget


def test_load_named_tells_an_unknown_name_from_the_known_ones():
    with pytest.raises(ValueError, match="unknown widget 'wodget'; expected one of widget, counter"):
        load_named(WIDGETS, "wodget", "widget", {})


def test_load_named_names_the_options_that_there_are_not():
    with pytest.raises(ValueError, match="widget 'widget' takes no option 'form', 'age'; expected size, colour"):
        load_named(WIDGETS, "widget", "widget", {"form": 1, "size": 2, "age": 3})


def test_the_system_is_no_option():
    with pytest.raises(ValueError, match="takes no option 'system'"):
        load_named(WIDGETS, "widget", "widget", {"system": None})
