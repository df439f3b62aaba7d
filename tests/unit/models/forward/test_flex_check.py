"""The check that decides about FlexAttention lets rounding pass and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from astra_accel.models.forward.attention import Rule
from astra_accel.models.forward.capabilities import UnsupportedModelError
from astra_accel.models.forward.flex_attention import FlexLayout, tree_layout
from astra_accel.models.forward.flex_check import attention_calls, check_layout, check_pack
from astra_accel.models.forward.prefix_tree import Pack
from astra_accel.models.forward.tree_attention import TreeLayout
from tests.helpers.architectures import WINDOW, build

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


class Wrong:
    """Attends by another rule or another pack than asked for, in whatever precision it is given."""

    def __init__(self, pack: Pack, device: torch.device, **changed: Any) -> None:
        self._layout, self._changed = TreeLayout(pack, device), changed

    def attend(self, layer: int, query: Any, key: Any, value: Any, rule: Rule) -> torch.Tensor:
        return self._layout.attend(layer, query, key, value, rule._replace(**self._changed))


def brother_seen(pack: Pack) -> Pack:
    """A branch continues from its sibling in place of their parent."""
    starts = [node for node, parent in enumerate(pack.parents) if 0 <= parent != node - 1]
    parents = list(pack.parents)
    parents[starts[-1]] = starts[-1] - 1
    return replace(pack, parents=parents)


def test_its_pack_has_several_blocks_and_fills_none() -> None:
    pack = check_pack()
    assert 520 < len(pack.parents) < 640
    assert len(pack.parents) % 128 != 0
    assert len({parent for node, parent in enumerate(pack.parents) if parent not in (-1, node - 1)}) >= 2
    assert pack.parents.count(-1) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2", "mistral"])
def test_rounding_passes(name: str, dtype: torch.dtype) -> None:
    """Both layouts, each against float32: before, bfloat16 was compared element by element with another bfloat16."""
    model = build(name)
    with torch.no_grad():
        check_layout(FlexLayout, model, dtype, gradients=False)
    if name != "gemma2":  # its soft cap is large: the blocks' scores, in bfloat16 themselves, are 1 to 3% off
        check_layout(TreeLayout, model, dtype, gradients=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("mistral", {"window": WINDOW - 1}),
        ("mistral", {"window": WINDOW + 1}),
        ("mistral", {"window": None}),
        ("gemma2", {"softcap": None}),
        ("gemma2", {"softcap": 30.0}),
        ("gemma2", {"scale": 0.3}),
        ("llama", {"scale": 0.3}),
        ("llama", {"softcap": 2.0}),
        ("llama", {"window": 128}),
    ],
    ids=str,
)
def test_a_wrong_rule_is_refused(name: str, changed: dict[str, Any], dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedModelError, match=r"outputs off by \d+\.\d%"):
        check_layout(lambda pack, device: Wrong(pack, device, **changed), build(name), dtype, gradients=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_wrong_mask_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UnsupportedModelError, match="outputs off by"):
        check_layout(lambda pack, device: Wrong(brother_seen(pack), device), build("llama"), dtype, gradients=False)


def test_the_calls_are_those_of_the_layers() -> None:
    """Gemma 2 has layers with and without a window, of 16 to a head and one key head for three."""
    model = build("gemma2")
    config = model.config
    scale = config.query_pre_attn_scalar**-0.5
    assert {(call.heads, call.dims, call.rule) for call in attention_calls(model)} == {
        ((3, 1, 1), (16, 16, 16), Rule(scale, config.attn_logit_softcapping, window)) for window in (None, WINDOW)
    }
    assert [call.heads for call in attention_calls(build("gpt2"))] == [(3, 3, 3)]


def test_on_a_cpu_attention_goes_block_by_block() -> None:
    assert isinstance(tree_layout(build("llama"), check_pack()), TreeLayout)
