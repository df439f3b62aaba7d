"""Novelty in meaning: the distance between sentence embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from astra_accel.methods.ast.rewards.novelty import Novelty
from astra_accel.methods.ast.rewards.sentence_embedder import SentenceEmbedder


class EmbeddingNovelty(Novelty):
    """The cosine distance of the probe to the nearest earlier probe in the reservoir, from 0 to 2.

    ``1 - max cos(probe, earlier)``. Hong et al. 2024 (https://arxiv.org/abs/2402.19464) reward the mean distance to
    earlier probes; with the distance to the nearest, a paraphrase of one of them earns little however varied the rest
    are.

    Args:
        embedder: embeds texts; None is the embedded model.
        reservoir_size: the most earlier probes to compare with.
        seed: determines which earlier probes are kept.
        reservoir_half_life: experiences after which a probe's weight in that choice halves; None never reduces it.

    Raises:
        ImportError: the embedded model's package is not installed.
        ValueError: ``reservoir_size`` is below 1, or ``reservoir_half_life`` is not above 0.
    """

    name = "embedding_novelty"

    def __init__(
        self,
        embedder: SentenceEmbedder | None = None,
        reservoir_size: int = 256,
        seed: int = 0,
        reservoir_half_life: float | None = None,
    ) -> None:
        super().__init__(reservoir_size, seed, reservoir_half_life)
        self.embedder = SentenceEmbedder() if embedder is None else embedder
        self._embeddings: dict[str, torch.Tensor] = {}

    def compare_with(self, earlier: Sequence[str]) -> None:
        """Embed those of the earlier probes that are new."""
        distinct = list(dict.fromkeys(earlier))
        new = [text for text in distinct if text not in self._embeddings]
        known = self._embeddings | dict(zip(new, self.embedder.embed(new).unbind(), strict=True))
        self._embeddings = {text: known[text].clone() for text in distinct}  # a view would keep the rest in memory
        self._earlier_ED = torch.stack(list(self._embeddings.values()))

    def novelty(self, probes: Sequence[str]) -> list[float]:
        """The distance of each probe to the nearest earlier one."""
        nearest_B = (self.embedder.embed(probes) @ self._earlier_ED.T).amax(-1)
        return (1 - nearest_B).clamp(min=0.0).tolist()

    def state(self) -> dict[str, Any]:
        """The state for a checkpoint; includes the embeddings, as other batches would round them differently."""
        return {**super().state(), "embeddings": dict(self._embeddings)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        super().load_state(state)
        self._embeddings = dict(state["embeddings"])
