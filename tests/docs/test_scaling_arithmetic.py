"""The figures of docs/scaling.md follow from the sizes of Llama 3.1 8B and the examples' settings."""

from __future__ import annotations

import pytest

from astra_accel.config import RunConfiguration
from astra_accel.yaml_files import read_yaml
from tests.helpers.documents import ROOT

P, GPUS = 8e9, 4
LAYERS, HIDDEN, INTERMEDIATE, KEY_HEADS, HEAD = 32, 4096, 14336, 8, 128
CACHE = 2 * LAYERS * KEY_HEADS * HEAD * 2
SAVED = 218e3 * LAYERS
"""Bytes a token: what autograd keeps in an update of a LoRA tester."""
# A matrix of a x b has r (a + b) weights in its adapter: q and o, k and v, gate and up, down.
ADAPTED = 2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + KEY_HEADS * HEAD) + 3 * (HIDDEN + INTERMEDIATE)
GUIDE = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
TEXT = " ".join(GUIDE.split())  # a phrase may be broken into lines


def stands(figure: float, unit: str, digits: int, *, after: str) -> bool:
    """Whether a figure stands in the line that begins so."""
    (line,) = (line for line in GUIDE.splitlines() if line.startswith(after))
    return f"{figure:.{digits}f} {unit}" in line


@pytest.mark.parametrize(
    ("begin", "gigabytes"),
    [
        ("| a model that is not trained", 2 * P / 1e9),
        ("| full tester in float32", 16 * P / 1e9),
        ("| autocast's copies", 2 * P / 1e9),
        ("| the same under `fsdp2`", 16 * P / GPUS / 1e9),
        ("| in a rollout: gathered weights", (2 * P + 12 * P / GPUS) / 1e9),
        ("| in a rollout without mixed precision", (4 * P + 12 * P / GPUS) / 1e9),
        ("| the same under `zero3`", 18 * P / GPUS / 1e9),
        ("| in a rollout |", (2 * P + 14 * P / GPUS) / 1e9),
        ("| 30B", 2 * 30),
    ],
)
def test_weights(begin: str, gigabytes: float) -> None:
    assert stands(gigabytes, "GB", 0, after=begin)


def test_tokens() -> None:
    assert stands(CACHE / 1e3, "kB", 0, after="| the cache of a rollout")
    assert stands(SAVED / 1e6, "MB", 1, after="| what an update keeps")
    assert stands(2 * HIDDEN * LAYERS / 1e6, "+ 0.22 MB", 2, after="| with `compute.activation_checkpointing`")
    assert stands(16 * 32 * ADAPTED * LAYERS / 1e9, "GB", 1, after="| its adapter")
    for budget, keeps in ((8192, 57), (4096, 29)):
        assert round(budget * SAVED / 1e9) == keeps
        assert str(budget) in GUIDE
        assert f"{keeps} GB" in TEXT
    assert "75 MB a row of 576 tokens" in TEXT
    assert round(576 * CACHE / 1e6) == 75


@pytest.mark.parametrize(
    ("name", "base", "gpu"), [("llama3_8b_lora_dpo", 2 * P, 80e9), ("llama3_8b_qlora_grpo", 6e9, 48e9)]
)
def test_the_examples_fit_the_gpus_that_they_name(name: str, base: float, gpu: float) -> None:
    """One base for all roles, Llama Guard and the adapter; then the cache of a rollout, or an update, on one GPU."""
    path = ROOT / "examples" / "configs" / f"{name}.yaml"
    config = RunConfiguration(**read_yaml(path))
    assert config.lora is not None
    held = base + 2 * P + 16 * config.lora.r * ADAPTED * LAYERS
    turn = config.rollout.tester.max_new_tokens + config.rollout.target.max_new_tokens
    width, depth = config.rollout.tree_width, config.rollout.tree_depth
    kept = config.training.num_episodes_per_experience * width ** (depth - 1) * (depth - 1) * turn
    rollout = (2 * kept + config.rollout.rows_on("cuda") * depth * turn) * CACHE
    update = config.compute.token_budget * SAVED
    figures = [f"{figure / 1e9:.0f} GB" for figure in (held, rollout, update, gpu)]
    (line,) = (line for line in GUIDE.splitlines() if line.startswith(f"| [{name}]"))
    assert [cell.strip() for cell in line.split("|")[2:6]] == figures
    assert held + max(rollout, update) < 0.9 * gpu
    head = path.read_text(encoding="utf-8").partition("\ntraining:")[0]
    assert f"{figures[1]} more" in head
    assert figures[2] in head
