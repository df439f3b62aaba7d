"""One role: a language model that continues contexts and gives log-probs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from astra_accel.config import ComputeConfiguration, SamplingConfiguration
from astra_accel.models.decoding.prefill import ScoreRequest
from astra_accel.models.decoding.token_sampling import Seed
from astra_accel.models.decoding.turn_plan import Generated
from astra_accel.models.forward.prefix_tree import Ids
from astra_accel.models.generators.base import Generator
from astra_accel.models.generators.local import LocalGenerator
from astra_accel.models.loading.model_files import ModelFiles
from astra_accel.models.logprobs import sequence_logprobs
from astra_accel.models.recall import LogprobCache, Precision


@dataclass
class LanguageModel:
    """One role: a causal language model, its tokenizer, and the switch that turns shared weights into this role.

    Attributes:
        model: the transformers model, including any adapter layers.
        files: its tokenizer, limits and end-of-turn tokens.
        switch: returns a context in which ``model`` is this role.
        compute: how the model is run.
        recall: log-probs that are already known, for a role whose weights are frozen; else None.
        num_ids: the number of ids to sample from, counted from 0, if another role reads them and has fewer embeddings;
            else None.
        generator: continues contexts; by default the model itself, in this process.
    """

    model: Any
    files: ModelFiles
    switch: Callable[[], AbstractContextManager[Any]] = nullcontext
    compute: ComputeConfiguration = field(default_factory=ComputeConfiguration)
    recall: LogprobCache | None = None
    num_ids: int | None = None
    generator: Generator = field(init=False)

    def __post_init__(self) -> None:
        self.generator = LocalGenerator(self.model, self.num_ids)

    def logprobs(self, contexts: Sequence[Ids], continuations: Sequence[Ids]) -> list[torch.Tensor]:
        """The log-prob of every token of each continuation.

        See :func:`~astra_accel.models.logprobs.sequence_logprobs`. Log-probs that a frozen role gave during the rollout
        in the current precision are looked up; after the rollout, only those in full precision.
        """
        found = self._recalled(contexts, continuations)
        missing = [index for index, values in enumerate(found) if values is None]
        with self.switch():
            computed = sequence_logprobs(
                self.model,
                [contexts[index] for index in missing],
                [continuations[index] for index in missing],
                packing=self.compute.packing,
                token_budget=self.compute.token_budget,
                activation_checkpointing=self.compute.activation_checkpointing,
            )
        results = dict(zip(missing, computed, strict=True))
        return [
            results[index] if values is None else torch.tensor(values, device=self.model.device)
            for index, values in enumerate(found)
        ]

    def generate(
        self,
        contexts: Sequence[Ids],
        seeds: Sequence[Seed],
        sampling: SamplingConfiguration,
        batch_rows: int,
        scored: Sequence[ScoreRequest] | None = None,
    ) -> list[Generated]:
        """Continue contexts; see :class:`~astra_accel.models.generators.base.Generator`."""
        with self.switch():
            generated = self.generator.generate(
                contexts, seeds, sampling, self.files.end_ids, scored, batch_rows=batch_rows
            )
        if scored is not None:
            for context, asked, row in zip(contexts, scored, generated, strict=True):
                if row.scored is not None:
                    self.keep(context[: asked.start], asked.ids, row.scored)
        return generated

    def keep(self, context: Ids, continuation: Ids, logprobs: tuple[float, ...]) -> None:
        """Store log-probs that were just computed, if the role's weights are frozen."""
        if self.recall is not None:
            self.recall.keep(context, continuation, logprobs, Precision.from_model(self.model))

    def _recalled(self, contexts: Sequence[Ids], continuations: Sequence[Ids]) -> list[tuple[float, ...] | None]:
        if self.recall is None:
            return [None] * len(contexts)
        return self.recall.find(contexts, continuations, Precision.from_model(self.model))
