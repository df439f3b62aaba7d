"""What the tests of training share."""

import pytest

from astra_accel import AccelTrainer, TrainingConfiguration
from tests.helpers.checkpoints import build, save_checkpoint, update
from tests.helpers.plain import PlainSampler, build_plain, reset_accelerate


@pytest.fixture
def make(tmp_path):
    """Makes trainers that write to ``tmp_path / "run"``: of the plain system, or of what is given."""

    def make(algorithm=None, sampler=None, extras=None, **settings):
        reset_accelerate()
        plain_sampler, plain_algorithm = build_plain()
        if algorithm is not None:
            plain_sampler = PlainSampler(algorithm.system)
        config = TrainingConfiguration(
            **{"output_dir": tmp_path / "run", "lr": 0.05, "batch_size": 4, "training_steps": 3, "sample_steps": None}
            | settings
        )
        return AccelTrainer(config, sampler or plain_sampler, algorithm or plain_algorithm, **(extras or {}))

    return make


@pytest.fixture
def run(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def saved(tmp_path):
    """The path of a whole checkpoint of step 3."""
    training = build()
    update(training, 3)
    return save_checkpoint(training, tmp_path / "checkpoints")
