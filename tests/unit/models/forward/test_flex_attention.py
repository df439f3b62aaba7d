"""FlexAttention over packs: who sees whom, and how often it is compiled. No GPU has run it yet."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.attention.flex_attention as torch_flex
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils.checkpoint import checkpoint

from astra_accel.models.forward import flex_attention
from astra_accel.models.forward.attention import Rule
from astra_accel.models.forward.capabilities import plain_logprobs
from astra_accel.models.forward.flex_attention import BLOCK, STEP, FlexLayout, tree_layout
from astra_accel.models.forward.flex_check import (
    AttentionCall,
    check_pack,
    dense_attention,
    layout_errors,
    relative_norm,
    within_window,
)
from astra_accel.models.forward.prefix_tree import Pack, pack_sequences
from astra_accel.models.logprobs import sequence_logprobs
from tests.helpers.architectures import build
from tests.unit.models.forward.test_tree_attention import CPU, RULES, forest, states

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def pack_of(num_nodes: int) -> Pack:
    """A root of a quarter of so many nodes with three branches, which is no multiple of a block."""
    draw = random.Random(num_nodes)
    root, *branches = ([draw.randrange(1000) for _ in range(num_nodes // 4)] for _ in range(4))
    (pack,) = pack_sequences([root] * 3, branches, token_budget=10_000)
    return pack


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[CompileCounterWithBackend]:
    """CPUs take the way of GPUs, but that the compiler makes no kernels of the graphs, which it counts."""
    counter = CompileCounterWithBackend("aot_eager")
    compile_really = torch.compile
    torch.compiler.reset()
    flex_attention._kernel.cache_clear()
    monkeypatch.setattr(flex_attention, "COMPILED", {"cpu"})
    monkeypatch.setattr(
        torch, "compile", lambda function, **options: compile_really(function, backend=counter, **options)
    )
    # There is no backward kernel on a CPU; the graph has one, of plain operations.
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)
    yield counter
    torch.compiler.reset()
    flex_attention._kernel.cache_clear()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES.keys())
@torch.no_grad()
def test_flex_attention_gives_what_a_dense_mask_gives(rule: Rule) -> None:
    pack = forest()
    leaves = [leaf.detach() for leaf in states(len(pack.parents))]
    seen = pack.ancestors() & within_window(pack, rule.window, CPU)
    found = FlexLayout(pack, CPU).attend(0, *leaves, rule)
    torch.testing.assert_close(found, dense_attention(*leaves, seen, rule), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("window", [None, 7, 200])
@pytest.mark.parametrize("make_pack", [check_pack, forest, lambda: pack_of(530)], ids=["check", "forest", "small"])
def test_a_block_is_computed_where_somebody_sees_somebody(make_pack: Any, window: int | None) -> None:
    """By torch's own, which looks at all pairs of nodes; a node after the last sees itself alone."""
    pack = make_pack()
    num_nodes = len(pack.parents)
    size = -(-num_nodes // STEP) * STEP
    seen = torch.eye(size, dtype=torch.bool)
    seen[:num_nodes, :num_nodes] = pack.ancestors() & within_window(pack, window, CPU)
    expected = create_block_mask(
        lambda _batch, _head, query, key: seen[query, key], None, None, size, size, device="cpu"
    )
    found = flex_attention._PaddedTree.from_pack(pack).block_mask(window, CPU)
    places = torch.arange(size)
    assert torch.equal(found.mask_mod(0, 0, places[:, None], places[None]), seen)
    computed, wanted = found.to_dense()[0, 0].bool(), expected.to_dense()[0, 0].bool()
    assert not (wanted & ~computed).any()
    if window is None:
        assert torch.equal(computed, wanted)
    for row, (number, order) in enumerate(
        zip(found.full_kv_num_blocks[0, 0], found.full_kv_indices[0, 0], strict=True)
    ):
        for column in order[:number]:  # these are computed without the mask
            block = seen[row * BLOCK : (row + 1) * BLOCK, column * BLOCK : (column + 1) * BLOCK]
            assert block.all()


@pytest.mark.parametrize(
    "gradients", [pytest.param(False, marks=pytest.mark.slow, id="no gradients"), pytest.param(True, id="gradients")]
)
def test_a_kernel_is_compiled_twice_however_many_packs_and_windows(
    compiler: CompileCounterWithBackend, gradients: bool
) -> None:
    """Once for the first size, and once for all others; outputs and gradients are those of a dense mask."""
    draw = torch.Generator().manual_seed(0)
    for num_nodes in (100, 300, 530):
        pack = pack_of(num_nodes)
        layout = FlexLayout(pack, CPU)
        for window, again in ((None, False), (7, False), (None, gradients)):
            leaves = [
                torch.randn(1, len(pack.parents), heads, 16, generator=draw).transpose(1, 2).requires_grad_(gradients)
                for heads in (4, 2, 2)
            ]
            rule = Rule(None, 20.0, window)
            seen = pack.ancestors() & within_window(pack, window, CPU)

            def attend(*leaves: torch.Tensor, layout: FlexLayout = layout, rule: Rule = rule) -> torch.Tensor:
                return layout.attend(0, *leaves, rule)

            with torch.set_grad_enabled(gradients):
                found = checkpoint(attend, *leaves, use_reentrant=False) if again else attend(*leaves)
                expected = dense_attention(*leaves, seen, rule)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6)
            if gradients:
                for one, other in zip(
                    torch.autograd.grad(found.square().sum(), leaves),
                    torch.autograd.grad(expected.square().sum(), leaves),
                    strict=True,
                ):
                    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert compiler.frame_count == 2


