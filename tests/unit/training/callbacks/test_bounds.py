"""Bounds on the best checkpoint, relative to the untrained tester (``training/callbacks/bounds.py``, ``best.py``)."""

import json
import math

import pytest
import torch

from astra_accel import EarlyStopping
from astra_accel.config import Bound
from astra_accel.core.sampler import walk
from astra_accel.files.run_folder import METRICS
from astra_accel.training.callbacks.bounds import broken_bounds, check_untrained
from astra_accel.training.callbacks.run_files import RunFolder
from astra_accel.training.checkpoint.layout import CheckpointError, list_checkpoints
from tests.helpers.plain import PlainSampler, PlainSystem
from tests.helpers.runs import checkpoint_weights, metrics, timeless, train_plain

UNTRAINED = {"score": 5.0, "perplexity": 50.0}


class Listed:
    """Finds a score and a perplexity after the other, whatever the rollouts were."""

    seeds = None

    def __init__(self, *values):
        self.values = iter(values)

    def compute_metrics(self, graph):
        return {}

    def aggregate_metrics(self, metrics):
        score, perplexity = next(self.values)
        return {"score": score, "perplexity": perplexity}


class OutInEvaluation(PlainSampler):
    """Whose scorer can't be reached while the tester is evaluated."""

    def eval_rollout(self, seed):
        graph = super().eval_rollout(seed)
        for _, node in walk(graph):
            node.reward = None
        return graph


@pytest.fixture
def bounded(make):
    """A trainer that is bounded to 1.3 times the first perplexity, and evaluates after each step."""

    def bounded(*values, callbacks=(), **settings):
        return make(
            extras={"evaluator": Listed(*values), "callbacks": callbacks},
            **{
                "training_steps": 3,
                "eval_steps": 1,
                "save_steps": 1,
                "save_total_limit": None,
                "best_metric": "score",
                "best_bounds": {"perplexity": 1.3},
            }
            | settings,
        )

    return bounded


class TestBrokenBounds:
    @pytest.mark.parametrize(
        ("bound", "value", "told"),
        [
            (Bound(max=1.5), 75.0, None),
            (Bound(max=1.5), 75.5, "perplexity is 75.5, above 1.5 times the untrained tester's 50"),
            (Bound(min=0.5), 25.0, None),
            (Bound(min=0.5), 24.5, "perplexity is 24.5, below 0.5 times the untrained tester's 50"),
            (Bound(min=0.5, max=1.5), 50.0, None),
            (Bound(min=0.5, max=1.5), 76.0, "perplexity is 76, above 1.5 times the untrained tester's 50"),
            (Bound(min=0.5, max=1.5), 20.0, "perplexity is 20, below 0.5 times the untrained tester's 50"),
            (Bound(max=1.5), math.nan, "perplexity has no value"),
        ],
    )
    def test_a_value_is_held_to_multiples_of_the_untrained_one(self, bound, value, told):
        assert broken_bounds({"perplexity": bound}, {"perplexity": value}, UNTRAINED) == ([told] if told else [])

    def test_each_that_is_broken_is_told(self):
        bounds = {"score": Bound(max=1.0), "perplexity": Bound(max=1.0), "other": Bound(max=1.0)}
        found = broken_bounds(bounds, {"score": 6.0, "perplexity": 50.0}, {**UNTRAINED, "other": 1.0})

        assert found == ["score is 6, above 1 times the untrained tester's 5", "other has no value"]


class TestCheckUntrained:
    @pytest.mark.parametrize("value", [0.0, -4.2, math.nan, math.inf])
    def test_a_value_that_has_no_multiples_is_named(self, value):
        with pytest.raises(
            ValueError, match=rf"training\.best_bounds has 'score', of which .* has {value:g}; .* above 0"
        ):
            check_untrained({"score": Bound(max=1.3)}, {"score": value})

    def test_a_figure_that_there_is_not_is_named_with_those_that_there_are(self):
        with pytest.raises(ValueError, match="'perplex'; the evaluator gives score, perplexity"):
            check_untrained({"perplex": Bound(max=1.3)}, UNTRAINED)


