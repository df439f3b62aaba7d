"""Log-probs stored during a rollout, looked up instead of computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch

from astra_accel.models.forward.prefix_tree import Ids


class Precision(NamedTuple):
    """The number types that a model computes in.

    Attributes:
        weights: the type of its weights.
        autocast: the type of its matrix products under autocast; None outside of autocast.
    """

    weights: torch.dtype
    autocast: torch.dtype | None

    @classmethod
    def from_model(cls, model: Any) -> Self:
        """The precision that a model would run in now."""
        device = model.device.type
        return cls(model.dtype, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)

    @property
    def is_full(self) -> bool:
        """Whether two ways of computing the same differ only by float32 rounding, about 1e-6 nats a token."""
        return {self.weights, self.autocast} <= {torch.float32, torch.float64, None}


FLOAT32 = Precision(torch.float32, None)


class LogprobCache:
    """Log-probs that one frozen set of weights gave in the rollouts since :meth:`clear`, keyed by precision."""

    def __init__(self) -> None:
        self._said: dict[tuple[Precision, Ids], dict[Ids, tuple[float, ...]]] = {}

    def keep(
        self, context: Ids, continuation: Ids, logprobs: tuple[float, ...], precision: Precision = FLOAT32
    ) -> None:
        """Store the log-prob of every token of a continuation."""
        self._said.setdefault((precision, context), {})[continuation] = logprobs

    def find(
        self, contexts: Sequence[Ids], continuations: Sequence[Ids], precision: Precision = FLOAT32
    ) -> list[tuple[float, ...] | None]:
        """The log-probs of each continuation, or of a longer one that begins with it; None where there are none."""
        pairs = zip(contexts, continuations, strict=True)
        return [self._find(self._said.get((precision, context), {}), ids) for context, ids in pairs]

    def forget_rounded(self) -> None:
        """Drop log-probs that were not computed in full precision.

        Below full precision, two ways of computing, such as a rollout's and an update's, differ by some hundredths of a
        nat a token. A margin between two models must use one of them for both.
        """
        self._said = {key: said for key, said in self._said.items() if key[0].is_full}

    def clear(self) -> None:
        """Drop everything."""
        self._said.clear()

    @staticmethod
    def _find(said: dict[Ids, tuple[float, ...]], continuation: Ids) -> tuple[float, ...] | None:
        if continuation in said:
            return said[continuation]
        for ids, logprobs in said.items():
            if ids[: len(continuation)] == continuation:
                return logprobs[: len(continuation)]
        return None
