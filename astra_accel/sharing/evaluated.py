"""Puts the figures of an evaluation into a tester's card.

They are made after the tester, so they go between two comments; the text around those may have been edited.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard

from astra_accel.evaluation.display import category_rows, details_of, value_text
from astra_accel.evaluation.figures.metrics import headlines
from astra_accel.evaluation.figures.missing import num_missing_of
from astra_accel.evaluation.folder import FIGURES, EvaluationFolder, find_evaluation
from astra_accel.files.atomic import write_atomically
from astra_accel.files.run_folder import CONFIG
from astra_accel.sharing.markdown import table, without_place

BEGIN, END = "<!-- figures of the evaluation: begin -->", "<!-- figures of the evaluation: end -->"
NOT_EVALUATED = f"{BEGIN}\nThis tester has not been evaluated yet (`astra-accel evaluate`).\n{END}"


def with_evaluation(card: str, evaluation: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """A card with the figures of an evaluation in the place reserved for them; everything else is unchanged.

    Args:
        card: a README that :func:`model_card` wrote, edited or not. Without that place it is unchanged.
        evaluation: ``metrics.json`` of the evaluation.
        config: the run's configuration.
    """
    loaded = ModelCard(card)
    place = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    if place.search(loaded.text) is None:
        return card
    loaded.text = place.sub(lambda _: f"{BEGIN}\n{_evaluated(evaluation)}\n{END}", loaded.text, count=1)
    loaded.data["model_name"] = loaded.data.get("model_name") or "tester"
    loaded.data["eval_results"] = _eval_results(evaluation, config)
    return str(loaded)


def evaluation_of(run: str | Path) -> dict[str, Any] | None:
    """The figures of a run's evaluation; None if it has none."""
    folder = EvaluationFolder(find_evaluation(run))
    return folder.metrics() if (folder.path / FIGURES).is_file() else None


def update_card(card: Path, run: Path) -> None:
    """Put the figures of a run's evaluation into a card, if both exist."""
    evaluation = evaluation_of(run)
    if evaluation is None or not card.is_file():
        return
    config = yaml.safe_load((run / CONFIG).read_text(encoding="utf-8")) if (run / CONFIG).is_file() else {}
    write_atomically(card, with_evaluation(card.read_text(encoding="utf-8"), evaluation, config))


def _evaluated(evaluation: Mapping[str, Any]) -> str:
    figures = evaluation["metrics"]
    about = (
        f"{evaluation['num_episodes']} held-out prompts, {evaluation['num_nodes']} turns; a response with a score of "
        f"at least {evaluation['threshold']} is a success of the attack. In brackets "
        f"{evaluation['interval']['confidence']:.0%} intervals: how much a figure would vary with other prompts."
    )
    rows = [(name, _with_interval(figures[name])) for name in headlines(figures)]
    if any(num_missing_of(figures[name]) for name in headlines(figures)):
        about += (
            " Some scores are missing: such a figure ranges from all of those responses being safe to all of them "
            "being failures of the target."
        )
    parts = [about, table(("figure", "value"), rows)]
    kinds = [
        (scorer, label, _with_interval(success), _with_interval(score))
        for scorer, label, success, score in category_rows(figures)
    ]
    if kinds:
        parts.append(table(("scorer", "kind of harm", "attack success", "mean score"), kinds))
    return "\n\n".join(parts)


def _eval_results(evaluation: Mapping[str, Any], config: Mapping[str, Any]) -> list[EvalResult]:
    source = (config.get("prompts", {}).get("test") or {}).get("source", "held-out prompts")
    figures = evaluation["metrics"]
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=without_place(source),
            dataset_name=f"{evaluation['num_episodes']} held-out prompts",
            metric_type=name,
            metric_name=_range_of(name, figures[name]),
            metric_value=figures[name]["value"],
        )
        for name in headlines(figures)
        if figures[name]["value"] is not None
    ]


def _range_of(name: str, figure: Mapping[str, Any]) -> str | None:
    """A longer name, with its range, for a figure that a single value does not fully describe."""
    return f"{name} ({value_text(figure)}, {num_missing_of(figure)} missing)" if num_missing_of(figure) else None


def _with_interval(figure: Mapping[str, Any]) -> str:
    details = details_of(figure)
    return value_text(figure) + (f" ({details})" if details else "")
