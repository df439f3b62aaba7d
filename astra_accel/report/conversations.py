"""Which conversations a page shows, and how it holds them.

A page of all the conversations of a long run would not open. So those with the worst responses are shown, and others
spread evenly over the rest; the page says how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from astra_accel.report.collect import Row, Run
from astra_accel.report.text import embedded_json, shortened, visible

MAX_EPISODES = 1500
MAX_BYTES = 6_000_000
MAX_TEXT = 20_000
SCORE = "response_score"
SHOWN_ELSEWHERE = ("step", "episode", "path", "turn", "context", "probe", "response", SCORE)


def conversations(runs: Sequence[Run]) -> tuple[list[dict[str, Any]], int]:
    """The episodes that a page shows, each a dict for JSON, and how many episodes there are.

    ``{"run": 0, "source": "held-out", "prompt": "…", "worst": 0.8, "nodes": [[parent, probe, response, score,
    details], …]}``: the parent is a place in ``nodes``, or -1, and parents come first.
    """
    shown, total = [], 0
    for index, run in enumerate(runs):
        episodes = [("held-out", rows) for rows in _episodes(run.held_out)]
        episodes += [(f"step {rows[0]['step']}", rows) for rows in _episodes(run.training)]
        total += len(episodes)
        chosen = choose([worst_score(rows) for _, rows in episodes], MAX_EPISODES // len(runs))
        left = MAX_BYTES // len(runs)
        for place in chosen:
            source, rows = episodes[place]
            episode = _episode(index, source, rows)
            left -= len(embedded_json(episode))
            if left < 0:
                break
            shown.append(episode)
    return shown, total


def choose(scores: Sequence[float | None], limit: int) -> list[int]:
    """Places of at most ``limit`` episodes, worst first: half of them the worst, half spread over the others."""
    worst_first = sorted(range(len(scores)), key=lambda place: -_or_lowest(scores[place]))
    if len(worst_first) <= limit:
        return worst_first
    num_worst = (limit + 1) // 2
    others, num_others = worst_first[num_worst:], limit - num_worst
    return worst_first[:num_worst] + [others[step * len(others) // num_others] for step in range(num_others)]


def worst_score(rows: Sequence[Row]) -> float | None:
    """The highest score of the responses; None where none has one."""
    scores = [row[SCORE] for row in rows if row.get(SCORE) is not None]
    return max(scores, default=None)


def _episodes(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each episode; a row has the episode's number within its step, and rows are in order."""
    return [list(of_one) for _, of_one in groupby(rows, key=lambda row: (row.get("step"), row["episode"]))]


def _episode(run: int, source: str, rows: Sequence[Row]) -> dict[str, Any]:
    places = {tuple(row["path"]): place for place, row in enumerate(rows)}
    return {
        "run": run,
        "source": source,
        "prompt": _shown(rows[0]["context"]),
        "worst": _rounded(worst_score(rows)),
        "nodes": [
            [
                places.get(tuple(row["path"][:-1]), -1),
                _shown(row["probe"]),
                _shown(row["response"]),
                _rounded(row.get(SCORE)),
                _details(row),
            ]
            for row in rows
        ],
    }


def _details(row: Row) -> dict[str, float]:
    values = {name: _rounded(value) for name, value in row.items() if name not in SHOWN_ELSEWHERE}
    return {name: value for name, value in values.items() if value is not None}


def _shown(text: str) -> str:
    return visible(shortened(text, MAX_TEXT))


def _rounded(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(value, 4)


def _or_lowest(score: float | None) -> float:
    return -math.inf if score is None else score
