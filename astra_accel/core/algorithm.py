"""An algorithm turns rollout trees into a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch

from astra_accel.core.sampler import Graph
from astra_accel.core.system import ActionT, StateT, System

Step = TypeVar("Step")
Batch = TypeVar("Batch")


class ReplayEntry(NamedTuple):
    """What a replay goes by of a training example that it may keep.

    Attributes:
        value: what the example earned; higher is better.
        probes: what is compared of it with other examples: the probes that it teaches to write.
        fluency: mean log-prob a token of those under the baseline; None where nobody knows.
        score: how unsafe the response to them was judged, from 0 to 1; None where nobody knows.
    """

    value: float
    probes: Sequence[Any]
    fluency: float | None = None
    score: float | None = None


class Algorithm(ABC, Generic[StateT, ActionT, Step, Batch]):
    """From the graphs of an experience to training examples, and from a batch of examples to a loss.

    In the order in which the trainer calls them::

        graphs ── flatten ──> steps ── choose ──> ── precompute ──> ── keep ──> ── prepare ──> steps
                  a graph              everybody     each rank its     one by      everybody
                                       the same,     share             one         the same, all
                                       all

        steps ── collate_fn ──> batch ── step ──> loss
                 a batch

    ``flatten``, ``collate_fn`` and ``step`` are required; the rest is optional, and a class that inherits from
    none of ours may leave it out.
    """

    needs_values = False
    """Whether the system has to be a :class:`~astra_accel.core.system.ValueFunctionSystem`."""

    off_policy = False
    """Whether the loss holds for probes that others wrote: the tester with earlier weights (``training.replay``), or
    after examples that it was shown (``rollout.few_shot``)."""

    step_types: ClassVar[Sequence[type]] = ()
    """The data classes that examples are made of, besides those of states and probes: what a checkpoint brings back."""

    adopted_types: ClassVar[Sequence[type]] = ()
    """Data classes of other algorithms' examples of which ``adopt`` can make its own."""

    def __init__(self, system: System[StateT, ActionT]) -> None:
        self.system = system

    @abstractmethod
    def flatten(self, graph: Graph[StateT, ActionT]) -> Sequence[Step]:
        """The training examples of one graph. Pure: no model runs here.

        Every node has a reward: a graph with a node that has none comes as the trees into which it falls without it
        (:func:`~astra_accel.core.sampler.rewarded_trees`).
        """

    @staticmethod
    @abstractmethod
    def collate_fn(batch: Sequence[Step]) -> Batch:
        """One batch of examples, as ``step`` takes it."""

    @abstractmethod
    def step(self, batch: Batch) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """The loss of a batch and what to log.

        The loss is a scalar: the mean over the batch's examples, weighted by :meth:`weight`. The trainer relies
        on that to normalise over all processes and accumulated batches. The logged numbers are means alike.
        """

    def weight(self, step: Step) -> float:  # noqa: ARG002
        """The weight of an example in the mean that ``step`` returns: 1 for a mean over examples.

        An algorithm that averages over tokens returns the number of tokens of the example.
        """
        return 1.0

    def num_tokens(self, steps: Sequence[Step]) -> int | None:  # noqa: ARG002
        """Tokens that a step on these examples together reads, each distinct one once; None where it can't be told.

        The trainer keeps what is stepped on at once within the system's ``token_budget``, if it has one.
        """
        return None

    def choose(self, steps: Sequence[Step]) -> Sequence[bool]:
        """Which examples of a whole experience are trained on: one answer an example.

        Asked before ``precompute``, so that models run on the chosen alone; examples of one graph that are left still
        share what is read for them. Every rank gets all the examples in the same order and must return the same. Pure:
        no model runs here.
        """
        return [True] * len(steps)

    def precompute(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Add what models say of each example as they are now, once an experience (the baseline's log-probs).

        Each rank gets the examples of the graphs that it rolled out, so those of other graphs must not matter here.
        """
        return steps

    def keep(self, step: Step) -> bool:  # noqa: ARG002
        """Whether an example is trained on, now that ``precompute`` has added what models say of it.

        It goes by the example alone. Examples of one graph that are left still share what is read for them, which
        they don't once ``prepare`` has dropped some.
        """
        return True

    def prepare(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Add what needs the whole experience (normalised advantages), once an experience.

        Every rank gets all the examples in the same order and must return the same.
        """
        return steps

    def stop_early(self, metrics: Mapping[str, float]) -> bool:  # noqa: ARG002
        """Whether the updates that are left for this experience are not made.

        Asked after each update, with what it logged: means over all processes, the same on each.
        """
        return False

    def replay_entry(self, step: Step) -> ReplayEntry | None:  # noqa: ARG002
        """What a replay goes by of an example, after ``prepare``; None keeps it out.

        Asked where ``off_policy`` is set and a replay is configured, of which it is a part that can't be left out.
        """
        return None

    def adopt(self, step: Any) -> Sequence[Step]:
        """Examples made of one that another run's replay holds (``training.replay.source``), before ``precompute``.

        Of the own :attr:`step_types` that one, as it is; an algorithm with ``adopted_types`` makes its own of those.
        """
        return [step]

    def check_sampler(self, sampler: Any) -> None:
        """Raise ``ValueError`` where the sampler's trees can't give this algorithm an example.

        Before models load, the ``RolloutConfiguration`` stands in for a sampler: it has the attributes that say what
        the trees are like, such as ``tree_width``. A sampler may lack them.
        """
