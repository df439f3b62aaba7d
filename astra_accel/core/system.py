"""A system owns the models and the reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

import torch

StateT = TypeVar("StateT")
ActionT = TypeVar("ActionT")


class System(ABC, Generic[StateT, ActionT]):
    """The tester, the target, the baseline and the reward between them.

    ``StateT`` is what a conversation so far is (a ``str``, a ``Transcript``), and what the target answers with;
    ``ActionT`` is what the tester writes. Every method works on batches: sequences of equal length, one entry an
    example.

    The log-prob methods return float32 tensors of shape ``[batch, tokens]``: the log-probability of every token
    of each continuation given its context, **0 where a row has no token**, so that a sum over the last dimension
    is the log-probability of the continuation.

    A system may have ``sampled_logprobs(probe)``, which returns for each probe the log-prob of each of its tokens as it
    was when the tester sampled it, or None where nobody knows. They differ from :meth:`get_tester_logprobs` where the
    tester samples in another precision, or elsewhere, than it is trained; policy gradients make up for that.

    A system may have ``save_pretrained(folder)``, which writes the tester. Where a launch spreads the trained weights
    over processes it gets a ``state_dict`` besides: those weights, whole, by the system's attributes (``tester.…``).

    A system whose rollouts depend on earlier ones may also have ``observe(graphs, experience)``, which is told all
    graphs of an experience and its number, on every process; ``rollout_state()``, which returns what it remembers, as
    strings, numbers, tensors, lists and dicts of them; and ``load_rollout_state(state)``, which brings that back from
    a checkpoint.
    """

    state_types: ClassVar[Sequence[type]] = ()
    """The data classes that states and probes are made of, none for plain texts: what a checkpoint brings back."""

    @abstractmethod
    def get_tester_logprobs(self, context: Sequence[StateT], continuation: Sequence[ActionT]) -> torch.Tensor:
        """``log p_tester(continuation | context)`` a token, ``[batch, tokens]``, with gradient."""

    @abstractmethod
    def get_target_logprobs(self, context: Sequence[StateT], continuation: Sequence[ActionT]) -> torch.Tensor:
        """``log p_target(continuation | context)`` a token, ``[batch, tokens]``, without gradient."""

    @abstractmethod
    def get_baseline_logprobs(self, context: Sequence[StateT], continuation: Sequence[ActionT]) -> torch.Tensor:
        """``log p_baseline(continuation | context)`` a token, ``[batch, tokens]``, without gradient."""

    @abstractmethod
    def rollout_prompt_with_tester(self, prompt: Sequence[StateT]) -> Sequence[ActionT]:
        """One probe for each state; the state itself is not part of it."""

    @abstractmethod
    def rollout_prompt_with_target(self, prompt: Sequence[StateT]) -> Sequence[StateT]:
        """One response for each state (that ends with a probe); the state itself is not part of it."""

    @abstractmethod
    def advance(self, context: StateT, probe: ActionT, response: StateT) -> StateT:
        """The state after a probe and the response to it."""

    @abstractmethod
    def reward(
        self, context: Sequence[StateT], probe: Sequence[ActionT], response: Sequence[StateT]
    ) -> Sequence[float | None]:
        """The immediate reward of each probe, higher for a worse failure of the target; None where it is missing."""

    @abstractmethod
    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters to train: the tester's, and a value head's where there is one."""


class ValueFunctionSystem(System[StateT, ActionT]):
    """A system whose tester also estimates values, for actor-critic algorithms.

    The value head's parameters belong to :meth:`parameters`.

    It may also offer ``read_tester(context, continuation, names)``, which returns ``{name: [batch, tokens]}`` from one
    pass over the tester, with gradient: ``logprobs``, ``values``, and ``entropies`` of the distributions that the
    tokens were drawn from, each 0 where a row has no token.
    """

    @abstractmethod
    def value(self, context: Sequence[StateT], continuation: Sequence[ActionT]) -> torch.Tensor:
        """The value before each token of the continuation, ``[batch, tokens]``, with gradient.

        Column ``t`` is the value of the state in which token ``t`` is about to be chosen; 0 where a row has no
        token.
        """
