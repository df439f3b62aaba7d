"""Describes the effect of training on attack success in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from astra_accel.evaluation.compare import FIRST, SECOND
from astra_accel.evaluation.figures.metrics import ANY_TURN
from astra_accel.evaluation.figures.missing import LOWER, NUM_MISSING, UPPER

WEIGHTS = "tester.weights"
"""The only setting of an evaluation that training changes."""

Range = tuple[float, float]
"""The range in which a number may lie because of missing scores; two equal values if none are missing."""


def verdict(comparison: Mapping[str, Any]) -> str | None:
    """How many conversations brought out an unsafe response with each tester, and whether the two differ.

    ``Before training, 4 of 120 conversations brought out an unsafe response (3%); after, 52 of 120 (43%): 40 points
    more (95% interval 31 to 49).`` The difference and its interval are the paired ones of the comparison. If scores are
    missing, numbers are ranges between the worst cases, and the interval covers both of them.

    Args:
        comparison: the result of :func:`~astra_accel.evaluation.compare.compare`, with
            :data:`~astra_accel.evaluation.figures.metrics.ANY_TURN` among its figures.

    Returns:
        One sentence; more if scores are missing or settings besides the weights differ. None if the evaluations have no
        attack success.
    """
    figure = comparison["metrics"].get(ANY_TURN)
    if figure is None or figure["difference"]["value"] is None:
        return None
    num_episodes, trained = comparison["num_episodes"], comparison["trained"]
    of_training = trained[FIRST] is False and trained[SECOND] is True
    before, after = ("Before training", "after") if of_training else ("With the first tester", "with the second")
    first, second = _range(figure, FIRST), _range(figure, SECOND)
    sentences = [
        f"{before}, {_count(first, num_episodes)} conversations brought out an unsafe response ({_percent(first)}); "
        f"{after}, {_count(second, num_episodes)} ({_percent(second)}): "
        f"{_difference(figure['difference'], num_episodes, of_training)}."
    ]
    num_missing = sum(side[NUM_MISSING] for side in figure.get("missing", {}).values())
    if num_missing:
        sentences.append(_about_missing(num_missing, _is_range(first) or _is_range(second)))
    others = [line for line in comparison["differing"] if not line.startswith(WEIGHTS)]
    if others and of_training:
        sentences.append(f"Not only training differs between the two: {'; '.join(others)}.")
    return " ".join(sentences)


def _difference(difference: Mapping[str, Any], num_episodes: int, of_training: bool) -> str:
    least, most = difference.get(LOWER, difference), difference.get(UPPER, difference)
    values, low, high = (least["value"], most["value"]), least["low"], most["high"]
    if low is None or high is None:
        return f"{_signed(values)}, of which so few conversations have no interval"
    if low > 0:
        return f"{_span(values)} points more (95% interval {_span((low, high))})"
    if high < 0:
        worse = "the tester got worse, " if of_training else ""
        return f"{worse}{_span(_turned(values))} points fewer (95% interval {_span(_turned((low, high)))})"
    found = f"{_signed(values)}, 95% interval {_signed((low, high))}"
    return f"no difference that {num_episodes} conversations can show ({found})"


def _about_missing(num_missing: int, matters: bool) -> str:
    scores = "1 score is" if num_missing == 1 else f"{num_missing} scores are"
    if not matters:
        return f"{scores} missing, which changes none of these numbers."
    return (
        f"{scores} missing: ranges go from all responses without a score being safe to all of them being unsafe, and "
        f"the interval is around the whole range."
    )


def _range(figure: Mapping[str, Any], side: str) -> Range:
    ends = figure.get("missing", {}).get(side, {})
    return ends.get(LOWER, figure[side]), ends.get(UPPER, figure[side])


def _is_range(values: Range) -> bool:
    return values[0] != values[1]


def _turned(values: Range) -> Range:
    return -values[1], -values[0]


def _count(shares: Range, num_episodes: int) -> str:
    return f"{_joined(*(str(round(share * num_episodes)) for share in shares))} of {num_episodes}"


def _percent(shares: Range) -> str:
    return _joined(*(f"{_rounded(100 * share)}%" for share in shares))


def _span(differences: Range) -> str:
    return _joined(*(_rounded(100 * value) for value in differences))


def _signed(differences: Range) -> str:
    """``2 points fewer``, or ``3 points fewer to 7 points more``."""
    return _joined(*(_signed_points(100 * value) for value in differences))


def _signed_points(points: float) -> str:
    number = _rounded(abs(points))
    return f"{number} point{'s' * (number != '1')}{'' if points == 0 else ' more' if points > 0 else ' fewer'}"


def _joined(low: str, high: str) -> str:
    return low if low == high else f"{low} to {high}"


def _rounded(number: float) -> str:
    """The number without decimals, unless that would hide that it is not 0, or not 100."""
    return f"{number:.1f}" if 0 < number < 1 or 99 < number < 100 else str(math.floor(number + 0.5))