class TestTheBest:
    def test_it_is_the_best_of_those_within_bounds(self, bounded, run, capsys):
        trainer = bounded((5.0, 50.0), (0.1, 60.0), (0.9, 70.0), (0.5, 65.0))

        trainer.train()

        assert (trainer.state.best_step, trainer.state.best_value) == (3, 0.5)
        assert torch.equal(trainer.engine.module.policy.weight, checkpoint_weights(run, 3)["policy.weight"])
        told = (
            "the evaluation of step 2 is not the best: out of training.best_bounds (perplexity is 70, above 1.3 times"
        )
        assert told in capsys.readouterr().out

    def test_its_weights_are_the_result_though_later_ones_score_more(self, bounded, run):
        trainer = bounded((5.0, 50.0), (0.1, 60.0), (0.2, 65.0), (0.9, 65.5), save_total_limit=1)

        trainer.train()

        assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-000002", "step-000003"]
        best, last = checkpoint_weights(run, 2), checkpoint_weights(run, 3)
        assert not torch.equal(best["policy.weight"], last["policy.weight"])
        assert torch.equal(trainer.engine.module.policy.weight, best["policy.weight"])

    def test_where_none_is_within_bounds_the_last_weights_are_the_result_and_it_is_said(self, bounded, run, capsys):
        trainer = bounded((5.0, 50.0), (0.9, 66.0), (0.8, 67.0), (0.7, 68.0))

        trainer.train()

        assert trainer.state.best_step is None
        assert torch.equal(trainer.engine.module.policy.weight, checkpoint_weights(run, 3)["policy.weight"])
        assert (
            "no evaluation was within training.best_bounds, so none is the best and the tester has the last weights; "
            "of the last: out of training.best_bounds (perplexity is 68, above 1.3 times the untrained tester's 50)"
        ) in capsys.readouterr().out

    def test_the_untrained_tester_is_evaluated_first_and_is_never_the_best(self, bounded, run):
        trainer = bounded((5.0, 50.0), (0.1, 60.0), (0.2, 60.0), (0.3, 60.0))

        trainer.train()

        assert trainer.state.best_step == 3
        first, *others = metrics(run)
        assert {name: first[name] for name in ("step", "update", "eval/score", "eval/perplexity")} == {
            "step": 0,
            "update": 0,
            "eval/score": 5.0,
            "eval/perplexity": 50.0,
        }
        assert {line["step"] for line in others} == {1, 2, 3}

    @pytest.mark.parametrize(
        ("settings", "named"),
        [
            (
                {"best_bounds": {"perplex": 1.3}},
                r"training\.best_bounds has 'perplex'; the evaluator gives score, perp",
            ),
            ({"best_metric": "scor"}, r"training\.best_metric is 'scor'; the evaluator gives score, perplexity"),
        ],
    )
    def test_a_name_that_there_is_not_is_found_before_the_first_training_step(self, bounded, run, settings, named):
        with pytest.raises(ValueError, match=named):
            bounded((5.0, 50.0), **settings).train()

        assert not (run / "rollouts").exists()

    def test_bounds_do_not_change_what_is_trained(self, tmp_path):
        without = train_plain(tmp_path / "without", eval_steps=3)
        bounds = {"best_bounds": {"reward/mean": 1e-6}, "eval_steps": 3}
        within = train_plain(tmp_path / "within", **bounds)

        assert all(torch.equal(within[name], without[name]) for name in without)
        assert timeless(tmp_path / "within")[1:] == timeless(tmp_path / "without")
        saved = [
            json.loads((tmp_path / name / "checkpoints/step-000006/trainer_state.json").read_text())
            for name in ("without", "within")
        ]
        assert list(saved[0]) == ["step", "update", "batch", "empty_in_row", "best_value", "best_step", "callbacks"]
        assert set(saved[1]) - set(saved[0]) == {"untrained", "not_best"}


