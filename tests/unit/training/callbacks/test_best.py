"""The best checkpoint is read once by all processes together when its weights become the result."""

from pathlib import Path

import pytest

from astra_accel import AccelTrainer, TrainingConfiguration
from astra_accel.files.atomic import sha256
from astra_accel.training.checkpoint import verify
from astra_accel.training.checkpoint.layout import CheckpointError
from tests.helpers.checkpoints import FILES
from tests.helpers.launches import make_launch
from tests.helpers.plain import ListedEvaluator, build_plain, reset_accelerate
from tests.helpers.processes import run_processes
from tests.helpers.runs import checkpoint_weights


def test_each_file_of_the_best_checkpoint_is_hashed_by_one_process(tmp_path):
    (mine, weights), (theirs, same) = run_processes(2, _train, tmp_path)

    # The second process has a file of its random state too.
    assert set(FILES) - {"manifest.json"} < {*mine, *theirs}
    assert mine
    assert theirs
    assert len({*mine, *theirs}) == len(mine) + len(theirs)
    assert weights == same == checkpoint_weights(tmp_path, 1)["policy.weight"].tolist()


def test_a_damaged_best_checkpoint_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(verify, "sha256", lambda file: "other" if file.name == "trained.safetensors" else sha256(file))
    reset_accelerate()

    with pytest.raises(CheckpointError, match=r"step-000001/trained\.safetensors .* it is damaged"):
        _trainer(tmp_path).train()


def _train(folder: Path):
    """The files that this process hashed at the end of a run whose first step was the best, and its weights."""
    hashed = []
    verify.sha256 = lambda file: hashed.append(file.name) or sha256(file)
    trainer = _trainer(folder)
    trainer.train()
    return hashed, trainer.engine.module.policy.weight.tolist()


def _trainer(folder: Path) -> AccelTrainer:
    config = TrainingConfiguration(
        output_dir=folder,
        lr=0.05,
        batch_size=4,
        training_steps=2,
        sample_steps=None,
        eval_steps=1,
        best_metric="score",
        save_total_limit=1,
    )
    sampler, algorithm = build_plain()
    evaluator = ListedEvaluator([0.9, 0.1])
    return AccelTrainer(config, sampler, algorithm, accelerator=make_launch("ddp", config), evaluator=evaluator)
