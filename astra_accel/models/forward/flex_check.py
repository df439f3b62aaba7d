"""Check that a layout of a pack attends correctly, on the calls that a model makes."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from astra_accel.models.forward.attention import Layout, Rule
from astra_accel.models.forward.capabilities import UnsupportedModelError
from astra_accel.models.forward.prefix_tree import Pack, pack_sequences

TOLERANCE = 3e-2
"""Relative norm. Rounding to bfloat16 gives 0.2 to 1% (measured on CPUs, scores in float32), a wrong mask 9 to 23%."""
CAP_OVER_SCORES = 5
"""The ratio of a soft cap to the scores' standard deviation: with a smaller one, rounding would show too."""

BLOCK = 128
"""Nodes whose outputs are compared together."""

MakeLayout = Callable[[Pack, torch.device], Layout]


class AttentionCall(NamedTuple):
    """A call that layers of a model make: the heads and sizes of queries, keys and values, and the rule."""

    heads: tuple[int, int, int]
    dims: tuple[int, int, int]
    rule: Rule


def check_layout(make: MakeLayout, model: Any, dtype: torch.dtype, gradients: bool) -> None:
    """Compare a layout with a dense mask in float32, for every kind of call that the model makes.

    Args:
        make: makes the layout.
        model: a transformers model.
        dtype: the type of the states that it will get.
        gradients: whether to compare gradients too.

    Raises:
        UnsupportedModelError: outputs or gradients differ by more than rounding.
    """
    for call in attention_calls(model):
        for name, error in layout_errors(make, call, model.device, dtype, gradients).items():
            if not error <= TOLERANCE:  # NaN is not
                raise UnsupportedModelError(f"{name} off by {error:.1%} with {call.rule}")


def attention_calls(model: Any) -> list[AttentionCall]:
    """The distinct calls of a model's layers, found by a forward of two tokens."""
    from astra_accel.models.decoding.prefill import packed_hidden  # which chooses among layouts itself

    calls: dict[AttentionCall, None] = {}

    class Noted:
        def attend(
            self, _layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule
        ) -> torch.Tensor:
            states = query, key, value
            heads, dims = (tuple(each.shape[axis] for each in states) for axis in (1, 3))
            calls[AttentionCall(heads, dims, rule)] = None  # type: ignore[arg-type]
            return value.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[3])

    (pack,) = pack_sequences([[0, 0]], [[0]], token_budget=2)
    with torch.no_grad():
        packed_hidden(model, pack, Noted())
    return list(calls)


def layout_errors(
    make: MakeLayout, call: AttentionCall, device: torch.device, dtype: torch.dtype, gradients: bool
) -> dict[str, float]:
    """How far a layout is from a dense mask in float32, by relative norm, on random states.

    Outputs are compared block by block: averages over many keys are smaller than those over few.
    """
    pack = check_pack()
    query, key, value = (state.to(device, dtype) for state in _random_states(call, len(pack.parents)))
    seen_NN = pack.ancestors(device) & within_window(pack, call.rule.window, device)
    layout = make(pack, device)
    found = _outcome(lambda q, k, v: layout.attend(0, q, k, v, call.rule), (query, key, value), gradients)
    rounded = query.float(), key.float(), value.float()
    expected = _outcome(lambda q, k, v: dense_attention(q, k, v, seen_NN, call.rule), rounded, gradients)
    names = ["gradients of queries", "gradients of keys", "gradients of values"]
    blocks = zip(found[0].split(BLOCK, 1), expected[0].split(BLOCK, 1), strict=True)
    errors = {"outputs": max(relative_norm(one, other) for one, other in blocks)}
    for name, one, other in zip(names, found[1:], expected[1:], strict=False):
        errors[name] = relative_norm(one, other)
    return errors


def check_pack() -> Pack:
    """A pack of some 600 nodes: a root deeper than a block, nested branches of many lengths, and a tree of one path."""
    draw = random.Random(0)

    def some(length: int) -> list[int]:
        return [draw.randrange(2, 1000) for _ in range(length)]

    root, branch = some(150), some(60)
    contexts = [root, root, [*root, *branch], [*root, *branch], [0]]
    continuations = [some(101), branch, some(131), some(40), some(120)]
    (pack,) = pack_sequences(contexts, continuations, token_budget=1024)
    return pack


def _random_states(call: AttentionCall, num_nodes: int) -> list[torch.Tensor]:
    """Queries, keys and values whose scores have a standard deviation of 1, or more if needed to reach the soft cap."""
    draw = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, num_nodes, dim, generator=draw) for heads, dim in zip(call.heads, call.dims, strict=True)
    )
    dim = call.dims[0]
    scale = dim**-0.5 if call.rule.scale is None else call.rule.scale
    wanted = max(1.0, (call.rule.softcap or 0.0) / CAP_OVER_SCORES)
    return [query * (wanted / (scale * dim**0.5)), key, value]


def within_window(pack: Pack, window: int | None, device: torch.device) -> torch.Tensor:
    """``[nodes, nodes]`` bool: whether the column's node is no further above the row's than the window allows."""
    position_N = torch.tensor(pack.position_ids, device=device)
    distance_NN = position_N[:, None] - position_N
    return distance_NN < (len(position_N) if window is None else window)


def dense_attention(
    query_BHTD: torch.Tensor, key_BGTD: torch.Tensor, value_BGTD: torch.Tensor, seen_TT: torch.Tensor, rule: Rule
) -> torch.Tensor:
    """Attention with all scores, ``[batch, tokens, heads, dim]``."""
    share = query_BHTD.shape[1] // key_BGTD.shape[1]
    key_BHTD, value_BHTD = (each.repeat_interleave(share, 1) for each in (key_BGTD, value_BGTD))
    scale = query_BHTD.shape[-1] ** -0.5 if rule.scale is None else rule.scale
    scores_BHTT = query_BHTD @ key_BHTD.transpose(-1, -2) * scale
    if rule.softcap is not None:
        scores_BHTT = rule.softcap * torch.tanh(scores_BHTT / rule.softcap)
    return (scores_BHTT.masked_fill(~seen_TT, -torch.inf).softmax(-1) @ value_BHTD).transpose(1, 2)


def relative_norm(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The norm of the difference, in units of what is expected."""
    return float((found.float() - expected).norm() / expected.norm())


def _outcome(
    attend: Callable[..., torch.Tensor], states: tuple[torch.Tensor, ...], gradients: bool
) -> list[torch.Tensor]:
    """The output, and if ``gradients`` is set the gradients of half its squared norm."""
    if not gradients:
        return [attend(*states)]
    # The check may run within a checkpointed forward, whose hooks would recompute that forward here.
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_itself, _itself):
        leaves = [state.clone().requires_grad_() for state in states]
        output = attend(*leaves)
        return [output.detach(), *torch.autograd.grad(output.square().sum() / 2, leaves)]


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor
