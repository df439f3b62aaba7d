"""The same run whatever the launch: what spreads weights, gradients or optimizer state over processes changes none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from transformers import Phi3Config, Phi3ForCausalLM

from astra_accel.models.loading.tiny import build_tiny, save_tiny
from tests.helpers.launches import LAUNCHES, OFFLOADED, SHARDED
from tests.helpers.processes import run_processes
from tests.helpers.runs import (
    Weights,
    checkpoint_weights,
    largest_difference,
    rollouts,
    saved_tester,
    train_plain,
    train_tiny,
)
from tests.helpers.special_models import save_special

PLAIN = {"save_steps": 3, "max_grad_norm": 0.5}
"""A norm that most updates exceed."""
TINY = ["--training.training_steps", "2", "--training.save_steps", "2", "--training.eval_steps", "null"]
VARIANTS = {
    "lora": [],
    "full": ["--lora", "null"],
    # With a value head on the tester.
    "ppo": ["--algorithm.name", "ppo", "--algorithm.options", "{}"],
}
NAMED = {"named layers": ["--lora.target_modules", '["q_proj", "v_proj"]']}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    """A run of the plain system on one process: its folder, and its weights afterwards."""
    folder = tmp_path_factory.mktemp("one")
    return folder, run_processes(1, _train, folder, "ddp", PLAIN)[0]


@pytest.mark.parametrize(
    ("processes", "kind"),
    [
        (2, "fsdp2"),
        *(pytest.param(2, kind, marks=pytest.mark.slow) for kind in ("zero1", "zero2", "zero3", *OFFLOADED)),
        *(pytest.param(4, kind, marks=pytest.mark.slow) for kind in SHARDED),
    ],
)
def test_a_sharded_run_is_that_of_one_process_and_goes_on_from_any_other(
    processes: int, kind: str, one_process: tuple[Path, Weights], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Several processes, uneven examples, batches of which the last leaves a process without one, clipped gradients."""
    if kind in OFFLOADED:
        request.getfixturevalue("built_for_offload")
    folder, weights = one_process
    results = run_processes(processes, _train_and_resume, tmp_path, kind, folder / "checkpoints" / "step-000003")
    for whole, resumed, from_one_process in results:
        assert largest_difference(whole, weights) < 1e-5
        assert largest_difference(whole, resumed) == 0
        assert largest_difference(from_one_process, weights) < 1e-5
    assert largest_difference(load_file(tmp_path / "whole" / "tester" / "trained.safetensors"), results[0][0]) == 0
    # The other way: its checkpoint under a launch that spreads nothing.
    sharded = tmp_path / "whole" / "checkpoints" / "step-000003"
    others = {f"trained-{rank}.safetensors" for rank in range(1, processes)}
    assert {path.name for path in sharded.glob("trained*")} == {"trained.safetensors", *others}
    (alone,) = run_processes(1, _train, tmp_path / "alone", "ddp", PLAIN, sharded)
    assert largest_difference(alone, weights) < 1e-5
    assert largest_difference(checkpoint_weights(folder, 3), weights) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("kind", SHARDED)
def test_accumulation_is_a_larger_batch(kind: str, one_process: tuple[Path, Weights], tmp_path: Path) -> None:
    """Two batches of two examples make the update of one batch of four, also where the last has fewer."""
    settings = {**PLAIN, "batch_size": 2, "gradient_accumulation_steps": 2}
    for weights in run_processes(2, _train, tmp_path, kind, settings):
        assert largest_difference(weights, one_process[1]) < 1e-5


