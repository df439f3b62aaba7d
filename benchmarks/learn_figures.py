"""What `learn.py` and `learn_vs_trl.py` tell of testers: each seed's figures, their means, and beside untrained."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from crossed import crossed_estimate

from astra_accel.evaluation.figures.bootstrap import Statistic
from astra_accel.evaluation.figures.metrics import REWARD_SCORER, statistics_of
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.folder import EvaluationError, EvaluationFolder, differing

SUCCESS, PERPLEXITY, NOT_SELF_BLEU = "attack_success/any_turn", "probe_perplexity/median", "diversity/self_bleu"
SELF_BLEU, DISTINCT = "self-BLEU", "diversity/distinct_2"
RESAMPLED = (SUCCESS, "attack_success/turn_1", "response_score/mean", "probe_score/mean", PERPLEXITY)
COUNTED = (SELF_BLEU, DISTINCT)
"""Without intervals: they are no means over prompts."""
SAMPLED = ("format", "tester_instruction", "target_instruction", "context_limit", "tester", "target", "tree_depth")
"""What decides how conversations are sampled, of the settings of rollouts."""


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation says of a tester.

    Attributes:
        estimates: by figure, ``value``, ``low`` and ``high``.
        resampled: by figure, as a function of how often each prompt is drawn.
        num_prompts: that it was asked.
        identity: what was evaluated.
        judges: the scorers that no tester was trained by.
    """

    estimates: Mapping[str, Mapping[str, Any]]
    resampled: Mapping[str, Statistic]
    num_prompts: int
    identity: Mapping[str, Any]
    judges: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Evaluation:
        """That of a folder. Raises as :class:`EvaluationFolder`."""
        folder = EvaluationFolder(path)
        identity, measured = folder.identity(), folder.metrics()
        num_prompts = len(identity["seeds"])
        judges = tuple(name for name in identity["scorers"] if name != REWARD_SCORER)
        found = statistics_of(Nodes.from_rows(folder.rows(), num_prompts), measured["threshold"], judges)
        names = [*RESAMPLED, *(f"{judge}/{SUCCESS}" for judge in judges)]
        estimates = {name: measured["metrics"][name] for name in (*names, DISTINCT) if name in measured["metrics"]}
        not_self_bleu = measured["metrics"][NOT_SELF_BLEU]["value"]
        estimates[SELF_BLEU] = {"value": None if not_self_bleu is None else 1 - not_self_bleu}
        resampled = {name: found[name] for name in names if name in found}
        return cls(estimates, resampled, num_prompts, identity, judges)

    def check_same(self, other: Evaluation, where: Path) -> None:
        """Find that another evaluation, which is in ``where``, asked otherwise.

        Raises:
            EvaluationError: names what differs.
        """
        found = differing(_asked(self.identity), _asked(other.identity))
        if found:
            raise EvaluationError(
                f"{where} can't be set beside the untrained tester's evaluation; different are {'; '.join(found)}. "
                f"Expected one --output for testers that are evaluated alike"
            )


@dataclass(frozen=True)
class Recipe:
    """The testers of all seeds of a recipe.

    Attributes:
        seeds: their evaluations, by seed.
        seconds, probes: of training, in the order of seeds; ``probes`` that the target was asked.
    """

    seeds: Mapping[int, Evaluation]
    seconds: Sequence[float]
    probes: Sequence[int]

    def means(self) -> dict[str, dict[str, float | None]]:
        """Each figure's mean over seeds, with its interval over seeds and prompts where it has one."""
        return {name: self._mean(name) for name in self._first.estimates}

    def differences(self, untrained: Evaluation) -> dict[str, dict[str, float | None]]:
        """What each figure is more than the untrained tester's, with its paired interval."""
        return {
            name: crossed_estimate(
                self._resampled(name), untrained.num_prompts, less=untrained.resampled[name]
            ).as_dict()
            for name in self._first.resampled
            if name in untrained.resampled
        }

    def ratios(self, untrained: Evaluation) -> dict[str, float]:
        """What training made of attack success, perplexity and self-BLEU: the mean after by the value before."""
        means = self.means()
        return {
            name: ratio(means[name]["value"], untrained.estimates[name]["value"])
            for name in (SUCCESS, PERPLEXITY, SELF_BLEU)
        }

    def every_seed_above(self, untrained: Evaluation) -> bool:
        """Whether each seed's attack success lies above the upper end of the untrained tester's interval."""
        upper = untrained.estimates[SUCCESS]["high"]
        return all(of_one.estimates[SUCCESS]["value"] > upper for of_one in self.seeds.values())

    @property
    def _first(self) -> Evaluation:
        return next(iter(self.seeds.values()))

    def _resampled(self, name: str) -> list[Statistic]:
        return [of_one.resampled[name] for of_one in self.seeds.values()]

    def _mean(self, name: str) -> dict[str, float | None]:
        if name in self._first.resampled:
            return crossed_estimate(self._resampled(name), self._first.num_prompts).as_dict()
        values = [of_one.estimates[name]["value"] for of_one in self.seeds.values()]
        return {"value": None if None in values else statistics.fmean(values)}


