"""``training.stop_at`` (``training/callbacks/stop_at.py``)."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from astra_accel import RunConfiguration
from astra_accel.core.sampler import walk
from astra_accel.errors import ConfigurationError
from astra_accel.jobs.train import build_trainer
from tests.helpers.plain import PlainSampler, build_plain
from tests.helpers.runs import metrics

EPISODES = 2


class Listed(PlainSampler):
    """All turns of a training step earn the same, which is listed; None is missing."""

    def __init__(self, rewards):
        super().__init__(build_plain()[0].system)
        self.rewards, self.num_rollouts = rewards, 0

    def rollout(self, seed):
        graph = super().rollout(seed)
        for _, node in walk(graph):
            node.reward = self.rewards[self.num_rollouts // EPISODES]
        self.num_rollouts += 1
        return graph


@pytest.fixture
def train(make):
    """Trains on experiences of these rewards; the training steps that were made."""

    def train(rewards, stop_at, resume=None, few_shot_steps=None, **settings):
        settings = {"training_steps": len(rewards), "stop_at": stop_at, "max_empty_experiences": 99, **settings}
        sampler = Listed(rewards)
        trainer = make(None, sampler, num_episodes_per_experience=EPISODES, save_steps=1, **settings)
        if few_shot_steps is not None:
            sampler.few_shot = SimpleNamespace(steps=few_shot_steps)
        trainer.train(resume)
        return trainer.state.step

    return train


@pytest.mark.parametrize(
    ("rewards", "limit", "last"),
    [
        ([0.1, 0.5, 0.3], 0.5, 2),
        ([0.1, 0.4, 0.3], 0.5, 3),
        ([0.6, 0.1, 0.1], 0.5, 1),
        ([None, None, 0.6, 0.1], 0.5, 3),
        ([-3.0, -2.0, -1.0, 0.0], -2.0, 2),
    ],
)
def test_a_run_ends_after_the_step_that_reaches_it(train, rewards, limit, last):
    assert train(rewards, {"reward/mean": limit}) == last


def test_one_of_several_is_enough(train):
    assert train([0.1, 0.2, 0.3], {"reward/mean": 9.0, "reward/max": 0.2}) == 2


def test_steps_with_few_shot_examples_do_not_count(train):
    assert train([0.9, 0.9, 0.1, 0.9, 0.1], {"reward/mean": 0.5}, few_shot_steps=2) == 4


def test_it_says_why_and_leaves_a_tester(train, run, capsys):
    train([0.1, 0.5, 0.3], {"reward/mean": 0.5})

    assert "reward/mean is 0.5, at least 0.5 (training.stop_at): the run ends" in capsys.readouterr().out
    assert (run / "tester").is_dir()
    assert (run / "checkpoints" / "step-000002").is_dir()


def test_a_resumed_run_ends_again_unless_the_limit_was_raised(train, run):
    train([0.1, 0.5], {"reward/mean": 0.5}, training_steps=9)

    assert train([0.1], {"reward/mean": 0.5}, resume="auto", training_steps=9) == 2
    assert train([0.1, 0.6], {"reward/mean": 0.6}, resume="auto", training_steps=9) == 4
    assert [record["step"] for record in metrics(run)] == sorted({record["step"] for record in metrics(run)})


def test_a_figure_that_no_experience_has_is_an_error(train):
    with pytest.raises(
        ValueError, match=r"training\.stop_at has 'reward/men', which no experience has; expected some of"
    ):
        train([0.1], {"reward/men": 0.5})


def test_it_is_found_before_models_load():
    config = RunConfiguration.model_validate({"training": {"stop_at": {"reward/self_bleu_novelty": 0.5}}})
    with pytest.raises(ValueError, match=r"stop_at has 'reward/self_bleu_novelty'.* reward/combined_score"):
        build_trainer(config)


@pytest.mark.parametrize("limit", [math.nan, math.inf, "much"])
def test_a_limit_is_a_finite_number(limit, tmp_path):
    with pytest.raises((ConfigurationError, ValueError), match=r"stop_at"):
        RunConfiguration.model_validate({"training": {"stop_at": {"reward/mean": limit}}})
