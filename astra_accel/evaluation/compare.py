"""Compares two testers on the same prompts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from astra_accel.evaluation.figures.bootstrap import NUM_RESAMPLES, Statistic, finite_or_none, value_of
from astra_accel.evaluation.figures.goals import BY_CATEGORY, SUCCESS, categories_of
from astra_accel.evaluation.figures.metrics import RESPONSE_SCORE, REWARD_SCORER, statistics_of, success_rate
from astra_accel.evaluation.figures.missing import LOWER, NUM_MISSING, UPPER, Incomplete, difference, estimates_of
from astra_accel.evaluation.figures.nodes import Nodes
from astra_accel.evaluation.figures.summary import text_diversity
from astra_accel.evaluation.folder import TRIES, EvaluationError, EvaluationFolder, differing

JUDGED_ALIKE = ("scorers", "tree_width", "tree_depth")
"""What two evaluations must share, besides the prompts and tries, for their figures to be comparable."""
FIRST, SECOND = "first", "second"
_FEW = 3


def compare(
    first: str | Path,
    second: str | Path,
    *,
    threshold: float | None = None,
    num_resamples: int = NUM_RESAMPLES,
    figures: Collection[str] | None = None,
) -> dict[str, Any]:
    """How the figures of a second evaluation differ from those of a first, with intervals from paired resamples.

    Both are resampled on the same prompts, so prompt difficulty cancels out.

    Args:
        first, second: the folders of two finished evaluations.
        threshold: the minimum score that counts as a success; None uses the one that both were measured with.
        num_resamples: see :func:`~astra_accel.evaluation.figures.bootstrap.estimate`.
        figures: the names of the resampled figures to compare; None compares all figures.

    Returns:
        A dict for JSON: ``metrics`` by name, each with ``first``, ``second`` and ``difference`` (second minus first,
        with ``low`` and ``high`` unless it can't be resampled); ``differing``, what else differs between the two;
        ``trained``, whether ``first`` and ``second`` are of a trained tester (None: not recorded). If scores are
        missing, ``difference`` has ``lower`` and ``upper`` (of the worst cases for either tester), and ``missing``
        gives for ``first`` and ``second`` their number (``num_missing``) and their ends. If prompts have categories,
        ``by_category`` compares the attack success in each.

    Raises:
        FileNotFoundError: a folder holds no finished evaluation.
        EvaluationError: they differ in prompts, scorers, trees, tries or thresholds; says in which.
    """
    folders = [EvaluationFolder(first), EvaluationFolder(second)]
    identities = [folder.identity() for folder in folders]
    measured = [folder.metrics() for folder in folders]
    _check_prompts(folders, [identity["seeds"] for identity in identities])
    _check_judges(folders, identities)
    if threshold is None:
        threshold = measured[0]["threshold"]
        if threshold != measured[1]["threshold"]:
            raise EvaluationError(
                f"{folders[0].path} was measured with threshold {threshold}, {folders[1].path} with "
                f"{measured[1]['threshold']}; expected the same, or one given for both"
            )
    seeds = identities[0]["seeds"]
    nodes = [_nodes(folder, identity, seeds) for folder, identity in zip(folders, identities, strict=True)]
    scorers = [name for name in identities[0]["scorers"] if name != REWARD_SCORER]
    statistics = [statistics_of(of_one, threshold, scorers) for of_one in nodes]
    if figures is not None:
        statistics = [{name: of_one[name] for name in of_one if name in figures} for of_one in statistics]
    whole = figures is None
    counted = [text_diversity(of_one.probes) for of_one in nodes] if whole else [{}, {}]
    categories = _by_category(nodes, threshold, num_resamples) if whole else []
    return {
        "first": str(folders[0].path),
        "second": str(folders[1].path),
        "num_episodes": len(seeds),
        "threshold": threshold,
        "trained": dict(zip((FIRST, SECOND), map(is_trained, identities), strict=True)),
        "differing": differing(identities[0]["settings"], identities[1]["settings"]),
        "metrics": _resampled(statistics, len(seeds), num_resamples) | _counted(counted),
        **({BY_CATEGORY: categories} if categories else {}),
    }


def is_trained(identity: Mapping[str, Any]) -> bool | None:
    """Whether an evaluation is of a trained tester, whose weights it names; None if it does not say."""
    tester = identity["settings"].get("tester")
    return None if tester is None else "weights" in tester


def _resampled(statistics: Sequence[Mapping[str, Statistic]], num_episodes: int, num_resamples: int) -> dict[str, Any]:
    first, second = statistics
    shared = [name for name in first if name in second]
    differences = {name: difference(first[name], second[name]) for name in shared}
    found = estimates_of(differences, num_episodes, num_resamples=num_resamples)
    return {
        name: {
            "first": finite_or_none(value_of(first[name], num_episodes)),
            "second": finite_or_none(value_of(second[name], num_episodes)),
            "difference": found[name],
        }
        | _missing(first[name], second[name], num_episodes)
        for name in shared
    }


def _by_category(nodes: Sequence[Nodes], threshold: float, num_resamples: int) -> list[dict[str, Any]]:
    """Attack success in each category, which the prompts of both have alike."""
    found = []
    for first, second in zip(*map(categories_of, nodes), strict=True):
        statistics = [{SUCCESS: success_rate(of_one.nodes, RESPONSE_SCORE, threshold)} for of_one in (first, second)]
        found.append(first.counts | _resampled(statistics, first.num_prompts, num_resamples))
    return found


def _missing(first: Statistic, second: Statistic, num_episodes: int) -> dict[str, Any]:
    """How many scores of each are missing, and its ends; empty if none are missing."""
    both = {"first": first, "second": second}
    found = {
        which: {NUM_MISSING: statistic.num_missing} | _end_values(statistic, num_episodes)
        for which, statistic in both.items()
        if isinstance(statistic, Incomplete)
    }
    return {"missing": found} if found else {}


def _end_values(statistic: Incomplete, num_episodes: int) -> dict[str, float | None]:
    ends = {LOWER: statistic.lower, UPPER: statistic.upper}
    return {name: finite_or_none(value_of(end, num_episodes)) for name, end in ends.items() if end is not None}


def _counted(counted: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, one in counted[0].items():
        other = counted[1][name]
        difference = None if one is None or other is None else other - one
        found[name] = {"first": one, "second": other, "difference": {"value": difference}}
    return found


def _nodes(folder: EvaluationFolder, identity: Mapping[str, Any], seeds: Sequence[Any]) -> Nodes:
    """The nodes of a folder, with episodes numbered in the order of the first evaluation's prompts."""
    place = {seed: index for index, seed in enumerate(seeds)}
    rows = [{**row, "episode": place[identity["seeds"][row["episode"]]]} for row in folder.rows()]
    missing = len(seeds) - len({row["episode"] for row in rows})
    if missing:
        raise EvaluationError(f"{folder.path} lacks the nodes of {missing} of its {len(seeds)} prompts; evaluate again")
    return Nodes.from_rows(rows, len(seeds), identity["tree_width"])


def _check_prompts(folders: Sequence[EvaluationFolder], prompts: Sequence[Sequence[Any]]) -> None:
    alone = [[prompt for prompt in own if prompt not in set(other)] for own, other in (prompts, prompts[::-1])]
    if not any(alone):
        return
    parts = [
        f"{len(of_one)} are in {folder.path} alone{_examples(of_one)}"
        for folder, of_one in zip(folders, alone, strict=True)
    ]
    raise EvaluationError(f"the two were evaluated on different prompts: {'; '.join(parts)}; expected the same prompts")


def _examples(prompts: Sequence[Any]) -> str:
    shown = [repr(str(prompt)[:60]) for prompt in prompts[:_FEW]]
    more = ["…"] if len(prompts) > _FEW else []
    return f" ({', '.join(shown + more)})" if shown else ""


def _check_judges(folders: Sequence[EvaluationFolder], identities: Sequence[Mapping[str, Any]]) -> None:
    judges = [
        {name: identity[name] for name in JUDGED_ALIKE}
        | {TRIES: identity.get(TRIES, 1)}
        | {name: identity["settings"].get(name) for name in ("scorer", "held_out")}
        for identity in identities
    ]
    found = differing(judges[0], judges[1])
    if found:
        raise EvaluationError(
            f"{folders[0].path} and {folders[1].path} can't be compared; different are {'; '.join(found)}"
        )
