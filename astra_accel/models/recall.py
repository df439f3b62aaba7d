"""Log-probs that came along with a rollout, to be looked up instead of computed again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch

from astra_accel.models.forward.prefix_tree import Ids


class Precision(NamedTuple):
    """In what a model computes.

    Attributes:
        weights: the type of its weights.
        autocast: that of its matrix products where they have another; None outside of autocast.
    """

    weights: torch.dtype
    autocast: torch.dtype | None

    @classmethod
    def of(cls, model: Any) -> Self:
        """That of a model if it ran now."""
        device = model.device.type
        return cls(model.dtype, torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None)

    @property
    def is_full(self) -> bool:
        """Whether two ways of computing the same differ by no more than float32's rounding, some 1e-6 nats a token."""
        return {self.weights, self.autocast} <= {torch.float32, torch.float64, None}


FLOAT32 = Precision(torch.float32, None)


class LogprobCache:
    """The log-probs that one frozen set of weights gave in the rollouts since :meth:`clear`, each by its precision."""

    def __init__(self) -> None:
        self._said: dict[tuple[Precision, Ids], dict[Ids, tuple[float, ...]]] = {}

    def keep(
        self, context: Ids, continuation: Ids, logprobs: tuple[float, ...], precision: Precision = FLOAT32
    ) -> None:
        """Take down the log-prob of every token of a continuation."""
        self._said.setdefault((precision, context), {})[continuation] = logprobs

    def find(
        self, contexts: Sequence[Ids], continuations: Sequence[Ids], precision: Precision = FLOAT32
    ) -> list[tuple[float, ...] | None]:
        """The log-probs of each continuation, or of a longer one that begins like it; None where there are none."""
        pairs = zip(contexts, continuations, strict=True)
        return [self._find(self._said.get((precision, context), {}), ids) for context, ids in pairs]

    def forget_rounded(self) -> None:
        """Forget what was not computed in full precision.

        Two ways of computing that, such as a rollout's and an update's, differ by some hundredths of a nat a token. A
        margin between two models has to come of one of them.
        """
        self._said = {key: said for key, said in self._said.items() if key[0].is_full}

    def clear(self) -> None:
        """Forget everything."""
        self._said.clear()

    @staticmethod
    def _find(said: dict[Ids, tuple[float, ...]], continuation: Ids) -> tuple[float, ...] | None:
        if continuation in said:
            return said[continuation]
        for ids, logprobs in said.items():
            if ids[: len(continuation)] == continuation:
                return logprobs[: len(continuation)]
        return None
