"""The curriculum: prompts whose probes fared differently, some of which are rolled out again."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from statistics import fmean, pstdev
from typing import Any

import numpy as np

from astra_accel.config import CurriculumConfiguration, TrainingConfiguration
from astra_accel.core.optional import RollsOutMany, offers
from astra_accel.core.sampler import Graph, Node, walk
from astra_accel.core.seeding import seed_sequence
from astra_accel.errors import ConfigurationError
from astra_accel.experience.selection import DIGITS, draw_places

CURRICULUM_STREAM = 6
FORMAT = 1
FIELD = "training.curriculum"


@dataclass(frozen=True)
class Repeatable:
    """A prompt that may be rolled out again.

    Attributes:
        seed: chooses the prompt, as the seed of an episode does.
        spread: how differently its probes fared the last time; see :func:`spread_of`.
    """

    seed: int
    spread: float


class Curriculum:
    """Prompts whose probes fared differently the last time they were rolled out, at most ``config.size``.

    A probe is compared with others after the same conversation, and nothing is learned where all of them fare alike. So
    a share of an experience's prompts are drawn among those known, with probabilities proportional to their spread:
    sampling for learnability (Foster et al. 2025, https://arxiv.org/abs/2502.12272), with a standard deviation in place
    of the variance of success. What is found is the prompt's new spread, so a prompt leaves when its probes no longer
    differ.

    Every process has its own copy, and all are equal: the same experiences go in, and draws follow from the seed and
    the number of the training step.

    Args:
        config: how many prompts are kept, how many are drawn, and which figure has to differ.
        seed: determines the draws.
    """

    def __init__(self, config: CurriculumConfiguration, seed: int = 0) -> None:
        self.config = config
        self._seed = seed
        self._known: dict[str, Repeatable] = {}

    def __len__(self) -> int:
        return len(self._known)

    @classmethod
    def from_configuration(cls, config: TrainingConfiguration, sampler: Any) -> Curriculum | None:
        """The curriculum of a run, if it has one.

        Raises:
            ConfigurationError: the sampler takes no seeds of prompts.
        """
        if config.curriculum is None:
            return None
        if (
            not offers(sampler, RollsOutMany)
            or "prompt_seeds" not in inspect.signature(sampler.rollout_many).parameters
        ):
            raise ConfigurationError(
                f"{FIELD} is set, but {type(sampler).__name__} has no method rollout_many(seeds, prompt_seeds), by "
                f"which a prompt is rolled out again; expected null, or a sampler with it"
            )
        return cls(config.curriculum, config.seed)

    def with_repeated(self, index: int, prompt_seeds: Sequence[int]) -> list[int]:
        """The prompt seeds of training step ``index``, the last of them replaced by those of known prompts."""
        known = list(self._known.values())
        number = min(round(self.config.share * len(prompt_seeds)), len(known))
        generator = np.random.Generator(np.random.PCG64(seed_sequence((self._seed, CURRICULUM_STREAM, index))))
        weights = np.array([prompt.spread for prompt in known])
        drawn = draw_places(weights, number, generator.random(len(known)))
        return [*prompt_seeds[: len(prompt_seeds) - number], *(known[place].seed for place in drawn)]

    def observe(self, prompt_seeds: Sequence[int], graphs: Sequence[Graph]) -> dict[str, float]:
        """Take in the graphs of an experience and the prompt seed of each; return metrics.

        Raises:
            ConfigurationError: no turn of the experience has the figure.
        """
        infos = [_info(node) for graph in graphs for _, node in walk(graph)]
        if infos:
            check_curriculum(self.config, ["reward", *dict.fromkeys(name for info in infos for name in info)])
        trees_of: dict[int, list[Graph]] = {}
        for seed, graph in zip(prompt_seeds, graphs, strict=True):
            trees_of.setdefault(seed, []).append(graph)
        name_of = {known.seed: name for name, known in self._known.items()}
        repeated = set(name_of) & set(trees_of)
        spreads: dict[bool, list[float]] = {True: [], False: []}
        for seed, trees in trees_of.items():
            spread = spread_of(trees, self.config.figure)
            if spread is None:  # its rewards are missing, which says nothing of the prompt
                continue
            spreads[seed in repeated].append(spread)
            name = _name_of(trees[0])
            for known in {name, name_of.get(seed, name)}:  # two, if the list of prompts has changed
                self._known.pop(known, None)
            if spread > 0:
                self._known[name] = Repeatable(seed, spread)
        newest_first = list(self._known)[::-1]
        staying = set(sorted(newest_first, key=lambda name: -self._known[name].spread)[: self.config.size])
        self._known = {name: known for name, known in self._known.items() if name in staying}
        figures = {"curriculum/size": float(len(self._known)), "curriculum/repeated": float(len(repeated))}
        named = {"curriculum/spread": spreads[False], "curriculum/repeated_spread": spreads[True]}
        return figures | {name: fmean(values) for name, values in named.items() if values}

    def dump(self) -> str:
        """The whole curriculum as JSON."""
        prompts = [[name, known.seed, known.spread] for name, known in self._known.items()]
        return json.dumps({"format": FORMAT, "figure": self.config.figure, "prompts": prompts}) + "\n"

    def load(self, text: str) -> None:
        """Restore what :meth:`dump` returned; nothing, if it was made by another figure.

        Raises:
            ValueError: the text is from another version.
        """
        saved = json.loads(text)
        if saved.get("format") != FORMAT:
            raise ValueError(f"found the format {saved.get('format')!r}, expected {FORMAT}")
        same = saved["figure"] == self.config.figure
        self._known = {name: Repeatable(seed, spread) for name, seed, spread in saved["prompts"] if same}


def check_curriculum(config: CurriculumConfiguration | None, figures: Sequence[str]) -> None:
    """Reject a figure that no turn has.

    Raises:
        ConfigurationError: it is none of these; names it and them.
    """
    if config is not None and config.figure not in figures:
        raise ConfigurationError(
            f"{FIELD}.figure is {config.figure!r}, which no turn has; expected one of {', '.join(figures)}"
        )


def spread_of(trees: Sequence[Graph], figure: str) -> float | None:
    """How differently the probes of a prompt fared: the standard deviation of a figure among siblings.

    Probes that open the prompt's trees are siblings. It is the mean over groups of siblings, rounded to
    :data:`DIGITS` decimals; None if no two siblings have the figure.
    """
    groups = (_values(siblings, figure) for siblings in _siblings(trees))
    spreads = [pstdev(values) for values in groups if len(values) > 1]
    return round(fmean(spreads), DIGITS) if spreads else None


def _siblings(trees: Sequence[Graph]) -> Iterator[Sequence[Node]]:
    yield [node for tree in trees for node in tree.children]
    for tree in trees:
        for _, node in walk(tree):
            yield node.children


def _values(nodes: Sequence[Node], figure: str) -> list[float]:
    found = [node.reward if figure == "reward" else _info(node).get(figure) for node in nodes]
    return [float(value) for value in found if value is not None]


def _info(node: Node) -> Mapping[str, Any]:
    return getattr(node, "info", {})


def _name_of(graph: Graph) -> str:
    """What a prompt is known by: its opening and its goal, since prompts of the same opening may have several goals."""
    goal = _info(graph.children[0]).get("goal") if graph.children else None
    return sha256(json.dumps([str(graph.context), goal]).encode()).hexdigest()[:32]
