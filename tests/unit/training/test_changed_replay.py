"""A replay is continued by what made it alone, and whoever resumes is told so before weights load."""

import pytest

from astra_accel.training.checkpoint.layout import REPLAY, CheckpointError
from astra_accel.training.resume import changes_since
from tests.helpers.runs import train_tiny

CONFIG = """
training: {lr: 0.1, replay: {size: 64}}
algorithm: {name: dpo, options: {beta: 0.1}}
baseline: null
"""


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / REPLAY).write_text("")
    return tmp_path


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        ("beta: 0.1", "loss: ipo", "algorithm.options.loss: None, now 'ipo'"),
        ("baseline: null", "baseline: {path: tiny}", "baseline.path: None, now 'tiny'"),
    ],
)
def test_what_made_it_can_not_change(checkpoint, before, now, named):
    changed = CONFIG.replace(before, now)
    with pytest.raises(CheckpointError) as raised:
        changes_since(checkpoint, changed, {}, False)
    assert "has the replay of another algorithm or baseline" in str(raised.value)
    assert named in str(raised.value)

    # Nothing is refused without a replay, here or there.
    assert changes_since(checkpoint, changed.replace("{size: 64}", "null"), {}, False)
    (checkpoint / REPLAY).unlink()
    assert changes_since(checkpoint, changed, {}, False)


def test_its_own_fields_may_change_and_are_told(checkpoint):
    told = changes_since(checkpoint, CONFIG.replace("64", "32"), {}, False)
    assert told == ["training.replay.size: 64, now 32"]


def test_a_run_notices_before_weights_load(tmp_path, monkeypatch):
    settings = [
        *("--training.training_steps", "1", "--training.eval_steps", "null", "--training.save_steps", "1"),
        *("--training.replay.size", "8", "--prompts.test", "null"),
    ]
    train_tiny(tmp_path, *settings)
    step = tmp_path / "checkpoints" / "step-000001"
    with monkeypatch.context() as patch:
        patch.setattr("astra_accel.jobs.train.build_sampler", None)
        with pytest.raises(CheckpointError, match=r"algorithm\.options\.margin: None, now 0\.5"):
            train_tiny(tmp_path, *settings, "--algorithm.options", '{"margin": 0.5}', resume=step)
    trainer = train_tiny(tmp_path, *settings, "--training.training_steps", "2", resume=step)
    assert trainer.state.step == 2
