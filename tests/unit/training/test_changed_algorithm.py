"""A run is resumed with the algorithm of its checkpoint, and whoever names another is told so before weights load."""

import pytest

from astra_accel.training.checkpoint.layout import CheckpointError
from astra_accel.training.resume import changes_since
from tests.helpers.runs import train_tiny

CONFIG = "training: {lr: 0.1}\nalgorithm: {name: dpo, options: {beta: 0.1}}\n"


@pytest.fixture
def checkpoint(tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    return tmp_path


def test_the_error_says_what_was_found_and_expected_and_what_to_do(checkpoint):
    with pytest.raises(CheckpointError) as raised:
        changes_since(checkpoint, CONFIG.replace("dpo", "mle").replace("0.1}}", "0.2}}"), {}, False)

    assert str(raised.value) == (
        f"algorithm.name is 'mle', but {checkpoint} is of a run with 'dpo'; expected 'dpo' in a resumed run. "
        "For 'mle', start a new run from its tester (tester.adapter; or tester.path, if it was trained in full)"
    )


def test_its_options_may_change_and_are_told(checkpoint):
    told = changes_since(checkpoint, CONFIG.replace("beta: 0.1", "beta: 0.2"), {}, False)

    assert told == ["algorithm.options.beta: 0.1, now 0.2"]


@pytest.mark.parametrize(("before", "now"), [(CONFIG, "training: {lr: 0.1}\n"), ("training: {lr: 0.1}\n", CONFIG)])
def test_a_run_whose_algorithm_has_no_name_goes_on(tmp_path, before, now):
    """One of Python alone has a configuration of the training alone."""
    (tmp_path / "config.yaml").write_text(before)

    assert any(change.startswith("algorithm.name: ") for change in changes_since(tmp_path, now, {}, False))


def test_a_run_notices_before_weights_load_and_a_new_one_starts_from_its_tester(tmp_path, monkeypatch):
    settings = [
        *("--training.training_steps", "1", "--training.eval_steps", "null", "--training.save_steps", "1"),
        *("--prompts.test", "null"),
    ]
    run = tmp_path / "run"
    train_tiny(run, *settings)
    other = [*settings, "--algorithm.name", "ipo"]

    with monkeypatch.context() as patch:
        patch.setattr("astra_accel.jobs.train.build_sampler", None)
        with pytest.raises(
            CheckpointError, match=r"algorithm\.name is 'ipo', but .*step-000001 is of a run with 'dpo'"
        ):
            train_tiny(run, *other, resume=run / "checkpoints" / "step-000001")

    trainer = train_tiny(tmp_path / "new", *other, "--tester.adapter", str(run / "tester"))
    assert trainer.state.step == 1
