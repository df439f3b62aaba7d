"""The replay: examples of earlier experiences that are trained on again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np

from astra_accel.config import ReplayConfiguration, TrainingConfiguration
from astra_accel.core.optional import AdoptsExamples, offers
from astra_accel.core.seeding import seed_sequence
from astra_accel.errors import ConfigurationError
from astra_accel.experience.codec import Codec
from astra_accel.experience.off_policy import check_replay
from astra_accel.experience.selection import Kept, draw, mean_overlap, select, words_of

REPLAY_STREAM = 4
FORMAT = 1


class Replay:
    """Examples of earlier experiences, at most ``config.size``.

    Every process has its own copy, and all are equal: the same examples go in, and draws follow from the seed and the
    number of the training step. With a share of 0.25 and 12 new examples, 4 are drawn; then the 12 are added::

        experience 0    12 new,  0 drawn    the replay was empty
        experience 1    12 new,  4 drawn    from experience 0

    Args:
        config: how many examples are kept, which, and how many are drawn.
        algorithm: says what an example earned and whether it may be trained on again (``replay_entry``).
        seed: determines the draws.
        threshold: a response with at least this score is a success.

    Raises:
        ConfigurationError: the algorithm cannot be trained on earlier examples.
    """

    def __init__(self, config: ReplayConfiguration, algorithm: Any, seed: int = 0, threshold: float = 0.5) -> None:
        check_replay(algorithm)
        self.config = config
        self.threshold = threshold
        self._algorithm = algorithm
        self._seed = seed
        system = getattr(algorithm, "system", None)
        states = getattr(system, "state_types", ())
        self._codec = Codec([*getattr(algorithm, "step_types", ()), *states])
        self._adopted = Codec([*self._codec.classes, *getattr(algorithm, "adopted_types", ())])
        self._kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    @classmethod
    def from_configuration(cls, config: TrainingConfiguration, algorithm: Any, evaluator: Any) -> Replay | None:
        """The replay of a run, if it has one; a success is what its evaluations count as one."""
        if config.replay is None:
            return None
        return cls(config.replay, algorithm, config.seed, threshold=getattr(evaluator, "threshold", 0.5))

    @property
    def steps(self) -> list[Any]:
        """The kept examples, oldest first."""
        return [example.step for example in self._kept]

    def exchange(self, index: int, steps: Sequence[Any]) -> tuple[list[Any], dict[str, float]]:
        """Draw examples to add to those of training step ``index``, then keep the latter; also return metrics.

        Raises:
            ConfigurationError: a checkpoint could not hold an example, or one lacks what ``config`` selects by.
        """
        drawn = self._draw(index, len(steps))
        again = {id(example) for example in drawn}
        self._kept = [replace(kept, draws=kept.draws + 1) if id(kept) in again else kept for kept in self._kept]
        new = [kept for step in steps if (kept := self._as_kept(step, index)) is not None]
        for example in new:
            self._check_kind(example.step)
        self._kept = select(self._kept, new, self.config)
        return [example.step for example in drawn], {"replay/drawn": len(drawn), **self._figures(index)}

    def dump(self) -> str:
        """The whole replay as lines of JSON."""
        lines: list[Any] = [{"format": FORMAT}]
        lines += [
            {"collected": kept.collected, "draws": kept.draws, "step": self._codec.encode(kept.step)}
            for kept in self._kept
        ]
        return "".join(f"{json.dumps(line)}\n" for line in lines)

    def load(self, text: str) -> None:
        """Restore what :meth:`dump` returned, as far as the configuration, which may have changed, allows.

        Raises:
            ValueError: the text is from another algorithm, system or version.
        """
        kept = [
            self._as_kept(self._codec.decode(line["step"]), line["collected"], line.get("draws", 0))
            for line in _lines(text)
        ]
        self._kept = select([], [example for example in kept if example is not None], self.config)

    def adopted(self, text: str) -> list[Any]:
        """Convert another run's :meth:`dump` to examples, on which ``precompute`` has yet to run.

        Raises:
            ValueError: as for :meth:`load`.
        """
        theirs = [self._adopted.decode(line["step"]) for line in _lines(text)]
        if not offers(self._algorithm, AdoptsExamples):
            return theirs
        return [step for example in theirs for step in self._algorithm.adopt(example)]

    def begin_with(self, steps: Sequence[Any]) -> None:
        """Start with examples from before the first training step."""
        kept = [self._as_kept(step, -1) for step in steps]
        self._kept = select([], [example for example in kept if example is not None], self.config)

    def _draw(self, index: int, num_new: int) -> list[Kept]:
        share, most = self.config.share, self.config.max_draws
        kept = [example for example in self._kept if most is None or example.draws < most]
        number = min(round(share / (1 - share) * num_new), len(kept))
        if not number:
            return []
        generator = np.random.Generator(np.random.PCG64(seed_sequence((self._seed, REPLAY_STREAM, index))))
        return draw(kept, number, self.config.priority, generator.random(len(kept)))

    def _as_kept(self, step: Any, index: int, draws: int = 0) -> Kept | None:
        entry = self._algorithm.replay_entry(step)
        if entry is None:
            return None
        if entry.fluency is None and self.config.min_fluency is not None:
            raise ConfigurationError(
                f"training.replay.min_fluency is {self.config.min_fluency}, but {type(self._algorithm).__name__} gives "
                f"no log-probs under the baseline; expected null"
            )
        return Kept(step, index, entry, words_of(entry.probes), draws)

    def _check_kind(self, step: Any) -> None:
        """Refuse examples that a checkpoint can't hold when they arrive, not hours later."""
        try:
            self._codec.encode(step)
        except TypeError as error:
            raise ConfigurationError(
                f"training.replay is set, but an example holds a {error}, which a checkpoint can't; expected texts, "
                f"numbers, tensors, tuples, lists, dicts, and data classes that {type(self._algorithm).__name__} has "
                f"in step_types or its system in state_types"
            ) from error

    def _figures(self, index: int) -> dict[str, float]:
        """Metrics of the kept examples."""
        kept, figures = self._kept, {"replay/size": float(len(self._kept))}
        if kept:
            figures["replay/age"] = fmean(index - example.collected for example in kept)
            figures["replay/value"] = fmean(example.entry.value for example in kept)
        scores = [example.entry.score for example in kept if example.entry.score is not None]
        if scores:
            figures["replay/success"] = fmean(score >= self.threshold for score in scores)
        likeness = mean_overlap([example.words for example in kept])
        return figures if likeness is None else {**figures, "replay/overlap": likeness}


def _lines(text: str) -> list[dict[str, Any]]:
    """Parse the line of each example."""
    head, *lines = map(json.loads, text.splitlines())
    if head != {"format": FORMAT}:
        raise ValueError(f"found {head}, expected the format {FORMAT}")
    return lines
