"""What the machine could do at best, and the least work that a rollout and an update are.

Both rates are measured: matrix products of 1024 rows with the model's own matrices, and the reading of a buffer that
no cache holds. The work is counted from the trees that were really rolled out, every distinct token once.

Not counted, so that the limit is one that can't be reached: attention, norms, sampling, the adapter, Python. Counted
although it can be saved: the output layer at tokens whose predictions nobody asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from astra_accel.core.sampler import Graph, walk
from astra_accel.models.forward.prefix_tree import num_distinct_tokens

Ids = tuple[int, ...]
ROWS = 1024


class Rates(NamedTuple):
    """Of a machine."""

    flops_per_second: float
    bytes_per_second: float


@dataclass(frozen=True)
class Size:
    """Of a model without adapters.

    Attributes:
        num_parameters: each counted once, also where two layers share it.
        weight_bytes: of all of them.
        kv_bytes: keys and values of one token.
    """

    num_parameters: int
    weight_bytes: int
    kv_bytes: int

    @classmethod
    def from_model(cls, model: Any) -> Size:
        """The size of a transformers model."""
        weights = [weight for name, weight in model.named_parameters() if "lora_" not in name]
        config = model.config.get_text_config()
        num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            num_parameters=sum(weight.numel() for weight in weights),
            weight_bytes=sum(weight.nbytes for weight in weights),
            kv_bytes=2 * config.num_hidden_layers * num_heads * dim * weights[0].element_size(),
        )


class Call(NamedTuple):
    """One turn of one role: the contexts and what was sampled in each, the end of the turn included."""

    contexts: Sequence[Ids]
    sampled: Sequence[Ids]


class DecodingStep(NamedTuple):
    """One token more for every row that continues: the rows, and the distinct tokens that they look back at."""

    num_rows: int
    num_cached: int


@dataclass
class Work:
    """What a role had to do in a rollout: tokens read at once, and one by one."""

    num_prefill: int = 0
    steps: list[DecodingStep] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        """Tokens read either way."""
        return self.num_prefill + sum(step.num_rows for step in self.steps)


def matrix_products(model: Any) -> tuple[Callable[[], None], int]:
    """A product of ``ROWS`` rows with every matrix of a model's linear layers, and the FLOPs of all of them."""
    weights_IO = [
        module.weight.detach() if type(module).__name__ == "Conv1D" else module.weight.detach().T
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D") and "lora_" not in name
    ]
    like = weights_IO[0]
    inputs = {weight.shape[0]: torch.randn(ROWS, weight.shape[0]).to(like) for weight in weights_IO}
    # Written to the same memory each time: to get new memory for the logits takes as long as a part of the product.
    outputs = {weight.shape[1]: like.new_empty(ROWS, weight.shape[1]) for weight in weights_IO}

    def work() -> None:
        for weight_IO in weights_IO:
            torch.mm(inputs[weight_IO.shape[0]], weight_IO, out=outputs[weight_IO.shape[1]])

    return work, sum(2 * ROWS * weight.numel() for weight in weights_IO)


def reading(num_mib: int, device: torch.device) -> tuple[Callable[[], Any], int]:
    """The reading of a buffer, and its bytes."""
    buffer = torch.ones(num_mib * 2**18, dtype=torch.float32, device=device)
    return buffer.sum, buffer.nbytes


def rollout_calls(system: Any, graphs: Sequence[Graph]) -> dict[str, list[Call]]:
    """For tester and target a call a level: the whole experience's turns, as each side reads them."""
    config, views = system.rollout_config, system.views
    levels: dict[int, list[Any]] = {}
    for graph in graphs:
        for path, node in walk(graph):
            levels.setdefault(len(path), []).append(node)
    return {
        "tester": [
            Call(
                [views.tester.own_turn(node.context, config.tester.max_new_tokens) for node in level],
                [node.probe.sampled_ids for node in level],
            )
            for level in levels.values()
        ],
        "target": [
            Call(
                [views.target.own_turn(node.context + node.probe, config.target.max_new_tokens) for node in level],
                [node.response.sampled_ids for node in level],
            )
            for level in levels.values()
        ],
    }


def count_work(calls: Sequence[Call]) -> Work:
    """The least work of a role that keeps what it has read.

    A turn's context is read as far as no turn before has read it, each distinct token once. Then every sampled token
    but the last of its turn is fed in a decoding step. The last one is fed to nobody, so it is a part of what the
    next turn reads, unless it ended the turn.
    """
    work = Work()
    known: list[Ids] = []
    for contexts, sampled in calls:
        turns = list(zip(contexts, sampled, strict=True))
        before = num_distinct_tokens(known)
        known += contexts
        work.num_prefill += num_distinct_tokens(known) - before
        for length in range(1, max(map(len, sampled))):
            going_on = [(*context, *ids[:length]) for context, ids in turns if len(ids) > length]
            work.steps.append(DecodingStep(len(set(going_on)), num_distinct_tokens(going_on)))
        known += [(*context, *ids[:-1]) for context, ids in turns]
    return work


def bandwidth_limit(work: Work, size: Size, rates: Rates) -> float:
    """Seconds, if decoding cost nothing but its reading: the weights once a step, and the rows' distinct cache."""
    num_bytes = sum(size.weight_bytes + size.kv_bytes * step.num_cached for step in work.steps)
    return _prefill(work, size, rates) + num_bytes / rates.bytes_per_second


def roofline_limit(work: Work, size: Size, rates: Rates) -> float:
    """Seconds, if each decoding step cost the longer of its reading and its arithmetic."""
    return _prefill(work, size, rates) + sum(
        max(
            (size.weight_bytes + size.kv_bytes * step.num_cached) / rates.bytes_per_second,
            2 * size.num_parameters * step.num_rows / rates.flops_per_second,
        )
        for step in work.steps
    )


def update_limit(num_tokens: int, size: Size, rates: Rates, *, full: bool) -> float:
    """Seconds of a forward and a backward over some distinct tokens.

    A token costs 2 FLOPs a parameter forward, and 2 for the gradient of what a layer reads; where all weights are
    trained, 2 more for theirs.
    """
    return (6 if full else 4) * size.num_parameters * num_tokens / rates.flops_per_second


def _prefill(work: Work, size: Size, rates: Rates) -> float:
    return 2 * size.num_parameters * work.num_prefill / rates.flops_per_second
