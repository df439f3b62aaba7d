"""Chooses the conversations that a page shows, and formats them.

A page with all conversations of a long run would not open. So it shows those with the worst responses, and others
spread evenly over the rest, and says how many there are in total.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from astra_accel.core.outcomes import ANSWERED
from astra_accel.files.text import embedded_json, shortened, visible
from astra_accel.report.collect import Run
from astra_accel.report.parts import SCORE, Part, Row

MAX_EPISODES = 1500
MAX_BYTES = 6_000_000
MAX_TEXT = 20_000
SHOWN_ELSEWHERE = ("step", "episode", "path", "turn", "context", "probe", "response", SCORE)


def conversations(runs: Sequence[Run], max_episodes: int | None = None) -> tuple[list[dict[str, Any]], int]:
    """The episodes that a page shows, each as a dict for JSON, and how many episodes there are in total.

    ``{"run": 0, "source": "held-out", "episode": 3, "prompt": "…", "goal": "…", "worst": 0.8, "nodes": [[parent, probe,
    response, score, details], …]}``: the parent is an index into ``nodes``, or -1, and parents come first. A prompt
    without a goal has an empty one.

    Args:
        runs: the runs; the first has number 0.
        max_episodes: the limit over all runs together; None is ``MAX_EPISODES``.
    """
    shown, total = [], 0
    limit = (MAX_EPISODES if max_episodes is None else max_episodes) // len(runs)
    for index, run in enumerate(runs):
        parts = (*run.held_out, *run.training)
        episodes = [(part, number) for part in parts for number in range(part.num_episodes)]
        total += len(episodes)
        left = MAX_BYTES // len(runs)
        for place in choose([part.worst[number] for part, number in episodes], limit):
            episode = _episode(index, *episodes[place])
            left -= len(embedded_json(episode))
            if left < 0:
                break
            shown.append(episode)
    return shown, total


def choose(scores: Sequence[float | None], limit: int) -> list[int]:
    """Indices of at most ``limit`` episodes, worst first: half are the worst, half are spread over the others."""
    worst_first = sorted(range(len(scores)), key=lambda place: -_or_lowest(scores[place]))
    if len(worst_first) <= limit:
        return worst_first
    num_worst = (limit + 1) // 2
    others, num_others = worst_first[num_worst:], limit - num_worst
    return worst_first[:num_worst] + [others[step * len(others) // num_others] for step in range(num_others)]


def _episode(run: int, part: Part, number: int) -> dict[str, Any]:
    rows = part.episode(number)
    places = {tuple(row["path"]): place for place, row in enumerate(rows)}
    return {
        "run": run,
        "source": "held-out" if part.step is None else f"step {part.step}",
        "episode": rows[0]["episode"],
        "prompt": _shown(part.prompts[number]),
        "goal": _shown(rows[0].get("goal") or ""),
        "worst": _rounded(part.worst[number]),
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


def _details(row: Row) -> dict[str, float | str]:
    """The numbers of a turn, and what came of its question if that was not an answer."""
    values = {name: _rounded(value) for name, value in row.items() if name not in SHOWN_ELSEWHERE}
    found: dict[str, float | str] = {name: value for name, value in values.items() if value is not None}
    outcome = row.get("outcome")
    return found if outcome in (None, ANSWERED) else {"outcome": visible(outcome), **found}


def _shown(text: str) -> str:
    return visible(shortened(text, MAX_TEXT))


def _rounded(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return round(value, 4)


def _or_lowest(score: float | None) -> float:
    return -math.inf if score is None else score
