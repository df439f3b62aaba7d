"""The interface of generators."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding.prefill import ScoreRequest
from astra_accel.models.decoding.token_sampling import Seed
from astra_accel.models.decoding.turn_plan import Generated
from astra_accel.models.forward.prefix_tree import Ids


class Generator(Protocol):
    """Continues contexts for one role. Assign one to ``LanguageModel.generator`` to decode elsewhere.

    In a rollout, ``take_weights`` and ``begin`` are called first, then ``generate`` once per turn and role, then
    ``end``.
    """

    def take_weights(self, step: int) -> None:
        """Take over the role's weights, which may have changed.

        Args:
            step: a number that grows from rollout to rollout.
        """

    def begin(self, num_turns: int | None) -> None:
        """Begin a rollout: each turn's contexts will extend those of the turn before.

        Args:
            num_turns: the number of turns of the rollout; None if unknown.
        """

    def end(self) -> None:
        """End the rollout: nothing of it has to be kept."""

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
        """Sample a continuation of each context.

        Args:
            contexts: the token ids of each context, at least one each.
            seeds: the seed of each row, ints in [0, 2**64), which determine its random numbers.
            sampling: temperature, top-k, top-p and the maximum number of tokens.
            end_ids: the tokens that end a turn; the one that does is part of the continuation.
            scored: for each row, tokens of its context whose log-probs are wanted as well. A generator that can't give
                them leaves ``Generated.scored`` None, and they are computed in a separate forward.
            batch_rows: the most rows to decode together, for a generator in this process.

        Returns:
            For each row the sampled ids, and their log-probs under the whole distribution at temperature 1.
        """
