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
    """What a replay uses to decide whether to keep a training example.

    Attributes:
        value: what the example earned; higher is better.
        probes: the probes that the example teaches; they are compared with those of other examples.
        fluency: mean log-prob per token of those probes under the baseline; None if unknown.
        score: how unsafe the response to them was judged, from 0 to 1; None if unknown.
    """

    value: float
    probes: Sequence[Any]
    fluency: float | None = None
    score: float | None = None


class Algorithm(ABC, Generic[StateT, ActionT, Step, Batch]):
    """Turns the graphs of an experience into training examples, and a batch of examples into a loss.

    The trainer calls the methods in this order::

        graphs ── flatten ──> steps ── choose ──> ── precompute ──> ── keep ──> ── prepare ──> steps
                  one graph            all,          each rank its     one by      all, the same
                                       the same on   own graphs'       one         on every rank
                                       every rank

        steps ── collate_fn ──> batch ── step ──> loss
                 one batch

    ``flatten``, ``collate_fn`` and ``step`` are required. The rest is optional: a class that does not inherit from
    this one may leave it out.
    """

    needs_values = False
    """Whether the system has to be a :class:`~astra_accel.core.system.ValueFunctionSystem`."""

    off_policy = False
    """Whether the loss is valid for off-policy probes: written with earlier weights (``training.replay``), or by a
    tester that was shown examples (``rollout.few_shot``)."""

    step_types: ClassVar[Sequence[type]] = ()
    """The data classes that examples are made of, besides those of states and probes; a checkpoint restores them."""

    adopted_types: ClassVar[Sequence[type]] = ()
    """Data classes of other algorithms' examples that ``adopt`` can convert."""

    def __init__(self, system: System[StateT, ActionT]) -> None:
        self.system = system

    @abstractmethod
    def flatten(self, graph: Graph[StateT, ActionT]) -> Sequence[Step]:
        """Return the training examples of one graph. Pure: no model runs here.

        Every node has a reward: a graph in which some are missing has been split into trees without those nodes
        (:func:`~astra_accel.core.sampler.rewarded_trees`).
        """

    @staticmethod
    @abstractmethod
    def collate_fn(batch: Sequence[Step]) -> Batch:
        """Collate examples into one batch for ``step``."""

    @abstractmethod
    def step(self, batch: Batch) -> tuple[torch.Tensor, Mapping[str, Any]]:
        """Return the loss of a batch and the metrics to log.

        The loss is a scalar: the mean over the batch's examples, weighted by :meth:`weight`. The trainer relies
        on that to normalise over all processes and accumulated batches. The metrics are means of the same kind.
        """

    def weight(self, step: Step) -> float:  # noqa: ARG002
        """The weight of an example in the mean that ``step`` returns: 1 for a mean over examples.

        An algorithm that averages over tokens returns the number of tokens of the example.
        """
        return 1.0

    def num_tokens(self, steps: Sequence[Step]) -> int | None:  # noqa: ARG002
        """How many distinct tokens a step on these examples together reads; None if unknown.

        The trainer keeps each micro-batch within the system's ``token_budget``, if it has one.
        """
        return None

    def choose(self, steps: Sequence[Step]) -> Sequence[bool]:
        """Which examples of a whole experience are trained on: one bool per example.

        Called before ``precompute``, so that models run only on the chosen examples; those of one graph still share
        the tokens that are read for them. Every rank gets all the examples in the same order and must return the same.
        Pure: no model runs here.
        """
        return [True] * len(steps)

    def precompute(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Add what models compute for each example before the updates, such as the baseline's log-probs.

        Called once per experience. Each rank gets the examples of the graphs that it rolled out, so the result must
        not depend on other graphs.
        """
        return steps

    def keep(self, step: Step) -> bool:  # noqa: ARG002
        """Whether to train on an example, given what ``precompute`` added.

        Depends on the example alone. The examples of a graph that are kept still share the tokens that are read for
        them; once ``prepare`` has dropped some, they don't.
        """
        return True

    def prepare(self, steps: Sequence[Step]) -> Sequence[Step]:
        """Add what needs the whole experience, such as normalised advantages.

        Called once per experience. Every rank gets all the examples in the same order and must return the same.
        """
        return steps

    def stop_early(self, metrics: Mapping[str, float]) -> bool:  # noqa: ARG002
        """Whether to skip the remaining updates on this experience.

        Called after each update with its metrics: means over all processes, the same on each.
        """
        return False

    def replay_entry(self, step: Step) -> ReplayEntry | None:  # noqa: ARG002
        """What a replay judges an example by, after ``prepare``; None keeps the example out.

        Called if ``off_policy`` is set and a replay is configured, which requires this method.
        """
        return None

    def adopt(self, step: Any) -> Sequence[Step]:
        """Convert an example of another run's replay (``training.replay.source``), before ``precompute``.

        An example of this algorithm's own :attr:`step_types` is returned as it is; those of ``adopted_types`` are
        converted.
        """
        return [step]

    def check_sampler(self, sampler: Any) -> None:
        """Raise ``ValueError`` if the sampler's trees can't give this algorithm an example.

        Before models load, the ``RolloutConfiguration`` stands in for a sampler: it has the attributes that describe
        the trees, such as ``tree_width``. A sampler may lack them.
        """
