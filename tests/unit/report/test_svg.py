"""Charts put things where they belong, read back as XML."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest

from astra_accel.report import svg
from astra_accel.report.svg import Labels, Series, bar_chart, histogram, interval_chart, line_chart, point_chart, ticks

LABELS = Labels("Title", "across <x>", "up")
LEFT, RIGHT = svg.LEFT, svg.WIDTH - svg.RIGHT
TOP, BOTTOM = svg.TOP, svg.HEIGHT - svg.BOTTOM


def parsed(chart):
    return ElementTree.fromstring(str(chart))


def places(text):
    return [tuple(map(float, point.split(","))) for point in text.split()]


def of_class(root, name):
    return [element for element in root.iter() if name in element.get("class", "").split()]


def test_a_line_goes_from_corner_to_corner():
    root = parsed(line_chart(LABELS, [Series("run", 1, [(0, 0.0), (5, 1.0), (10, 0.5)])]))
    (line,) = of_class(root, "line")
    middle = (LEFT + RIGHT) / 2
    expected = [(LEFT, BOTTOM), (middle, TOP), (RIGHT, (TOP + BOTTOM) / 2)]
    assert [pytest.approx(point, abs=0.06) for point in expected] == places(line.get("points"))
    assert line.get("class").split() == ["line", "s1"]
    assert [element.text for element in of_class(root, "label")] == ["across <x>", "up"]
    assert [dot.find("title").text for dot in of_class(root, "dot")] == ["run: 0, 0", "run: 5, 1", "run: 10, 0.5"]


def test_a_band_goes_around_its_line():
    root = parsed(line_chart(LABELS, [Series("run", 0, [(0, 0.5), (1, 0.5)], [(0.25, 0.75), (0.0, 1.0)])], unit=True))
    (band,) = of_class(root, "band")
    height = BOTTOM - TOP
    assert places(band.get("points")) == [
        pytest.approx(point, abs=0.06)
        for point in ((LEFT, BOTTOM - height / 4), (RIGHT, BOTTOM), (RIGHT, TOP), (LEFT, TOP + height / 4))
    ]


def test_intervals_of_two_runs_stand_beside_one_another():
    series = [Series(str(number), number, [(1, 0.5)], [(0.25, 0.75)]) for number in (0, 1)]
    first, second = of_class(parsed(interval_chart(LABELS, series)), "whisker")
    assert first.get("x1") != second.get("x1")
    for whisker in (first, second):
        assert float(whisker.get("y1")) == pytest.approx(BOTTOM - (BOTTOM - TOP) / 4, abs=0.06)
        assert float(whisker.get("y2")) == pytest.approx(TOP + (BOTTOM - TOP) / 4, abs=0.06)


def test_shares_of_a_histogram():
    """Of 0, 0.1, 0.6 and 1, half are in the first of two bins: its line is as high as that of the second."""
    root = parsed(histogram("Title", "score", [("run", 0, [0.0, 0.1, 0.6, 1.0])], num_bins=2))
    (line,) = of_class(root, "line")
    heights = [y for _, y in places(line.get("points"))]
    assert heights == pytest.approx([BOTTOM, TOP, TOP, TOP, TOP, BOTTOM])


def test_bars_are_as_long_as_what_they_show():
    first, second = of_class(parsed(bar_chart("Title", [("a", 0, 10.0), ("b", 7, 2.5)], "s")), "bar")
    assert float(second.get("width")) == pytest.approx(float(first.get("width")) / 4, abs=0.1)
    assert second.get("class") == "bar s1"  # colours come round


@pytest.mark.parametrize("points", [[(3, 0.7)], [(1, 2.0), (2, 2.0)], [(1, 0.0), (1, 0.0)], [(0, -1e9), (1, 1e9)]])
def test_points_that_are_the_same_or_far_apart_are_on_the_chart(points):
    for dot in of_class(parsed(point_chart(LABELS, [Series("run", 0, points)])), "dot"):
        assert LEFT - 0.1 <= float(dot.get("cx")) <= RIGHT + 0.1
        assert TOP - 0.1 <= float(dot.get("cy")) <= BOTTOM + 0.1


def test_names_are_text():
    root = parsed(point_chart(LABELS, [Series('</title><script>"', 0, [(0, 0)])]))
    assert of_class(root, "dot")[0].find("title").text == '</title><script>": 0, 0'


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.3, 7.2, [2, 4, 6]),
        (-5, 5, [-4, -2, 0, 2, 4]),
        (1000, 5000, [1000, 2000, 3000, 4000, 5000]),
        (0.0012, 0.0018, [0.0012, 0.0014, 0.0016, 0.0018]),
    ],
)
def test_ticks_are_round_numbers_within(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)