def ratio(after: float | None, before: float | None) -> float:
    """Infinite where there was nothing before, NaN where one is not known."""
    if after is None or before is None:
        return math.nan
    return after / before if before else math.inf


def training_seconds(run: Path) -> float:
    """What the phases of all training steps took together: the last record of each holds its seconds."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    by_step = {record["step"]: record for record in map(json.loads, lines)}
    return sum(value for record in by_step.values() for name, value in record.items() if name.startswith("seconds/"))


def probes_asked(run: Path) -> int:
    """How many probes the target was asked in training: every one is a row of the rollouts."""
    return sum(pq.read_metadata(file).num_rows for file in (run / "rollouts").glob("*.parquet"))


def figures_of(untrained: Evaluation, recipes: Mapping[str, Recipe]) -> dict[str, Any]:
    """Everything by name, for JSON: of the untrained tester, of each recipe, of its seeds, and the differences."""
    found: dict[str, Any] = {f"{name}, untrained": estimate for name, estimate in untrained.estimates.items()}
    for recipe, of_recipe in recipes.items():
        found |= {f"{name}, {recipe}": mean for name, mean in of_recipe.means().items()}
        found |= {f"{name}, {recipe} - untrained": more for name, more in of_recipe.differences(untrained).items()}
        found[f"every seed above untrained, {recipe}"] = of_recipe.every_seed_above(untrained)
        found[f"probes, {recipe}"] = list(of_recipe.probes)
        for seed, of_seed in of_recipe.seeds.items():
            found |= {f"{name}, {recipe} seed {seed}": estimate for name, estimate in of_seed.estimates.items()}
    return found


def table(untrained: Evaluation, recipes: Mapping[str, Recipe]) -> str:
    """The means over seeds of every recipe, in Markdown."""
    figures = [name for name in untrained.estimates if name not in COUNTED] + list(COUNTED)
    heads = ["", *(f"`{name}`" for name in figures), "more than untrained", "times untrained", "every seed above"]
    heads += ["perplexity, times", "self-BLEU, times", "seconds", "probes"]
    lines = [_line(heads), "|---" * len(heads) + "|"]
    lines.append(_line(["untrained", *(_cell(untrained.estimates[name]) for name in figures), *[""] * 7]))
    for recipe, of_recipe in recipes.items():
        means, ratios = of_recipe.means(), of_recipe.ratios(untrained)
        cells = [recipe, *(_cell(means.get(name, {})) for name in figures)]
        cells += [_cell(of_recipe.differences(untrained)[SUCCESS]), f"{ratios[SUCCESS]:.3g}"]
        cells += ["yes" if of_recipe.every_seed_above(untrained) else "no"]
        cells += [f"{ratios[PERPLEXITY]:.3g}", f"{ratios[SELF_BLEU]:.3g}"]
        lines.append(_line([*cells, f"{statistics.fmean(of_recipe.seconds):.0f}", _count(of_recipe.probes)]))
    return "\n".join(lines)


def table_of_seeds(recipes: Mapping[str, Recipe]) -> str:
    """Every seed's own figures, in Markdown."""
    first = next(iter(next(iter(recipes.values())).seeds.values()))
    figures = [name for name in first.estimates if name not in COUNTED] + list(COUNTED)
    lines = [_line(["", "seed", *(f"`{name}`" for name in figures), "seconds", "probes"])]
    lines.append("|---" * (len(figures) + 4) + "|")
    for recipe, of_recipe in recipes.items():
        rows = zip(of_recipe.seeds.items(), of_recipe.seconds, of_recipe.probes, strict=True)
        for (seed, of_seed), seconds, probes in rows:
            cells = [_cell(of_seed.estimates.get(name, {})) for name in figures]
            lines.append(_line([recipe, str(seed), *cells, f"{seconds:.0f}", str(probes)]))
    return "\n".join(lines)


def _asked(identity: Mapping[str, Any]) -> dict[str, Any]:
    settings = identity["settings"]
    return {
        "prompts": list(identity["seeds"]),
        "scorers": list(identity["scorers"]),
        "tree_width": identity["tree_width"],
        "scorer": settings.get("scorer"),
        "held_out": settings.get("held_out"),
        "target.path": settings["target"]["path"],
        "rollout": {name: settings["rollout"].get(name) for name in SAMPLED},
    }


def _cell(estimate: Mapping[str, Any]) -> str:
    if estimate.get("value") is None:
        return ""
    interval = f" [{estimate['low']:.3g}, {estimate['high']:.3g}]" if estimate.get("low") is not None else ""
    return f"{estimate['value']:.3g}{interval}"


def _count(probes: Sequence[int]) -> str:
    return f"{statistics.fmean(probes):.0f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
