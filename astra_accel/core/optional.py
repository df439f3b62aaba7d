"""What systems, samplers, algorithms and evaluators may offer besides their contracts.

The trainer calls methods and never checks for a class of ours. :func:`offers` says whether an object has the methods
of a protocol; each protocol says what happens without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, TypeGuard, TypeVar

import torch

from astra_accel.core.sampler import Graph

ProtocolT = TypeVar("ProtocolT")


def offers(thing: Any, protocol: type[ProtocolT]) -> TypeGuard[ProtocolT]:
    """Whether an object has the methods of a protocol, even through a proxy; an attribute that is None does not count.

    ``isinstance`` looks at the class alone, so it misses what ``__getattr__`` provides.
    """
    return all(callable(getattr(thing, name, None)) for name in vars(protocol) if not name.startswith("_"))


# Systems


class CountsProbeTokens(Protocol):
    """Without it, trailing zeros of log-probs count as padding (:func:`num_probe_tokens`)."""

    def num_probe_tokens(self, probe: Sequence[Any]) -> Sequence[int]:
        """How many tokens of each probe have log-probs under the tester and the baseline."""


class RecordsLogprobs(Protocol):
    """Without it, policy gradients assume that the tester sampled in training's precision."""

    def sampled_logprobs(self, probe: Sequence[Any]) -> Sequence[Sequence[float] | None]:
        """The log-prob of each token of each probe as the tester sampled it; None for a probe of unknown origin.

        They differ from ``get_tester_logprobs`` if the tester samples in another precision, or elsewhere, than it is
        trained.
        """


class CountsTokens(Protocol):
    """Without it, batches are distributed and split by number of examples."""

    def num_tokens(self, context: Sequence[Any], continuation: Sequence[Any]) -> int:
        """The number of distinct tokens that a pass over these sequences reads."""


class HasBaseline(Protocol):
    """Without it, nothing that needs the baseline is computed (a KL penalty, perplexity)."""

    def get_baseline_logprobs(self, context: Sequence[Any], continuation: Sequence[Any]) -> torch.Tensor:
        """See :class:`~astra_accel.core.system.System`."""


