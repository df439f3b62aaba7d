"""The turns of a rollout's rows, split into tasks of rows that are decoded together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding.length_regimes import LengthRegimes
from astra_accel.models.decoding.prefill import PrefillRequest, ScoreRequest
from astra_accel.models.forward.padded import cheapest_groups
from astra_accel.models.forward.prefix_tree import Ids


class Generated(NamedTuple):
    """The result of one row.

    Attributes:
        ids: the sampled tokens; the last one ends the turn unless the length limit cut it.
        logprobs: the log-prob of each under the whole distribution, at temperature 1.
        scored: the log-probs that were requested; None if none were, or if the model can't give them as it reads.
    """

    ids: Ids
    logprobs: tuple[float, ...]
    scored: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Task:
    """Rows to decode together, with their requests, noise keys ``[rows, tokens, 2]`` and sampling settings.

    All that is read for them is in one length regime (:mod:`astra_accel.models.decoding.length_regimes`).
    """

    rows: Sequence[int]
    requests: Sequence[PrefillRequest]
    keys_BT2: torch.Tensor
    sampling: SamplingConfiguration
    end_ids: frozenset[int]
    num_ids: int | None
    regime: int


@dataclass
class TurnPlan:
    """The turns of all rows: one task per group of rows, and another where turns outgrow their length regime.

    Attributes:
        results: the result of each row so far.
    """

    regimes: LengthRegimes
    contexts: Sequence[Ids]
    keys: Sequence[np.ndarray]
    sampling: SamplingConfiguration
    end_ids: frozenset[int]
    scored: Sequence[ScoreRequest] | None
    num_ids: int | None
    device: torch.device
    results: list[Generated] = field(init=False)

    def __post_init__(self) -> None:
        self.results = [Generated((), ()) for _ in self.contexts]
        self._unfinished = list(range(len(self.contexts)))

    def next_tasks(self, batch_rows: int, price: float) -> list[Task]:
        """Tasks for all rows whose turns have not ended; pass their results to :meth:`add` before the next call.

        Args:
            batch_rows: the most rows of a task.
            price: the cost of another task, see :func:`~astra_accel.models.forward.padded.cheapest_groups`.
        """
        requests = {row: self._request(row) for row in self._unfinished}
        alike: dict[tuple[int, int], list[int]] = {}
        for row, request in requests.items():
            length = len(request.context)
            alike.setdefault((self.regimes.regime_of(length), self._num_new(row, length)), []).append(row)
        tasks = []
        for (regime, num_new), rows in sorted(alike.items()):
            asked = [requests[row] for row in rows]
            for group in cheapest_groups([len(ask.context) for ask in asked], asked, batch_rows, price):
                tasks.append(self._task([rows[at] for at in group], [asked[at] for at in group], regime, num_new))
        return tasks

    def add(self, task: Task, generated: Sequence[Generated]) -> None:
        """Add the results of a task."""
        for row, (ids, logprobs, scored) in zip(task.rows, generated, strict=True):
            before = self.results[row]
            self.results[row] = Generated(
                before.ids + ids, before.logprobs + logprobs, before.scored if before.ids else scored
            )
            if len(self.results[row].ids) == self.sampling.max_new_tokens or ids[-1] in self.end_ids:
                self._unfinished.remove(row)

    def _request(self, row: int) -> PrefillRequest:
        context, begun = tuple(self.contexts[row]), self.results[row].ids
        scored = None if self.scored is None or begun else self.scored[row]
        if scored is not None and self.regimes.regime_of(scored.start) != self.regimes.regime_of(len(context)):
            scored = None
        return PrefillRequest(context + begun, scored)

    def _num_new(self, row: int, length: int) -> int:
        """The number of tokens to draw before the turn ends or the row must be read again."""
        left = self.sampling.max_new_tokens - len(self.results[row].ids)
        longest = self.regimes.longest_like(length)
        return left if longest is None else min(left, longest + 1 - length)

    def _task(self, rows: Sequence[int], requests: Sequence[PrefillRequest], regime: int, num_new: int) -> Task:
        keys = []
        for row in rows:
            begun = len(self.results[row].ids)
            keys.append(self.keys[row][begun : begun + num_new])
        sampling = self.sampling.model_copy(update={"max_new_tokens": num_new})
        keys_BT2 = torch.from_numpy(np.stack(keys)).to(self.device)
        return Task(rows, requests, keys_BT2, sampling, self.end_ids, self.num_ids, regime)
