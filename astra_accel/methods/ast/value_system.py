"""Adaptive stress testing with a tester that also estimates values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from astra_accel.core.system import ValueFunctionSystem
from astra_accel.methods.ast.hf_system import HFASTSystem, within
from astra_accel.methods.ast.transcript import Segment, Transcript
from astra_accel.models.forward.capabilities import transformers_model
from astra_accel.models.forward.head import GivenLogits, Head
from astra_accel.models.forward.value_head import ValueHead
from astra_accel.models.logprobs import check_readings, pad_logprobs, sequence_readings


class HFASTValueFunctionSystem(HFASTSystem, ValueFunctionSystem[Any, Any]):
    """An :class:`HFASTSystem` with a value head on the tester's hidden states, for actor-critic algorithms.

    The head is trained along with the tester, and its loss has gradients for the tester's weights too. A tester that
    continues from a folder with a value head loads that head.
    """

    value_head: ValueHead

    def _load(self, files: Any, *args: Any) -> None:
        super()._load(files, *args)
        # Check this here: later the weights may be sharded over processes that are not all at this point.
        model = transformers_model(self.roles.tester.model)
        self.value_head = ValueHead(model)
        check_readings(model)
        tester = files.configurations["tester"]
        self.value_head.load(tester.adapter or tester.path)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        """The tester's trainable parameters, and the value head's."""
        yield from super().parameters()
        yield from self.value_head.parameters()

    def value(self, context: Sequence[Transcript | str], continuation: Sequence[Segment | str]) -> torch.Tensor:
        """The value before each sampled token of the probes, ``[batch, tokens]``, with gradient."""
        return self.read_tester(context, continuation, ["values"])["values"]

    def read_tester(
        self, context: Sequence[Transcript | str], continuation: Sequence[Segment | str], names: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Named quantities of the probes' sampled tokens from one forward, ``[batch, tokens]`` each, with gradient.

        Args:
            context, continuation: the states and the probes, as ``get_tester_logprobs`` takes them.
            names: some of ``logprobs``, ``values``, and ``entropies`` (of the distributions that the tokens were drawn
                from).
        """
        tester = self.roles.tester
        model = transformers_model(tester.model)
        head = Head.from_model(model)
        read = partial(self._read, names)
        with tester.switch():
            rows = sequence_readings(
                model,
                self._policy_contexts(context),
                [probe.sampled_ids for probe in self._probes(context, continuation)],
                None if head is None else partial(read, head),
                read_given=read if head is None else None,
                packing=tester.compute.packing,
                token_budget=tester.compute.token_budget,
                activation_checkpointing=tester.compute.activation_checkpointing,
            )
        columns_BTC = pad_logprobs([row.reshape(-1, len(names)) for row in rows])
        return dict(zip(names, columns_BTC.unbind(-1), strict=True))

    def save_pretrained(self, folder: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write the tester, its tokenizer and the value head; see the base class."""
        super().save_pretrained(folder, state_dict)
        self.value_head.save(folder, None if state_dict is None else within(state_dict, "value_head"))

    def _read(
        self,
        names: Sequence[str],
        head: Head | GivenLogits,
        hidden_RH: torch.Tensor,
        rows_E: torch.Tensor,
        tokens_E: torch.Tensor,
    ) -> torch.Tensor:
        read = {
            "logprobs": lambda: head.logprobs(hidden_RH, rows_E, tokens_E),
            "values": lambda: self.value_head(hidden_RH)[rows_E],
            "entropies": lambda: head.entropies(hidden_RH)[rows_E],
        }
        return torch.stack([read[name]() for name in names], dim=-1)
