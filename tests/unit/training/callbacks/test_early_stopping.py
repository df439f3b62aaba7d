"""``EarlyStopping`` (``training/callbacks/early_stopping.py``)."""

import math

import pytest

from astra_accel import EarlyStopping
from astra_accel.training.callbacks.early_stopping import is_better
from tests.helpers.plain import ListedEvaluator
from tests.helpers.runs import metrics


@pytest.fixture
def train(make):
    """Trains with evaluations of these values, one a training step; the training steps that were made."""

    def train(values, stopping, resume=None, **settings):
        trainer = make(
            extras={"evaluator": ListedEvaluator(values), "callbacks": [stopping]},
            **{"training_steps": 9, "eval_steps": 1, "best_metric": "score"} | settings,
        )
        trainer.train(resume)
        return trainer.state.step

    return train


class TestEarlyStopping:
    @pytest.mark.parametrize(
        ("patience", "threshold", "values", "last"),
        [
            (1, 0.0, [0.1, 0.2, 0.2], 3),
            (2, 0.0, [0.1, 0.2, 0.2, 0.3, 0.1, 0.3], 6),
            (2, 0.5, [0.0, 1.0, 1.4, 1.5], 4),
            (2, 0.5, [0.0, 0.25, 0.75, 1.0, 1.0], 5),
            (1, 0.0, [math.nan], 1),
            (1, 0.0, [-3.0, math.nan], 2),
            (3, 0.0, [float(step) for step in range(9)], 9),
        ],
    )
    def test_it_ends_a_run_when_its_patience_does(self, train, patience, threshold, values, last):
        assert train(values, EarlyStopping("score", patience, threshold)) == last

    def test_the_metric_is_by_default_the_best_one(self, train):
        assert train([1.0, 2.0, 1.0], EarlyStopping()) == 3

    def test_another_metric_than_the_best_one(self, train):
        assert train([1.0, 2.0, 3.0], EarlyStopping("other", patience=2)) == 3

    def test_the_result_has_the_best_weights(self, train, run, capsys):
        train([0.5, 0.1, 0.2], EarlyStopping(patience=2))

        assert f"took the weights of {run / 'checkpoints' / 'step-000001'}" in capsys.readouterr().out

    def test_a_resumed_run_goes_on_counting(self, train, run):
        train([0.5, 0.4], EarlyStopping(patience=3), training_steps=2)

        assert train([0.3, 0.2], EarlyStopping(patience=3), resume="auto") == 4

    def test_a_run_that_ended_ends_again_unless_it_gets_more_patience(self, train, run):
        train([0.5, 0.4], EarlyStopping(patience=1))
        assert train([], EarlyStopping(patience=1), resume="auto") == 2

        assert train([0.3], EarlyStopping(patience=2), resume="auto") == 3
        assert {line["step"] for line in metrics(run)} == {1, 2, 3}

    def test_without_evaluations_it_is_an_error(self, train):
        with pytest.raises(ValueError, match=r"EarlyStopping needs evaluations, but training\.eval_steps is null"):
            train([], EarlyStopping(), eval_steps=None)

    def test_a_metric_that_there_is_not_is_named(self, train):
        with pytest.raises(ValueError, match="EarlyStopping's metric is 'scor'; the evaluator gives score, other"):
            train([0.5], EarlyStopping("scor"))

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            ({"patience": 0}, "patience is 0; expected at least 1"),
            ({"threshold": -0.1}, "threshold is -0.1; expected a finite number, at least 0"),
            ({"threshold": math.nan}, "threshold is nan"),
            ({"threshold": math.inf}, "threshold is inf"),
        ],
    )
    def test_bad_settings_are_named(self, settings, named):
        with pytest.raises(ValueError, match=named):
            EarlyStopping(**settings)


def test_nan_is_never_better():
    assert not is_better(math.nan, None)
    assert not is_better(math.nan, 1.0)
    assert is_better(-math.inf, None)