@pytest.mark.slow
def test_calls_that_differ_in_more_than_size_have_kernels_of_their_own(compiler: CompileCounterWithBackend) -> None:
    """Ten kinds of calls, more than what one function may be compiled for, in turn."""
    kinds = [
        (heads, cap, dtype) for heads in (2, 4) for cap in (None, 20.0) for dtype in (torch.float32, torch.bfloat16)
    ]
    kinds += [(6, None, torch.float32), (6, 20.0, torch.float32)]
    for num_nodes in (100, 300, 530):
        layout = FlexLayout(pack_of(num_nodes), CPU)
        for heads, cap, dtype in kinds:
            leaves = [
                torch.zeros(1, count, len(pack_of(num_nodes).parents), 16, dtype=dtype) for count in (heads, 2, 2)
            ]
            with torch.no_grad():
                layout.attend(0, *leaves, Rule(None, cap, None))
    assert compiler.frame_count == 2 * len(kinds)


@torch.no_grad()
def test_a_kernel_that_the_compiler_gives_up_is_an_error(compiler: CompileCounterWithBackend) -> None:
    with torch._dynamo.config.patch(recompile_limit=1):
        for num_nodes, raises in ((100, False), (300, True)):
            pack = pack_of(num_nodes)
            leaves = [torch.zeros(1, 2, len(pack.parents), 16)] * 3
            layout = FlexLayout(pack, CPU)
            if raises:
                with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
                    layout.attend(0, *leaves, RULES["plain"])
            else:
                layout.attend(0, *leaves, RULES["plain"])


@pytest.mark.usefixtures("compiler")
@torch.no_grad()
def test_a_switched_off_compiler_is_an_error() -> None:
    pack = pack_of(100)
    with torch.compiler.set_stance("force_eager"), pytest.raises(RuntimeError, match="switched off"):
        FlexLayout(pack, CPU).attend(0, *[torch.zeros(1, 2, len(pack.parents), 16)] * 3, RULES["plain"])


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=pytest.mark.slow), torch.bfloat16], ids=str)
def test_a_model_is_read_by_flex_attention_in_its_precision(dtype: torch.dtype) -> None:
    model = build("gemma2").to(dtype)
    pack = pack_of(300)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            assert isinstance(tree_layout(model, pack), FlexLayout)


@pytest.mark.usefixtures("compiler")
def test_logprobs_and_gradients_are_those_of_one_forward_a_sequence() -> None:
    """Of three packs two are computed again in the backward pass, so that the check runs within such a computation."""
    model = build("gemma2")
    draw = random.Random(0)
    context = [draw.randrange(90) for _ in range(140)]
    contexts, continuations = [context, context[::-1], context[:20]], [[1, 2, 3], [4, 5], [6, 7, 8, 9]]
    weight = model.base_model.layers[0].self_attn.q_proj.weight
    found = torch.cat(
        sequence_logprobs(model, contexts, continuations, token_budget=150, activation_checkpointing=True)
    )
    expected = torch.cat(plain_logprobs(model, contexts, continuations))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    (one,), (other,) = (torch.autograd.grad(values.sum(), weight) for values in (found, expected))
    assert relative_norm(one, other) < 1e-4
    with torch.enable_grad():
        assert isinstance(tree_layout(model, check_pack()), FlexLayout)


@pytest.mark.usefixtures("compiler")
def test_under_autocast_it_attends_in_16_bits() -> None:
    """Rotary positions leave queries and keys in float32, and values are in bfloat16."""
    pack = check_pack()
    query, key, value = (leaf.detach() for leaf in states(len(pack.parents)))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output = FlexLayout(pack, CPU).attend(0, query, key, value.bfloat16(), RULES["plain"])
    assert output.dtype == torch.bfloat16
    expected = dense_attention(query, key, value, pack.ancestors(), RULES["plain"])
    assert relative_norm(output, expected) < 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", [Rule(None, None, None), Rule(0.3, 30.0, 8)], ids=["plain", "all"])
@torch.no_grad()
def test_the_compiled_kernel_of_cpus_gives_the_same(
    monkeypatch: pytest.MonkeyPatch, rule: Rule, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(flex_attention, "COMPILED", {"cpu"})
    flex_attention._kernel.cache_clear()
    call = AttentionCall((4, 2, 2), (32, 32, 32), rule)
    try:
        (error,) = layout_errors(FlexLayout, call, CPU, dtype, gradients=False).values()
    finally:
        flex_attention._kernel.cache_clear()
    assert error < (5e-3 if dtype == torch.bfloat16 else 1e-6)
