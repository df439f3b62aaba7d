"""A system whose models are tables, so that losses follow by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

TESTER = {"good": [-1.0, -0.5, -0.5], "bad": [-4.0], "fair": [-2.0, -1.0]}
BASELINE = {"good": [-1.0, -1.0, -2.0], "bad": [-2.0], "fair": [-1.0, -1.0]}


class TableSystem:
    """A system whose log-probs a token stand in tables, by probe.

    Args:
        baseline: the baseline's; None those of ``BASELINE``.
        tester: the tester's, as tensors if they are to have gradients; None the baseline's if those are given, or
            ``TESTER``.

    Attributes:
        asked: who was asked about which probes, in order.
        scale: what the tester's log-probs are multiplied by, 1; has a gradient.
        shift: what is added to them, 0; has a gradient.
    """

    def __init__(
        self, baseline: Mapping[str, Sequence[float]] | None = None, tester: Mapping[str, Any] | None = None
    ) -> None:
        self.tester = dict(tester or baseline or TESTER)
        self.baseline = dict(baseline or BASELINE)
        self.asked: list[tuple[str, list[str]]] = []
        self.scale = torch.nn.Parameter(torch.ones(()))
        self.shift = torch.nn.Parameter(torch.zeros(()))

    @property
    def calls(self) -> list[str]:
        """Who was asked, in order."""
        return [role for role, _ in self.asked]

    def rows(self, table: Mapping[str, Any], continuation: Sequence[str]) -> torch.Tensor:
        """The log-probs of some probes, ``[probes, tokens]``, and 0 behind them."""
        return torch.nn.utils.rnn.pad_sequence(
            [torch.as_tensor(table[probe]) for probe in continuation], batch_first=True
        )

    def get_tester_logprobs(self, context: Any, continuation: Sequence[str]) -> torch.Tensor:
        self.asked.append(("tester", list(continuation)))
        rows = self.rows(self.tester, continuation)
        return torch.where(rows == 0, 0.0, rows * self.scale + self.shift)

    def get_baseline_logprobs(self, context: Any, continuation: Sequence[str]) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        self.asked.append(("baseline", list(continuation)))
        return self.rows(self.baseline, continuation)
