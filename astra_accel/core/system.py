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

    What a system may offer besides is in :mod:`astra_accel.core.optional`.
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
    """

    @abstractmethod
    def value(self, context: Sequence[StateT], continuation: Sequence[ActionT]) -> torch.Tensor:
        """The value before each token of the continuation, ``[batch, tokens]``, with gradient.

        Column ``t`` is the value of the state in which token ``t`` is about to be chosen; 0 where a row has no
        token.
        """
