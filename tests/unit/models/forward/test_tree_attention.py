"""Attention over packs, block by block, against a dense mask."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from astra_accel.models.forward import head, tree_attention
from astra_accel.models.forward.attention import Rule
from astra_accel.models.forward.flex_attention import FlexLayout
from astra_accel.models.forward.prefix_tree import Pack, pack_sequences
from astra_accel.models.forward.tree_attention import TreeLayout
from astra_accel.models.logprobs import can_pack, sequence_logprobs
from tests.helpers.architectures import build

RULES = {
    "plain": Rule(None, None, None),
    "scaled": Rule(0.3, None, None),
    "soft cap": Rule(0.3, 2.0, None),
    "window": Rule(None, None, 7),
    "soft cap and window": Rule(0.5, 2.0, 7),
}
CPU = torch.device("cpu")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def forest() -> Pack:
    """Two trees: one deeper than a step of keys with branches of many lengths, and one of a single path."""
    draw = random.Random(0)

    def some(length: int) -> list[int]:
        return [draw.randrange(1000) for _ in range(length)]

    contexts: list[list[int]] = [some(3)]
    continuations = [some(2)]
    level = [some(150)]
    for _ in range(3):
        behind = []
        for context in level:
            for length in (1, 33, 70):
                contexts.append(context)
                continuations.append(some(length))
                behind.append([*context, *continuations[-1]])
        level = behind[::4]
    (pack,) = pack_sequences(contexts, continuations, token_budget=10_000)
    return pack


def states(num_nodes: int, heads: tuple[int, int] = (4, 2)) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    query_heads, key_heads = heads
    return [
        torch.randn(1, count, num_nodes, 16, generator=draw).requires_grad_()
        for count in (query_heads, key_heads, key_heads)
    ]


def dense(pack: Pack, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, rule: Rule) -> torch.Tensor:
    """The same by a mask over all pairs of nodes, which follows from the parents alone."""
    num_nodes = len(pack.parents)
    seen = torch.zeros(num_nodes, num_nodes, dtype=torch.bool)
    for node in range(num_nodes):
        other, steps = node, 0
        while other >= 0 and (rule.window is None or steps < rule.window):
            seen[node, other] = True
            other, steps = pack.parents[other], steps + 1
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if rule.scale is None else rule.scale)
    if rule.softcap is not None:
        scores = rule.softcap * torch.tanh(scores / rule.softcap)
    return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (6, 1)], ids=str)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
def test_outputs_and_gradients_are_those_of_a_dense_mask(rule: Rule, heads: tuple[int, int]) -> None:
    pack = forest()
    leaves = states(len(pack.parents), heads)
    found, expected = TreeLayout(pack, CPU).attend(0, *leaves, rule), dense(pack, *leaves, rule)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    for gradient, other in zip(
        torch.autograd.grad(found, leaves, weights), torch.autograd.grad(expected, leaves, weights), strict=True
    ):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-5)


def test_how_many_scores_are_made_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pack = forest()
    leaves = states(len(pack.parents))
    whole = TreeLayout(pack, CPU).attend(0, *leaves, RULES["plain"])
    monkeypatch.setattr(tree_attention, "MAX_SCORES", 1)
    one_by_one = TreeLayout(pack, CPU).attend(0, *leaves, RULES["plain"])
    torch.testing.assert_close(one_by_one, whole)


@pytest.mark.parametrize("layout", [TreeLayout, FlexLayout])
@torch.no_grad()
def test_keys_and_values_are_kept_where_they_are_wanted(layout: type) -> None:
    pack = forest()
    query, key, value = (leaf.detach() for leaf in states(len(pack.parents)))
    keeping, forgetting = layout(pack, CPU, keep=True), layout(pack, CPU)
    for each in (keeping, forgetting):
        each.attend(3, query, key, value, RULES["plain"])
    assert list(keeping.kept) == [3]
    assert torch.equal(keeping.kept[3][0], key[0])
    assert torch.equal(keeping.kept[3][1], value[0])
    assert forgetting.kept == {}


def test_gradients_in_16_bits_are_added_in_32() -> None:
    """A root that 64 branches see: each adds about a unit to a sum of 64, of which bfloat16 drops what is below 1/4."""
    draw = random.Random(0)
    branches = [[branch, *(draw.randrange(1000) for _ in range(32))] for branch in range(64)]
    (pack,) = pack_sequences([[7]] * 64, branches, token_budget=10_000)
    query, key, value = (torch.zeros(1, 1, len(pack.parents), 16, dtype=torch.bfloat16) for _ in range(3))
    value.requires_grad_()
    # Without scores a node at depth d gives 1 / (d + 1) of its gradient to the root; 64 branches of 32, and itself.
    TreeLayout(pack, CPU).attend(0, query, key, value, RULES["plain"]).sum().backward()
    expected = 1 + 64 * sum(1 / (depth + 1) for depth in range(1, 33))
    assert value.grad is not None
    assert value.grad[0, 0, 0, 0].item() == pytest.approx(expected, rel=2**-8)


class Operations(TorchDispatchMode):
    """Takes down what is computed, backward passes too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket._qualified_op_name.removeprefix("aten::")
        is_float = any(isinstance(arg, torch.Tensor) and arg.is_floating_point() for arg in args[:1])
        self.found.add(name if name != "cumsum" or is_float else "cumsum of integers")
        return function(*args, **(kwargs or {}))


# On CUDA in an order that differs from run to run, by the documentation of torch.use_deterministic_algorithms;
# index_put_ without accumulate is not among them, since nobody writes a place twice.
UNORDERED = {"index_add", "index_add_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_", "put_"}
UNORDERED |= {"index_select", "repeat_interleave", "histc", "bincount", "cumsum", "nll_loss_forward", "index_copy_"}


def test_an_update_adds_in_the_same_order_each_time_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward pass of a pack, with the sum by segments as it is there."""

    def on_cuda(values: torch.Tensor, segments: torch.Tensor, num_segments: int) -> torch.Tensor:
        total = values.new_zeros(num_segments, *values.shape[1:])
        return total.index_put_((segments,), values, accumulate=True)

    for user in (tree_attention, head):
        monkeypatch.setattr(user, "segment_sum", on_cuda)
    model = build("gemma2")
    draw = random.Random(0)
    context = [draw.randrange(3, 90) for _ in range(40)]
    can_pack(model)
    with Operations() as operations:
        logprobs = sequence_logprobs(model, [context] * 2, [[1, 2, 3], [1, 4]], packing="prefix_tree")
        torch.cat(logprobs).sum().backward()
    assert "index_put_" in operations.found
    assert operations.found & UNORDERED == set()