@pytest.mark.parametrize(
    ("kind", "variant"),
    [
        pytest.param(kind, variant, marks=[] if (kind, variant) == ("fsdp2", "lora") else pytest.mark.slow)
        for kind in SHARDED
        for variant in VARIANTS
    ],
)
def test_a_language_model_is_trained_and_saved_alike(kind: str, variant: str, tmp_path: Path) -> None:
    """Its rollouts to the letter, its weights within 1e-5, and a tester that is whole."""
    run_processes(1, _train_tiny, tmp_path / "one", "ddp", variant)
    for num_layers_apart in run_processes(2, _train_tiny, tmp_path / "two", kind, variant):
        # The model's two layers and the rest, each gathered by itself; or nothing at all.
        assert num_layers_apart == (3 if kind == "fsdp2" else 0)
    assert rollouts(tmp_path / "one") == rollouts(tmp_path / "two")
    one, two = (saved_tester(tmp_path / run) for run in ("one", "two"))
    assert largest_difference(one, two) < 1e-5
    assert max(float(tensor.abs().max()) for tensor in two.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("llama", "named layers"),
        *(("llama", variant) for variant in VARIANTS),
        *((name, variant) for name in ("phi3", "gemma3", "mixtral") for variant in ("lora", "full")),
    ],
)
def test_models_that_were_saved_are_trained_alike_where_weights_are_split(
    name: str, variant: str, tmp_path: Path
) -> None:
    """At DeepSpeed's stage 3 transformers would split what it loads, which a model built by hand doesn't show."""
    build_saved = _save_phi3 if name == "phi3" else save_tiny if name == "llama" else save_special
    folder = build_saved(tmp_path / "model", *([] if name in ("phi3", "llama") else [name]))
    settings = [*TINY, "--tester.path", str(folder), "--target.path", str(folder)]
    run_processes(1, _train_tiny, tmp_path / "one", "ddp", variant, settings)
    run_processes(2, _train_tiny, tmp_path / "two", "zero3", variant, settings)
    assert rollouts(tmp_path / "one") == rollouts(tmp_path / "two")
    one, two = (saved_tester(tmp_path / run) for run in ("one", "two"))
    assert set(one) == set(two)
    # Adam divides by the size of a gradient, which of an expert that few tokens reach is hardly more than rounding.
    assert largest_difference(one, two) < (1e-4 if (name, variant) == ("mixtral", "full") else 1e-5)
    assert max(float(tensor.abs().max()) for tensor in two.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_twenty_updates_under_every_launch(variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DPO on trees some of which have no pair; the table of differences is printed."""
    settings = ["--training.training_steps", "10", "--training.eval_steps", "null"]
    launches = [(2, kind) for kind in LAUNCHES] + [(4, "ddp"), (4, "fsdp2"), (4, "zero3")]
    run_processes(1, _train_tiny, tmp_path / "one", "ddp", variant, settings)
    quarter = [*settings, "--training.batch_size", "2", "--training.gradient_accumulation_steps", "4"]
    run_processes(1, _train_tiny, tmp_path / "accumulated", "ddp", variant, quarter)
    differences = {"1 process, a quarter of the batch accumulated 4 times": tmp_path / "accumulated"}
    for processes, kind in launches:
        folder = tmp_path / f"{kind}-{processes}"
        run_processes(processes, _train_tiny, folder, kind, variant, settings)
        differences[f"{processes} processes, {kind}"] = folder
    reference = saved_tester(tmp_path / "one")
    with capsys.disabled():
        for name, folder in differences.items():
            print(f"\n{variant}: {name:55} {largest_difference(reference, saved_tester(folder)):.1e}", end="")
    for folder in differences.values():
        assert rollouts(folder) == rollouts(tmp_path / "one")
        assert largest_difference(reference, saved_tester(folder)) < 1e-5


def _train(folder: Path, kind: str, settings: dict, resume: Path | None = None) -> Weights:
    return train_plain(folder, resume, launch_kind=kind, **settings)


def _train_and_resume(folder: Path, kind: str, other: Path) -> tuple[Weights, Weights, Weights]:
    whole = _train(folder / "whole", kind, PLAIN)
    resumed = _train(folder / "resumed", kind, PLAIN, folder / "whole" / "checkpoints" / "step-000003")
    return whole, resumed, _train(folder / "from one process", kind, PLAIN, other)


def _train_tiny(folder: Path, kind: str, variant: str, settings: list[str] = TINY) -> int:
    """Train, and count the modules whose weights are gathered apart from others'."""
    trainer = train_tiny(folder, *settings, *(VARIANTS | NAMED)[variant], launch_kind=kind)
    return sum(isinstance(module, FSDPModule) for module in trainer.engine.module.modules())


def _save_phi3(folder: Path) -> Path:
    """With a token for padding, which the embedding has to hold."""
    tokenizer = build_tiny("llama")[1]
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    Phi3ForCausalLM(Phi3Config(vocab_size=len(tokenizer), **sizes, **ids)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
