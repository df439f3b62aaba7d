"""A generator that decodes in this process, with caches that are carried from turn to turn."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding.generation import generate
from astra_accel.models.decoding.kv_cache import PrefixCache
from astra_accel.models.decoding.prefill import ScoreRequest
from astra_accel.models.decoding.token_sampling import Seed
from astra_accel.models.decoding.turn_plan import Generated
from astra_accel.models.forward.prefix_tree import Ids


class LocalGenerator:
    """Generates with the model itself; see :class:`~astra_accel.models.generators.base.Generator`.

    Args:
        model: a transformers causal language model. The caller switches it to the role.
        num_ids: the number of ids to sample from, counted from 0, if another role reads them and has fewer embeddings.

    Attributes:
        memory: what the model has read so far in a rollout; None outside of one.
        turns_left: the turns left in that rollout; None if unknown.
    """

    def __init__(self, model: Any, num_ids: int | None = None) -> None:
        self._model, self._num_ids = model, num_ids
        self.memory: PrefixCache | None = None
        self.turns_left: int | None = None

    def take_weights(self, step: int) -> None:
        """Do nothing: the weights are the model's own."""

    def begin(self, num_turns: int | None) -> None:
        """Start to remember what is read."""
        self.memory, self.turns_left = PrefixCache(), num_turns

    def end(self) -> None:
        """Forget what was read."""
        self.memory = self.turns_left = None

    def generate(
        self,
        contexts: Sequence[Ids],
        seeds: Sequence[Seed],
        sampling: SamplingConfiguration,
        end_ids: Collection[int],
        scored: Sequence[ScoreRequest] | None = None,
        *,
        batch_rows: int = 64,
    ) -> list[Generated]:
        """See :func:`~astra_accel.models.decoding.generation.generate`. In the last turn nothing is kept."""
        generated = generate(
            self._model,
            contexts,
            seeds,
            sampling,
            end_ids=end_ids,
            batch_rows=batch_rows,
            memory=self.memory,
            remember=self.turns_left != 1,
            scored=scored,
            num_ids=self._num_ids,
        )
        if self.turns_left is not None:
            self.turns_left -= 1
        return generated