class TestResume:
    def test_the_untrained_testers_figures_come_along(self, bounded, run):
        bounded((5.0, 50.0), (0.1, 60.0), training_steps=1).train()
        resumed = bounded((0.9, 66.0), (0.5, 64.0))

        resumed.train("auto")

        assert resumed.state.untrained == UNTRAINED
        assert (resumed.state.best_step, resumed.state.best_value) == (3, 0.5)
        assert [line["step"] for line in metrics(run) if "eval/score" in line and line["update"] == 0] == [0]

    def test_a_run_that_began_without_bounds_does_not_get_any(self, bounded, run):
        bounded((0.1, 60.0), training_steps=1, best_bounds=None).train()

        with pytest.raises(CheckpointError, match=r"best_bounds has perplexity, but .*step-000001 does not know"):
            bounded((0.9, 66.0)).train(run / "checkpoints" / "step-000001")

    def test_a_factor_may_change(self, bounded):
        bounded((5.0, 50.0), (0.1, 60.0), training_steps=1).train()
        resumed = bounded((0.9, 66.0), (0.5, 64.0), best_bounds={"perplexity": 1.4, "score": {"max": 9.0}})

        resumed.train("auto")

        assert resumed.state.best_step == 2

    @pytest.mark.parametrize(("settings", "told"), [({"num_eval_episodes": 9}, True), ({"save_steps": 2}, False)])
    def test_it_is_said_where_evaluations_are_others_now(self, bounded, capsys, settings, told):
        bounded((5.0, 50.0), (0.1, 60.0), training_steps=1).train()
        bounded((0.9, 66.0), (0.5, 64.0), **settings).train("auto")

        assert ("best_bounds stay relative to the untrained tester's figures" in capsys.readouterr().out) is told

    def test_a_run_that_begins_anew_tells_of_the_untrained_tester_once(self, tmp_path):
        folder = RunFolder(tmp_path)
        folder.write_metrics({"step": 0, "update": 0, "eval/score": 5.0})
        folder.rewind(0)

        assert (tmp_path / METRICS).read_text() == ""


class TestEarlyStopping:
    def test_an_evaluation_out_of_bounds_is_no_better(self, bounded):
        values = [(5.0, 50.0), (0.1, 60.0), (0.2, 66.0), (0.3, 66.0), (0.4, 60.0)]
        trainer = bounded(*values, callbacks=[EarlyStopping(patience=2)], training_steps=9)

        trainer.train()

        assert trainer.state.step == 3
        assert trainer.state.best_step == 1

    def test_it_goes_on_by_the_best_within_bounds(self, bounded):
        values = [(5.0, 50.0), (0.1, 60.0), (0.9, 66.0), (0.3, 60.0), (0.2, 60.0), (0.2, 60.0)]
        trainer = bounded(*values, callbacks=[EarlyStopping(patience=2)], training_steps=9)

        trainer.train()

        assert trainer.state.step == 5
        assert trainer.state.best_step == 3


class TestAMetricWithoutAValue:
    def test_the_run_goes_on_and_says_it_in_a_line(self, bounded, capsys):
        trainer = bounded((0.5, 60.0), (math.nan, 60.0), (0.4, 60.0), best_bounds=None)

        trainer.train()

        assert (trainer.state.step, trainer.state.best_step) == (3, 1)
        told = [line for line in capsys.readouterr().out.splitlines() if "has no value" in line]
        assert told == ["the evaluation of step 2 is not the best: training.best_metric score has no value"]

    def test_where_none_has_one_the_last_weights_are_the_result(self, bounded, capsys):
        bounded(*[(math.nan, 60.0)] * 3, best_bounds=None).train()

        assert "no evaluation had a value of training.best_metric, so none is the best" in capsys.readouterr().out

    def test_an_evaluation_without_any_reward_has_none(self, make, run, capsys):
        trainer = make(sampler=OutInEvaluation(PlainSystem()), eval_steps=1)

        trainer.train()

        assert trainer.state.step == 3
        assert {line["eval/reward/mean"] for line in metrics(run)} == {None}
        assert capsys.readouterr().out.count("training.best_metric reward/mean has no value") == 4
