"""Charts as SVG text: lines with bands, points with intervals, bars. Their colours come from the page's style sheet.

Elements of run ``i`` have the class ``s<i>``. Everything is made of numbers and escaped labels, so that nothing from a
run can become markup.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 280
LEFT, RIGHT, TOP, BOTTOM = 76, 12, 12, 48  # with room for larger letters on phones
NUM_COLOURS = 6
Place = Callable[[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Labels:
    """A chart's title and axis labels."""

    title: str
    x: str
    y: str


@dataclass(frozen=True)
class Series:
    """The data of one run in a chart.

    Attributes:
        name: the run's name.
        colour: the index of its colour, from 0.
        points: x and y of each point.
        band: low and high of each point; empty if there are none.
    """

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    band: Sequence[tuple[float, float]] = field(default=())


def line_chart(labels: Labels, series: Sequence[Series], unit: bool = False) -> Markup:
    """Lines with bands behind them, and dots if the points are few.

    Args:
        labels: its title and axis labels.
        series: the data of each run.
        unit: whether y goes from 0 to 1 whatever the points.
    """

    def draw(place: Place) -> Iterable[str]:
        for one in series:
            if one.band:
                edge = [place(x, low) for (x, _), (low, _) in zip(one.points, one.band, strict=True)]
                back = [place(x, high) for (x, _), (_, high) in zip(one.points, one.band, strict=True)]
                yield f'<polygon class="band s{one.colour % NUM_COLOURS}" points="{_path(edge + back[::-1])}"/>'
            line = _path([place(*point) for point in one.points])
            yield f'<polyline class="line s{one.colour % NUM_COLOURS}" points="{line}"/>'
            if len(one.points) <= 40:
                yield from (_dot(one, point, place) for point in one.points)

    return _chart(labels, series, draw, unit)


def interval_chart(labels: Labels, series: Sequence[Series], unit: bool = True) -> Markup:
    """A dot for each point with its interval as a bar; runs are side by side. Arguments as in a line chart."""

    def draw(place: Place) -> Iterable[str]:
        for number, one in enumerate(series):
            aside = 0.12 * (number - (len(series) - 1) / 2)
            for index, (x, y) in enumerate(one.points):
                moved = (x + aside, y)
                if one.band:
                    (across, low), (_, high) = (place(moved[0], end) for end in one.band[index])
                    yield (
                        f'<line class="whisker s{one.colour % NUM_COLOURS}" x1="{across:.1f}" x2="{across:.1f}" '
                        f'y1="{low:.1f}" y2="{high:.1f}"/>'
                    )
                yield _dot(one, moved, place, said=f"{_number(x)}: {_number(y)}")

    return _chart(labels, series, draw, unit, x_margin=0.5)


def point_chart(labels: Labels, series: Sequence[Series]) -> Markup:
    """Points only. Arguments as in a line chart."""

    def draw(place: Place) -> Iterable[str]:
        for one in series:
            yield from (_dot(one, point, place) for point in one.points)

    return _chart(labels, series, draw)


def histogram(
    title: str, x_label: str, values: Sequence[tuple[str, int, Sequence[float]]], num_bins: int = 20
) -> Markup:
    """The share of values in each of several equal bins from 0 to 1, as a step line for each run.

    Args:
        title, x_label: its title and the label of the x axis.
        values: the name, the colour and the values of each run.
        num_bins: the number of bins.
    """
    series = []
    for name, colour, of_run in values:
        counts = [0] * num_bins
        for value in of_run:
            counts[min(max(int(value * num_bins), 0), num_bins - 1)] += 1
        shares = [count / max(len(of_run), 1) for count in counts]
        corners = [(edge / num_bins, share) for place, share in enumerate(shares) for edge in (place, place + 1)]
        series.append(Series(name, colour, [(0.0, 0.0), *corners, (1.0, 0.0)]))

    def draw(place: Place) -> Iterable[str]:
        for one in series:
            outline = _path([place(*point) for point in one.points])
            yield f'<polygon class="band s{one.colour % NUM_COLOURS}" points="{outline}"/>'
            yield f'<polyline class="line s{one.colour % NUM_COLOURS}" points="{outline}"/>'

    return _chart(Labels(title, x_label, "share"), series, draw)


def bar_chart(title: str, rows: Sequence[tuple[str, int, float]], unit: str) -> Markup:
    """A horizontal bar for each row: its label, colour index and value."""
    most = max(value for _, _, value in rows) or 1.0
    step = 44  # a bar's label is above it, with room for a long name
    parts = [f'<svg viewBox="0 0 {WIDTH} {step * len(rows)}" role="img" aria-label="{escape(title)}">']
    for number, (label, colour, value) in enumerate(rows):
        top, long = step * number, value / most * (WIDTH - 120)
        parts.append(
            f'<text class="tick" x="0" y="{top + 16}">{escape(label)}</text>'
            f'<rect class="bar s{colour % NUM_COLOURS}" x="0" y="{top + 22}" width="{long:.1f}" height="14"/>'
            f'<text class="tick" x="{long + 8:.1f}" y="{top + 34}">{_number(value)} {escape(unit)}</text>'
        )
    return Markup("".join([*parts, "</svg>"]))


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers between ``low`` and ``high``, spaced by 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _chart(
    labels: Labels,
    series: Sequence[Series],
    draw: Callable[[Place], Iterable[str]],
    unit: bool = False,
    x_margin: float = 0.0,
) -> Markup:
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points] + [end for one in series for ends in one.band for end in ends]
    x_low, x_high = _range([min(xs) - x_margin, max(xs) + x_margin])
    y_low, y_high = (0.0, 1.0) if unit else _range(ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        return across, HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(labels.title)}">',
        *_axes(place, ticks(x_low, x_high), ticks(y_low, y_high)),
        f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}">{escape(labels.x)}</text>',
        f'<text class="label" transform="translate(14 {middle}) rotate(-90)">{escape(labels.y)}</text>',
        *draw(place),
        "</svg>",
    ]
    return Markup("".join(parts))


def _axes(place: Place, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Iterable[str]:
    bottom = HEIGHT - BOTTOM
    for x in x_ticks:
        across, _ = place(x, 0)
        yield f'<line class="rule" x1="{across:.1f}" x2="{across:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield f'<text class="tick middle" x="{across:.1f}" y="{bottom + 16}">{_number(x)}</text>'
    for y in y_ticks:
        _, down = place(0, y)
        yield f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down:.1f}" y2="{down:.1f}"/>'
        yield f'<text class="tick end" x="{LEFT - 6}" y="{down + 4:.1f}">{_number(y)}</text>'


def _dot(series: Series, point: tuple[float, float], place: Place, said: str | None = None) -> str:
    across, down = place(*point)
    said = f"{_number(point[0])}, {_number(point[1])}" if said is None else said
    return (
        f'<circle class="dot s{series.colour % NUM_COLOURS}" cx="{across:.1f}" cy="{down:.1f}" r="3">'
        f"<title>{escape(series.name)}: {said}</title></circle>"
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The least and the greatest value, moved apart a little if they are equal."""
    low, high = min(values), max(values)
    if high - low > 1e-12 * max(abs(low), abs(high), 1e-3):
        return low, high
    aside = abs(high) / 10 or 0.5
    return low - aside, high + aside


def _path(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _number(value: float) -> str:
    return f"{value:.4g}"
