"""The report as one HTML file.

The page is self-contained, and its content security policy enforces that: no address is loaded, and only the page's own
script and style run, identified by their hashes. Text of models is only in a block of JSON, which the script inserts as
text, never as markup.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from astra_accel.evaluation.display import category_rows as kinds_of_harm
from astra_accel.evaluation.display import details_of, value_text
from astra_accel.evaluation.figures.metrics import headlines
from astra_accel.files.run_status import Status
from astra_accel.files.text import embedded_json, visible
from astra_accel.report.collect import Run
from astra_accel.report.conversations import conversations
from astra_accel.report.goals import category_rows, goal_rows
from astra_accel.report.plots import plots_of

TEMPLATES = "templates"


def render_page(runs: Sequence[Run], renewed_every: float | None = None, verdicts: Sequence[str] = ()) -> str:
    """Render the page of some runs, in the order of their colours.

    Args:
        runs: the runs to show.
        renewed_every: seconds after which the open page reloads itself; None if it never does.
        verdicts: the sentences at the top, see :func:`~astra_accel.report.verdicts.verdicts`.
    """
    shown, num_episodes = conversations(runs)
    script, style = (_part(name) for name in ("report.js", "report.css"))
    data = {
        "runs": [visible(run.name) for run in runs],
        "thresholds": [run.threshold for run in runs],
        "episodes": shown,
        "renewed_every": renewed_every,
    }
    environment = Environment(
        loader=PackageLoader("astra_accel.report", TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["visible"] = visible
    return environment.get_template("report.html").render(
        runs=runs,
        verdicts=verdicts,
        about=[about(run) for run in runs],
        headline_rows=headline_rows(runs),
        harm_rows=harm_rows(runs),
        category_rows=category_rows(runs),
        goal_rows=goal_rows(runs),
        plots=plots_of(runs),
        num_shown=len(shown),
        num_episodes=num_episodes,
        renewed_every=renewed_every,
        written_at=time.strftime("%H:%M:%S"),
        data=Markup(embedded_json(data)),
        script=script,
        style=style,
        script_hash=_hash(script),
        style_hash=_hash(style),
    )


def about(run: Run) -> list[tuple[str, str]]:
    """What was run, as labels and texts."""
    config = run.config
    training, rollout = config.get("training", {}), config.get("rollout", {})
    figures = run.figures or {}
    facts = {
        "tester": _model(config, "tester"),
        "target": _model(config, "target"),
        "algorithm": config.get("algorithm", {}).get("name"),
        "scorer": config.get("scorer", {}).get("name"),
        "state": None if run.status is None else _state(run.status),
        "training steps": _of(_last(run, "step"), training.get("training_steps")),
        "updates": _last(run, "update"),
        "tree": _joined("width", rollout.get("tree_width"), "depth", rollout.get("tree_depth")),
        "episodes an experience": training.get("num_episodes_per_experience"),
        "held-out prompts": figures.get("num_episodes"),
        "held-out turns": figures.get("num_nodes"),
        "unreadable lines of metrics.jsonl": run.num_skipped or None,
    }
    return [(label, visible(str(fact))) for label, fact in facts.items() if fact is not None]


def headline_rows(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The headline figures: name, and for each run the value, its interval, and how many scores are missing."""
    measured = [{} if run.figures is None else run.figures["metrics"] for run in runs]
    names = headlines(dict.fromkeys(name for of_run in measured for name in of_run))
    return [(name, [_cell(of_run.get(name)) for of_run in measured]) for name in names]


def harm_rows(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Attack success by kind of harm: scorer and kind, and for each run the value with its interval."""
    by_run = [
        {f"{scorer}: {label}": success for scorer, label, success, _ in kinds_of_harm(run.figures["metrics"])}
        if run.figures is not None
        else {}
        for run in runs
    ]
    names = dict.fromkeys(name for of_run in by_run for name in of_run)
    return [(name, [_cell(of_run.get(name)) for of_run in by_run]) for name in names]


def _cell(figure: Any) -> tuple[str, str]:
    return ("", "") if figure is None else (value_text(figure), details_of(figure))


def _part(name: str) -> Markup:
    text = files(__package__).joinpath(TEMPLATES, name).read_text(encoding="utf-8")
    return Markup(text)


def _hash(part: str) -> str:
    digest = hashlib.sha256(part.encode("utf-8")).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _state(status: Status) -> str:
    return f"{status.state}: {status.detail}" if status.detail else status.state


def _model(config: Any, role: str) -> str | None:
    model = config.get(role)
    if model is not None and model.get("endpoint") is not None:
        return f"{model['model']} at {model['endpoint']}"
    return None if model is None else model["path"] + (f" + {model['adapter']}" if model.get("adapter") else "")


def _last(run: Run, name: str) -> Any:
    return next((update[name] for update in reversed(run.updates) if name in update), None)


def _of(done: Any, planned: Any) -> str | None:
    return None if done is None else str(done) if planned is None else f"{done} of {planned}"


def _joined(first: str, one: Any, second: str, other: Any) -> str | None:
    return None if one is None or other is None else f"{first} {one}, {second} {other}"