class ReadsTester(Protocol):
    """Without it, log-probs and values take a pass each, and there are no entropies."""

    def read_tester(
        self, context: Sequence[Any], continuation: Sequence[Any], names: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """``{name: [batch, tokens]}`` from one pass over the tester, with gradient, 0 where a row has no token.

        Names are ``logprobs``, ``values``, and ``entropies`` (of the distributions that the tokens were drawn from).
        """


class SavesTester(Protocol):
    """Without it, only the trained weights are written, as safetensors."""

    def save_pretrained(self, folder: Path, **options: Any) -> None:
        """Write the tester.

        A launch that shards weights passes ``state_dict`` too: the whole weights, named by the system's attributes.
        """


class ObservesExperiences(Protocol):
    """For systems whose rollouts depend on earlier ones."""

    def observe(self, graphs: Sequence[Graph], experience: int) -> None:
        """Take in all graphs of an experience, and its number. Called on every process."""


class HasRolloutState(Protocol):
    """For systems whose rollouts depend on more than the weights. Without it, checkpoints hold no such state."""

    def rollout_state(self) -> Mapping[str, Any]:
        """The state: strings, numbers, tensors, and lists and dicts of them."""

    def load_rollout_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`rollout_state` returned."""


class StartsConversations(Protocol):
    """Without it, the prompt's opening itself is the first state, and goals are only written down."""

    def start(self, prompt: Any) -> Any:
        """The state before the first turn, given an opening, or a :class:`~astra_accel.core.prompt.Prompt`."""


class KeepsCaches(Protocol):
    """Without it, nothing is kept between the levels of a rollout."""

    def rolling_out(self, num_turns: int) -> AbstractContextManager[Any]:
        """A context manager within which conversations of this many turns are rolled out."""


class NamesRewardParts(Protocol):
    """Without it, only the reward itself is logged."""

    def reward_parts(
        self, context: Sequence[Any], probe: Sequence[Any], response: Sequence[Any]
    ) -> Sequence[dict[str, float | None]]:
        """The reward of each turn as ``reward``, and its terms by name; missing ones are None."""


class ChecksPrompts(Protocol):
    """Without it, a prompt that is too long is only found when it is rolled out."""

    def check_prompts(self, prompts: Sequence[Any], depth: int) -> None:
        """Raise ``ValueError`` for a prompt from which conversations of ``depth`` turns can't be rolled out."""


class KeepsJournal(Protocol):
    """For systems and scorers that ask models behind endpoints. Without it, a resumed run asks again."""

    def keep_journal(self, journal: Any) -> None:
        """Write what is asked to an :class:`~astra_accel.endpoints.journal.Journal`, and ask nothing twice."""


class ShowsExamples(Protocol):
    """Without it, ``rollout.few_shot`` is refused."""

    def preceded(self, context: Any, text: str) -> Any:
        """The state with a text put before it that only the tester is shown."""


# Samplers


class RollsOutMany(Protocol):
    """Without it, episodes are rolled out one after another, with seeded global generators."""

    def rollout_many(self, seeds: Sequence[int], prompt_seeds: Sequence[int] | None = None) -> Sequence[Graph]:
        """A graph for each seed; ``prompt_seeds`` choose the prompts if episodes share one, or one is repeated."""


class EvaluatesMany(Protocol):
    """Without it, evaluations are rolled out one episode after another, with seeded global generators."""

    def eval_rollout_many(self, seeds: Sequence[Any]) -> Sequence[Graph]:
        """An evaluation graph for each seed."""


class CountsExperiences(Protocol):
    """For samplers whose rollouts change in the course of training."""

    def begin_experience(self, index: int) -> None:
        """Called on every process before an experience is rolled out."""


# Algorithms: `astra_accel.core.algorithm.Algorithm` documents each method; its defaults have no effect.


class ChecksSampler(Protocol):
    """See :meth:`~astra_accel.core.algorithm.Algorithm.check_sampler`."""

    def check_sampler(self, sampler: Any) -> None: ...


class ChoosesExamples(Protocol):
    """See :meth:`~astra_accel.core.algorithm.Algorithm.choose`."""

    def choose(self, steps: Sequence[Any]) -> Sequence[bool]: ...


class Precomputes(Protocol):
    """See :meth:`~astra_accel.core.algorithm.Algorithm.precompute`."""

    def precompute(self, steps: Sequence[Any]) -> Sequence[Any]: ...


class KeepsExamples(Protocol):
    """See :meth:`~astra_accel.core.algorithm.Algorithm.keep`."""

    def keep(self, step: Any) -> bool: ...


class Prepares(Protocol):
    """See :meth:`~astra_accel.core.algorithm.Algorithm.prepare`."""

    def prepare(self, steps: Sequence[Any]) -> Sequence[Any]: ...


class WeighsExamples(Protocol):
    """See :meth:`~astra_accel.core.algorithm.Algorithm.weight`."""

    def weight(self, step: Any) -> float: ...


class CountsStepTokens(Protocol):
    """See :meth:`~astra_accel.core.algorithm.Algorithm.num_tokens`."""

    def num_tokens(self, steps: Sequence[Any]) -> int | None: ...


class StopsEarly(Protocol):
    """See :meth:`~astra_accel.core.algorithm.Algorithm.stop_early`."""

    def stop_early(self, metrics: Mapping[str, float]) -> bool: ...


class AdoptsExamples(Protocol):
    """See :meth:`~astra_accel.core.algorithm.Algorithm.adopt`."""

    def adopt(self, step: Any) -> Sequence[Any]: ...


# Evaluators


class ComputesMany(Protocol):
    """Without it, each process computes the metrics of all episodes, one after another."""

    def compute_metrics_many(self, graphs: Sequence[Graph]) -> Sequence[Mapping[str, Any]]:
        """The metrics of each episode."""


def num_probe_tokens(system: Any, probes: Sequence[Any], logprobs_BT: torch.Tensor) -> torch.Tensor:
    """How many tokens each probe has, ``[batch]``: as the system counts them, or by the log-probs' padding of 0.

    The log-prob of a token that is certain is 0 too. At the end of a probe it counts as padding if the system does not
    count tokens; the gradient that this leaves out is 0.
    """
    if offers(system, CountsProbeTokens):
        return torch.tensor(system.num_probe_tokens(probes), device=logprobs_BT.device)
    return ((logprobs_BT != 0).flip(-1).cumsum(-1) > 0).sum(-1)
