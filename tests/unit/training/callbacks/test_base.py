"""Callbacks of a trainer, on one process (``training/callbacks/base.py``)."""

import json

import pytest
import torch

from astra_accel import TrainerCallback, TrainerControl
from astra_accel.training.callbacks.best import KeepBest
from astra_accel.training.callbacks.console import Display
from astra_accel.training.callbacks.run_files import RunFolder
from astra_accel.training.callbacks.trackers import Trackers
from astra_accel.training.checkpoint.layout import list_checkpoints
from tests.helpers.plain import ListedEvaluator
from tests.helpers.runs import checkpoint_weights, metrics

EVENTS = [name for name in vars(TrainerCallback) if name.startswith("on_")]


class Recorder:
    """Inherits from nothing; remembers each event with its arguments and how far the run was."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        if name not in EVENTS:
            raise AttributeError(name)
        return lambda trainer, *arguments: self.told.append((name, trainer.state.step, *arguments))


class At:
    """Does something at an event, the first time or at a training step."""

    def __init__(self, event, do, step=None):
        def told(trainer, *_):
            if step in (None, trainer.state.step):
                do(trainer)

        setattr(self, event, told)


def asking(event, request, step=None):
    return At(event, lambda trainer: setattr(trainer.control, request, True), step)


def with_callbacks(*callbacks, **extras):
    return {"extras": {"callbacks": callbacks, **extras}}


def steps_saved(run):
    return [int(path.name[5:]) for path in list_checkpoints(run / "checkpoints")]


class TestEvents:
    def test_they_come_in_this_order_with_these_arguments(self, make, run):
        recorder = Recorder()
        evaluator = ListedEvaluator([0.5])
        make(
            training_steps=2,
            eval_steps=2,
            save_steps=2,
            best_metric="score",
            num_episodes_per_experience=2,
            **with_callbacks(recorder, evaluator=evaluator),
        ).train()

        lines = metrics(run)
        num_updates = [sum(line["step"] == step for line in lines) for step in (1, 2)]
        assert [(name, step) for name, step, *_ in recorder.told] == [
            ("on_train_begin", 0),
            ("on_step_begin", 0),
            ("on_experience", 0),
            *[("on_update", 0)] * num_updates[0],
            *[("on_log", 1)] * num_updates[0],
            ("on_step_end", 1),
            ("on_step_begin", 1),
            ("on_experience", 1),
            *[("on_update", 1)] * num_updates[1],
            ("on_evaluate", 2),
            *[("on_log", 2)] * num_updates[1],
            ("on_step_end", 2),
            ("on_save", 2),
            ("on_train_end", 2),
        ]
        arguments = {}
        for name, _, *rest in recorder.told:
            arguments.setdefault(name, []).append(rest)
        assert arguments["on_evaluate"] == [[{"score": 0.5, "other": 0.0}]]
        assert arguments["on_save"] == [[run / "checkpoints" / "step-000002"]]
        assert [record for (record,) in arguments["on_log"]] == lines
        assert [record["update"] for (record,) in arguments["on_update"]] == [line["update"] for line in lines]
        assert all(
            record.items() <= line.items() for (record,), line in zip(arguments["on_update"], lines, strict=True)
        )
        (experience,), (same, records) = arguments["on_experience"][0], arguments["on_step_end"][0]
        assert len(experience.graphs) == 2
        assert same is experience
        assert records == [line for line in lines if line["step"] == 1]

    def test_the_base_has_all_of_them_and_none_does_anything(self, make, run):
        class Quiet(TrainerCallback):
            pass

        trainer = make(**with_callbacks(Quiet))
        trainer.train()

        assert isinstance(trainer.callbacks.callbacks[-1], Quiet)
        assert "callbacks" in (state := json.loads((run / "checkpoints/step-000003/trainer_state.json").read_text()))
        assert state["callbacks"] is None

    def test_figures_that_are_added_to_a_record_are_written(self, make, run):
        class Twice:
            def on_log(self, trainer, record):
                record["twice"] = 2 * record["loss"]

        make(**with_callbacks(Twice())).train()

        assert all(line["twice"] == 2 * line["loss"] for line in metrics(run))

    def test_files_of_the_training_step_are_there_at_its_end(self, make, run):
        seen = []

        class Reader:
            def on_step_end(self, trainer, experience, records):
                rollouts = run / "rollouts" / f"step-{trainer.state.step:06d}.parquet"
                seen.append((metrics(run)[-1]["update"] == records[-1]["update"], rollouts.exists()))

        make(**with_callbacks(Reader())).train()

        assert seen == [(True, True)] * 3

    def test_an_evaluation_that_is_asked_for_by_hand_is_told_to_nobody(self, make):
        recorder = Recorder()
        make(**with_callbacks(recorder)).evaluate()

        assert recorder.told == []


class TestAddingAndRemoving:
    def test_the_trainers_own_come_first_and_added_ones_last(self, make):
        recorder = Recorder()
        trainer = make(**with_callbacks(recorder))
        trainer.add_callback(Quiet := type("Quiet", (TrainerCallback,), {}))

        kinds = [type(callback) for callback in trainer.callbacks.callbacks]
        assert kinds == [RunFolder, Trackers, Display, KeepBest, Recorder, Quiet]

    def test_one_that_is_removed_is_told_nothing(self, make):
        first, second = Recorder(), Recorder()
        trainer = make(training_steps=1, **with_callbacks(first, second))

        assert trainer.remove_callback(second) is second
        trainer.train()

        assert first.told
        assert second.told == []

    def test_the_screen_can_be_silenced_by_its_class(self, make, capsys, run):
        trainer = make()
        trainer.remove_callback(Display)
        trainer.train()

        assert "step 1/3" not in capsys.readouterr().out
        assert len(metrics(run)) >= 3

    def test_one_that_is_not_there_is_an_error(self, make):
        with pytest.raises(ValueError, match=r"Recorder.* is not a callback of this trainer; expected one of R"):
            make().remove_callback(Recorder)


class TestRequests:
    @pytest.mark.parametrize("event", ["on_step_begin", "on_experience", "on_update"])
    def test_to_evaluate_is_met_in_the_same_training_step_and_once(self, make, run, event):
        make(training_steps=4, **with_callbacks(asking(event, "should_evaluate", step=1))).train()

        assert {line["step"] for line in metrics(run) if "eval/reward/mean" in line} == {2}

    def test_to_evaluate_that_comes_later_is_met_in_the_next(self, make, run):
        make(training_steps=4, **with_callbacks(asking("on_step_end", "should_evaluate", step=2))).train()

        assert {line["step"] for line in metrics(run) if "eval/reward/mean" in line} == {3}

    @pytest.mark.parametrize("event", ["on_update", "on_log", "on_step_end"])
    def test_to_save_is_met_in_the_same_training_step_and_once(self, make, run, event):
        step = 1 if event == "on_update" else 2
        make(training_steps=4, save_steps=None, **with_callbacks(asking(event, "should_save", step))).train()

        assert steps_saved(run) == [2]

    @pytest.mark.parametrize(
        ("event", "step", "last"),
        [
            ("on_train_begin", 0, 0),
            ("on_update", 1, 2),
            ("on_evaluate", 2, 2),
            ("on_step_end", 2, 2),
            ("on_save", 2, 3),
        ],
    )
    def test_to_stop_ends_the_run_as_it_ends_by_itself(self, make, run, tmp_path, capsys, event, step, last):
        stopped = make(
            training_steps=5, eval_steps=2, save_steps=2, **with_callbacks(asking(event, "should_training_stop", step))
        )
        stopped.train()

        assert stopped.state.step == last
        assert f"a callback stopped the run after step {last}" in capsys.readouterr().out
        assert (run / "tester" / "trained.safetensors").exists()
        if last:
            assert last in steps_saved(run)
            assert {line["step"] for line in metrics(run)} == set(range(1, last + 1))
            make(training_steps=last, eval_steps=2, save_steps=2, output_dir=tmp_path / "short").train()
            own, short = checkpoint_weights(run, last), checkpoint_weights(tmp_path / "short", last)
            assert torch.equal(own["policy.weight"], short["policy.weight"])

    def test_a_run_that_was_stopped_can_be_gone_on_with(self, make, run, tmp_path):
        make(training_steps=4, output_dir=tmp_path / "whole").train()
        make(training_steps=4, **with_callbacks(asking("on_step_end", "should_training_stop", step=2))).train()

        make(training_steps=4).train("auto")

        resumed, whole = checkpoint_weights(run, 4), checkpoint_weights(tmp_path / "whole", 4)
        assert torch.equal(resumed["policy.weight"], whole["policy.weight"])

    def test_requests_of_several_processes_are_joined(self):
        control = TrainerControl(should_save=True)
        control.join([control, TrainerControl(should_evaluate=True), TrainerControl()])

        assert control == TrainerControl(should_evaluate=True, should_save=True)


class TestFailures:
    @pytest.mark.parametrize("event", EVENTS)
    def test_what_a_callback_raises_ends_the_run_and_says_where(self, make, event):
        def fail(trainer):
            raise ConnectionError("no more room")

        with pytest.raises(ConnectionError, match="no more room") as caught:
            make(training_steps=2, eval_steps=1, save_steps=1, **with_callbacks(At(event, fail))).train()

        assert caught.value.__notes__ == [f"in {event} of the callback At"]

    def test_no_update_is_made_behind_it(self, make):
        trainer = make(batch_size=1, **with_callbacks(At("on_update", lambda trainer: 1 // (trainer.state.update - 2))))

        with pytest.raises(ZeroDivisionError):
            trainer.train()

        assert trainer.state.update == 2

    def test_the_other_callbacks_are_told_all_the_same(self, make):
        recorder = Recorder()
        with pytest.raises(ZeroDivisionError):
            make(**with_callbacks(At("on_experience", lambda _: 1 // 0), recorder)).train()

        assert [name for name, *_ in recorder.told][:3] == ["on_train_begin", "on_step_begin", "on_experience"]


class Counter(TrainerCallback):
    def __init__(self):
        self.count, self.at_begin = 0, None

    def on_train_begin(self, trainer):
        self.at_begin = self.count

    def on_step_end(self, trainer, experience, records):
        self.count += 1

    def state(self):
        return {"count": self.count}

    def load_state(self, state):
        self.count = state["count"]


class TestState:
    def test_it_comes_back_from_the_checkpoint_before_training_begins(self, make, run):
        make(training_steps=2, **with_callbacks(Counter)).train()
        resumed = Counter()

        make(training_steps=5, **with_callbacks(resumed)).train(run / "checkpoints" / "step-000002")

        assert (resumed.at_begin, resumed.count) == (2, 5)

    def test_callbacks_of_one_class_keep_apart(self, make, run):
        late = Counter()
        late.count = 100
        make(training_steps=2, **with_callbacks(Counter, late)).train()
        resumed = [Counter(), Counter()]

        make(training_steps=3, **with_callbacks(*resumed)).train(run / "checkpoints" / "step-000002")

        assert [counter.at_begin for counter in resumed] == [2, 102]

    def test_what_was_kept_of_one_that_is_gone_is_told(self, make, run, capsys):
        make(training_steps=2, **with_callbacks(Counter)).train()

        make(training_steps=3).train(run / "checkpoints" / "step-000002")

        assert "the checkpoint holds state of Counter, which is not a callback of this run" in capsys.readouterr().out

    def test_a_checkpoint_without_any_is_read(self, make, run):
        make(training_steps=2).train()
        resumed = Counter()

        make(training_steps=3, **with_callbacks(resumed)).train(run / "checkpoints" / "step-000002")

        assert (resumed.at_begin, resumed.count) == (0, 1)
