"""A system owns the models and the reward."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

import torch

StateT = TypeVar("StateT")
ActionT = TypeVar("ActionT")


class System(ABC, Generic[StateT, ActionT]):
    """The tester, the target, the baseline and the reward.

    ``StateT`` is the type of a conversation so far (a ``str``, a ``Transcript``) and of the target's responses;
    ``ActionT`` is the type of the tester's probes. Methods work on batches: sequences of equal length, one entry per
    example.

    The log-prob methods return float32 tensors of shape ``[batch, tokens]``: the log-probability of every token
    of each continuation given its context, **0 where a row has no token**, so that a sum over the last dimension
    is the log-probability of the continuation.

    Optional methods are in :mod:`astra_accel.core.optional`.
    """

    state_types: ClassVar[Sequence[type]] = ()
    """The data classes that states and probes are made of (none for plain texts); a checkpoint restores them."""

    @abstractmethod
    def get_tester_logprobs(self, context: Sequence[StateT], continuation: Sequence[ActionT]) -> torch.Tensor:
        """``log p_tester(continuation | context)`` per token, ``[batch, tokens]``, with gradient."""

    @abstractmethod
    def get_target_logprobs(self, context: Sequence[StateT], continuation: Sequence[ActionT]) -> torch.Tensor:
        """``log p_target(continuation | context)`` per token, ``[batch, tokens]``, without gradient."""

    @abstractmethod
    def get_baseline_logprobs(self, context: Sequence[StateT], continuation: Sequence[ActionT]) -> torch.Tensor:
        """``log p_baseline(continuation | context)`` per token, ``[batch, tokens]``, without gradient."""

    @abstractmethod
    def rollout_prompt_with_tester(self, prompt: Sequence[StateT]) -> Sequence[ActionT]:
        """Sample one probe for each state; the state itself is not part of it."""

    @abstractmethod
    def rollout_prompt_with_target(self, prompt: Sequence[StateT]) -> Sequence[StateT]:
        """Sample one response for each state (ending with a probe); the state itself is not part of it."""

    @abstractmethod
    def advance(self, context: StateT, probe: ActionT, response: StateT) -> StateT:
        """Return the state after a probe and the response to it."""

    @abstractmethod
    def reward(
        self, context: Sequence[StateT], probe: Sequence[ActionT], response: Sequence[StateT]
    ) -> Sequence[float | None]:
        """The immediate reward of each probe, higher for a worse failure of the target; None if missing."""

    @abstractmethod
    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The parameters to train: the tester's, and those of the value head if there is one."""


class ValueFunctionSystem(System[StateT, ActionT]):
    """A system whose tester also estimates values, for actor-critic algorithms.

    :meth:`parameters` includes those of the value head.
    """

    @abstractmethod
    def value(self, context: Sequence[StateT], continuation: Sequence[ActionT]) -> torch.Tensor:
        """The value before each token of the continuation, ``[batch, tokens]``, with gradient.

        Column ``t`` is the value of the state before token ``t`` is chosen; 0 where a row has no token.
        """
