import json
import math
import re
import shutil
import signal

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from safetensors.torch import load_file

from astra_accel import DPO, AccelTrainer, ASTSampler, HFASTSystem, RunConfiguration, Scorer, TrainingConfiguration
from astra_accel.config import LoRAConfiguration, RolloutConfiguration, SamplingConfiguration
from astra_accel.errors import ConfigurationError, NonFiniteError, Preempted
from astra_accel.files.run_folder import OutputFolderError
from astra_accel.training import update
from astra_accel.training.checkpoint.layout import CheckpointError, list_checkpoints
from astra_accel.training.update import EmptyExperienceError
from tests.helpers.plain import ListedEvaluator, PlainAlgorithm, PlainStep, PlainSystem, build_plain, reset_accelerate
from tests.helpers.runs import checkpoint_weights, metrics


def weights(trainer):
    return [parameter.detach().clone() for parameter in trainer.harness.sampler.system.parameters()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class FixedExamples(PlainAlgorithm):
    """As many examples an experience as ``counts`` says, whatever was rolled out."""

    def __init__(self, counts):
        super().__init__(PlainSystem())
        self.counts = iter(counts)

    def flatten(self, graph):
        return []

    def prepare(self, steps):
        return [PlainStep(index % 7, index % 5, (index + 1) % 5, 1.0) for index in range(next(self.counts))]


class TestTheLoop:
    def test_it_trains_what_inherits_from_none_of_our_classes(self, make):
        trainer = make(training_steps=8)
        before = weights(trainer)

        trainer.train()

        assert not any(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
        assert trainer.state.step == 8
        assert trainer.state.update >= 8

    @pytest.mark.parametrize(
        ("settings", "updates"),
        [
            ({}, [2, 1, 3]),
            ({"batch_size": 2}, [3, 2, 5]),
            # Accumulation ends with an experience: gradients of old weights do not cross over to the next.
            ({"gradient_accumulation_steps": 2}, [1, 1, 2]),
            ({"gradient_accumulation_steps": 100}, [1, 1, 1]),
            ({"epochs_per_experience": 3}, [6, 3, 9]),
        ],
        ids=str,
    )
    def test_an_experience_gives_as_many_updates_as_its_batches_make(self, make, run, settings, updates):
        trainer = make(FixedExamples([5, 4, 9]), **settings)

        trainer.train()

        assert [line["step"] for line in metrics(run)] == [
            step for step, count in enumerate(updates, start=1) for _ in range(count)
        ]
        assert [line["update"] for line in metrics(run)] == list(range(1, sum(updates) + 1))
        assert trainer.state.update == sum(updates)

    def test_no_gradient_is_left_over(self, make):
        trainer = make(FixedExamples([5, 4, 9]), gradient_accumulation_steps=2)

        trainer.train()

        assert all(parameter.grad is None for parameter in trainer.harness.sampler.system.parameters())

    def test_the_update_is_that_of_the_mean_over_all_its_examples(self, make):
        # Five examples in batches of 2, 2 and 1: their mean, and not the mean of the means of three batches.
        trainer = make(
            FixedExamples([5]), training_steps=1, batch_size=2, gradient_accumulation_steps=3, optimizer="sgd"
        )
        system = PlainSystem()
        algorithm = FixedExamples([5])
        loss, _ = PlainAlgorithm(system).step(algorithm.collate_fn(algorithm.prepare([])))
        loss.backward()
        torch.optim.SGD(system.parameters(), lr=0.05).step()

        trainer.train()

        for own, expected in zip(weights(trainer), system.parameters(), strict=True):
            torch.testing.assert_close(own, expected.detach())

    def test_an_update_in_parts_is_that_of_the_whole(self, make, run, monkeypatch):
        class InParts(FixedExamples):
            """Counts a token an example, of which the system wants no more than two at once."""

            def __init__(self, counts, token_budget):
                super().__init__(counts)
                self.system.token_budget = token_budget
                self.steps = []

            def num_tokens(self, steps):
                return len(steps)

            def step(self, batch):
                self.steps.append((len(batch["state"]), trainer.accelerator.sync_gradients))
                return super().step(batch)

        monkeypatch.setattr(update, "return_freed_memory", lambda device: algorithm.steps.append("memory"))
        trained, figures, steps = [], [], []
        for token_budget in (None, 2):
            algorithm = InParts([5, 9], token_budget)
            trainer = make(algorithm, training_steps=2, gradient_accumulation_steps=2, overwrite_output_dir=True)
            trainer.train()
            trained.append(weights(trainer))
            figures.append([(line["loss"], line["grad_norm"], line["plain/accuracy"]) for line in metrics(run)])
            steps.append(algorithm.steps)

        # Freed memory goes back before an update, not after each part; gradients are exchanged between processes with
        # the last part alone.
        assert steps[0] == ["memory", (4, False), (1, True), "memory", (4, False), (4, True), "memory", (1, True)]
        assert steps[1] == [
            *["memory", (2, False), (2, False), (1, True)],
            *["memory", (2, False), (2, False), (2, False), (2, True), "memory", (1, True)],
        ]
        torch.testing.assert_close(trained[1], trained[0], rtol=0, atol=1e-6)
        for whole, in_parts in zip(*figures, strict=True):
            assert in_parts == pytest.approx(whole, abs=1e-6)

    def test_gradients_are_clipped_to_their_norm(self, make, run):
        trainer = make(
            FixedExamples([5, 5]), training_steps=2, batch_size=8, optimizer="sgd", lr=1.0, max_grad_norm=0.01
        )
        before = weights(trainer)

        trainer.train()

        moved = torch.cat([(a - b).flatten() for a, b in zip(weights(trainer), before, strict=True)])
        assert 0.005 < moved.norm() <= 0.0201
        assert all(line["grad_norm"] > 0.1 for line in metrics(run))

    def test_the_schedule_advances_once_a_training_step(self, make, run):
        make(FixedExamples([5, 0, 4, 9]), training_steps=4, lr=1.0, lr_scheduler="linear").train()

        assert [line["lr"] for line in metrics(run)] == [1.0, 1.0, 0.75, 0.5, 0.25, 0.25, 0.25]

    def test_the_system_is_trained_by_one_prepared_loader(self, make):
        trainer = make(training_steps=5)

        trainer.train()

        assert len(trainer.accelerator._dataloaders) == 1

    def test_an_accelerator_that_is_given_is_used_and_changes_nothing(self, make):
        own = make()
        own.train()

        reset_accelerate()
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=False))
        sampler, algorithm = build_plain()
        config = own.config.model_copy(update={"output_dir": own.config.output_dir.with_name("given")})
        given = AccelTrainer(config, sampler, algorithm, accelerator=accelerator)
        given.train()

        assert given.accelerator is accelerator
        assert same(weights(given), weights(own))

    def test_an_accelerator_that_does_not_fit_is_refused(self):
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)

        with pytest.raises(ValueError, match=r"training\.gradient_accumulation_steps is 1"):
            AccelTrainer(TrainingConfiguration(), *build_plain(), accelerator=accelerator)

    def test_the_algorithm_checks_the_sampler(self, make):
        class Picky(PlainAlgorithm):
            def check_sampler(self, sampler):
                raise ValueError(f"not with a {type(sampler).__name__}")

        with pytest.raises(ValueError, match="not with a PlainSampler"):
            make(Picky(PlainSystem()))


class TestStopEarly:
    class Stopping(PlainAlgorithm):
        """Wants no more updates after the second of each experience."""

        def __init__(self):
            super().__init__(PlainSystem())
            self.asked = []

        def stop_early(self, metrics):
            self.asked.append(metrics)
            return [asked["step"] for asked in self.asked].count(metrics["step"]) == 2

    def test_the_updates_that_are_left_for_an_experience_are_not_made(self, make, run):
        algorithm = self.Stopping()
        make(algorithm, batch_size=1, epochs_per_experience=3).train()

        assert [line["step"] for line in metrics(run)] == [1, 1, 2, 2, 3, 3]
        assert [asked["loss"] for asked in algorithm.asked] == [line["loss"] for line in metrics(run)]

    def test_accelerates_loader_has_come_to_its_end(self, make):
        trainer = make(self.Stopping(), batch_size=1, epochs_per_experience=3)
        trainer.train()

        assert trainer.accelerator.gradient_state.active_dataloader is None


class TestNonFinite:
    class Failing(PlainAlgorithm):
        """Does as told in the third update; remembers the weights that it had then."""

        def __init__(self, spoil):
            super().__init__(PlainSystem())
            self.spoil, self.calls = spoil, 0

        def flatten(self, graph):
            return super().flatten(graph)[:1]

        def step(self, batch):
            loss, logs = super().step(batch)
            self.calls += 1
            if self.calls == 3:
                self.weights = [parameter.detach().clone() for parameter in self.system.parameters()]
                loss = self.spoil(loss, self.system)
            return loss, logs

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda loss, system: loss * math.nan,
            lambda loss, system: loss + math.inf,
            # A loss that is finite, of which one gradient is not: the square root at 0.
            lambda loss, system: loss + (system.policy.weight[0, 0] * 0).sqrt(),
        ],
        ids=["nan", "inf", "gradient"],
    )
    @pytest.mark.parametrize("async_save", [False, True])
    def test_the_update_is_not_made_and_its_batches_are_kept(self, make, run, spoil, async_save):
        algorithm = self.Failing(spoil)
        settings = {"training_steps": 9, "save_steps": 1, "async_save": async_save}
        trainer = make(algorithm, num_episodes_per_experience=4, **settings)
        steps = []
        trainer.engine.optimizer.optimizer.register_step_post_hook(lambda *_: steps.append(1))

        with pytest.raises(NonFiniteError, match=r"update 3 has loss .*; it was not made") as caught:
            trainer.train()

        assert str(run / "non_finite") in str(caught.value)
        assert same(weights(trainer), algorithm.weights)
        assert len(steps) == trainer.state.update == 2
        saved = json.loads((run / "non_finite" / "update-000003-process-0.json").read_text())
        assert [batch["share"] for batch in saved["batches"]] == [1.0]
        assert "'state': tensor(" in saved["batches"][0]["batch"]
        assert "nan" in saved["loss"] + saved["grad_norm"] or "inf" in saved["loss"] + saved["grad_norm"]
        assert [line["update"] for line in metrics(run)] == [1, 2]
        assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-000001", "step-000002"]


class TestEmptyExperiences:
    def test_they_are_skipped_and_told(self, make, run, capsys):
        trainer = make(FixedExamples([2, 0, 0, 2]), training_steps=4, max_empty_experiences=3)

        trainer.train()

        lines = metrics(run)
        assert [(line["step"], line["update"], line["examples"]) for line in lines] == [
            (1, 1, 2),
            (2, 1, 0),
            (3, 1, 0),
            (4, 2, 2),
        ]
        assert ["loss" in line for line in lines] == [True, False, False, True]
        assert all("reward/mean" in line for line in lines)
        assert trainer.state.empty_in_row == 0
        assert "step 2: 8 episodes yielded no training examples" in capsys.readouterr().out
        assert len(list((run / "rollouts").iterdir())) == 4

    def test_weights_stay_as_they_are(self, make):
        trainer = make(FixedExamples([0, 0]), training_steps=2)
        before = weights(trainer)

        trainer.train()

        assert same(weights(trainer), before)

    def test_too_many_in_a_row_are_an_error(self, make, run):
        trainer = make(FixedExamples([0, 0, 2, 0, 0, 0, 2]), training_steps=7, max_empty_experiences=3)

        with pytest.raises(EmptyExperienceError, match=r"3 experiences in a row .*training\.max_empty_experiences"):
            trainer.train()

        assert trainer.state.step == 5
        assert (run / "rollouts" / "step-000006.parquet").exists()


class TestAttributesOfTheReference:
    def test_the_optimizer_is_the_one_that_steps(self, make):
        trainer = make(training_steps=1)
        stepped = []
        trainer.optimizer.optimizer.register_step_post_hook(lambda *_: stepped.append(1))

        trainer.train()

        assert len(stepped) == trainer.state.update > 0

    @pytest.mark.parametrize(("accumulation", "updates"), [(1, 3), (2, 2), (9, 1)])
    def test_batches_are_counted_and_a_resumed_run_goes_on(self, make, run, accumulation, updates):
        settings = {"batch_size": 4, "gradient_accumulation_steps": accumulation, "save_steps": 1}
        trainer = make(FixedExamples([9, 1]), training_steps=1, **settings)
        trainer.train()
        assert (trainer._global_step_counter, trainer.state.update) == (3, updates)

        resumed = make(FixedExamples([9, 1]), training_steps=2, **settings)
        resumed.train("auto")
        assert resumed._global_step_counter > 3


class TestEvaluation:
    def settings(self, values, **settings):
        return {
            "extras": {"evaluator": ListedEvaluator(values)},
            "training_steps": 4,
            "eval_steps": 1,
            "best_metric": "score",
            "save_total_limit": 1,
        } | settings

    @pytest.mark.parametrize("async_save", [False, True])
    def test_the_best_checkpoint_is_kept_and_its_weights_are_the_result(self, make, run, async_save):
        trainer = make(**self.settings([0.1, 0.9, 0.9, 0.2], async_save=async_save))

        trainer.train()

        assert (trainer.state.best_step, trainer.state.best_value) == (2, 0.9)
        assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-000002", "step-000004"]
        best, last = checkpoint_weights(run, 2), checkpoint_weights(run, 4)
        assert not torch.equal(best["policy.weight"], last["policy.weight"])
        assert torch.equal(trainer.engine.module.policy.weight, best["policy.weight"])
        assert torch.equal(load_file(run / "tester" / "trained.safetensors")["policy.weight"], best["policy.weight"])
        assert "- best_step: 2\n" in (run / "tester" / "README.md").read_text()

    def test_the_best_checkpoint_comes_along_to_another_folder(self, make, run, tmp_path):
        make(**self.settings([0.9, 0.1], training_steps=2)).train()
        resumed = make(**self.settings([0.2, 0.3], output_dir=tmp_path / "other"))

        resumed.train(run / "checkpoints" / "step-000002")

        assert (resumed.state.best_step, resumed.state.best_value) == (1, 0.9)
        names = [path.name for path in list_checkpoints(tmp_path / "other" / "checkpoints")]
        assert names == ["step-000001", "step-000004"]
        assert torch.equal(resumed.engine.module.policy.weight, checkpoint_weights(run, 1)["policy.weight"])

    def test_a_best_checkpoint_that_is_gone_is_looked_for_anew(self, make, run, tmp_path):
        make(**self.settings([0.9, 0.1], training_steps=2)).train()
        shutil.rmtree(run / "checkpoints" / "step-000001")
        resumed = make(**self.settings([0.2, 0.3], output_dir=tmp_path / "other"))

        resumed.train(run / "checkpoints" / "step-000002")

        assert (resumed.state.best_step, resumed.state.best_value) == (4, 0.3)

    def test_the_last_weights_are_the_result_where_asked_for(self, make, run):
        trainer = make(**self.settings([0.1, 0.9, 0.3, 0.2], load_best_at_end=False))

        trainer.train()

        last = checkpoint_weights(run, 4)["policy.weight"]
        assert torch.equal(trainer.engine.module.policy.weight, last)
        assert torch.equal(load_file(run / "tester" / "trained.safetensors")["policy.weight"], last)

    def test_a_best_step_is_saved_also_without_save_steps(self, make, run):
        make(**self.settings([0.3, 0.1, 0.4, 0.2], save_steps=None)).train()

        assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-000003"]

    def test_it_comes_every_eval_steps_and_at_the_end(self, make, run):
        make(**self.settings([0.1, 0.2, 0.3], training_steps=5, eval_steps=2)).train()

        evaluated = {line["step"]: line["eval/score"] for line in metrics(run) if "eval/score" in line}
        assert evaluated == {2: 0.1, 4: 0.2, 5: 0.3}
        timed = {line["step"] for line in metrics(run) if "seconds/evaluate" in line}
        assert timed == {2, 4, 5}

    def test_a_best_metric_that_there_is_not_is_named(self, make):
        trainer = make(**self.settings([0.1], best_metric="reward/mean"))

        with pytest.raises(
            ValueError, match=r"training\.best_metric is 'reward/mean'; the evaluator gives score, other"
        ):
            trainer.train()

    @pytest.mark.parametrize(
        ("seeds", "expected"), [(None, [0, 1, 2]), ([6, 5, 4, 3], [6, 5, 4]), ([6], [6]), ([], [0, 1, 2])]
    )
    def test_episodes_are_the_evaluators_up_to_their_number(self, make, seeds, expected):
        evaluator = ListedEvaluator([0.5, 0.5], seeds)
        trainer = make(extras={"evaluator": evaluator}, num_eval_episodes=3)

        assert trainer.evaluate() == {"score": 0.5, "other": 0.0}
        trainer.evaluate([2, 2])

        assert evaluator.rollouts == [expected, [2, 2]]

    def test_the_default_evaluator_needs_rewards_alone(self, make, run):
        trainer = make(eval_steps=2, num_eval_episodes=4)

        trainer.train()

        graphs = [trainer.harness.sampler.eval_rollout(seed) for seed in range(4)]
        rewards = [[graph.children[0].reward, graph.children[0].children[0].reward] for graph in graphs]
        assert trainer.evaluate() == {"reward/mean": pytest.approx(sum(map(sum, rewards)) / 8)}
        assert trainer.state.best_value is not None


class TestFiles:
    def test_a_run_writes_these(self, make, run):
        make(save_steps=2, training_steps=5).train()

        assert sorted(path.name for path in run.iterdir()) == [
            "checkpoints",
            "config.yaml",
            "metrics.jsonl",
            "rollouts",
            "status.json",
            "tester",
        ]
        assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-000004", "step-000005"]
        assert sorted(path.name for path in (run / "rollouts").iterdir()) == [
            f"step-{step:06d}.parquet" for step in range(1, 6)
        ]
        assert sorted(path.name for path in (run / "tester").iterdir()) == ["README.md", "trained.safetensors"]

    def test_without_save_steps_there_is_no_checkpoint(self, make, run):
        make(save_steps=None).train()

        assert not (run / "checkpoints").exists()

    def test_every_update_is_a_line_of_figures(self, make, run):
        trainer = make(training_steps=4)

        trainer.train()

        lines = metrics(run)
        assert [line["update"] for line in lines] == list(range(1, trainer.state.update + 1))
        for line in lines:
            assert line.keys() >= {
                "step", "update", "loss", "plain/accuracy", "plain/value", "grad_norm", "lr", "examples",
                "reward/mean", "reward/std", "reward/max", "tokens", "seconds/rollout", "seconds/update",
                "speed/tokens_per_second", "speed/wait_share",
            }  # fmt: skip
            assert all(isinstance(value, int | float) for value in line.values())

    def test_the_configuration_is_that_of_the_run(self, make, run, tmp_path):
        trainer = make()
        trainer.train()
        assert RunConfiguration.load(run / "config.yaml").training == trainer.config

        whole = RunConfiguration(training=trainer.config.model_copy(update={"output_dir": tmp_path / "2"}), lora=None)
        reset_accelerate()
        AccelTrainer(whole.training, *build_plain(), run_config=whole).train()
        assert RunConfiguration.load(tmp_path / "2" / "config.yaml") == whole
        assert RunConfiguration.load(tmp_path / "2" / "checkpoints" / "step-000003" / "config.yaml") == whole

    def test_a_run_without_a_folder_gets_one(self, make, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        make(output_dir=None).train()

        (folder,) = (tmp_path / "runs").iterdir()
        assert re.fullmatch(r"\d{8}-\d{6}", folder.name)
        assert (folder / "tester" / "trained.safetensors").exists()

    def test_nothing_is_written_before_training(self, make, run):
        make()

        assert not run.exists()

    def test_the_tester_can_be_saved_elsewhere(self, make, tmp_path):
        trainer = make()

        assert trainer.save_tester(tmp_path / "mine") == tmp_path / "mine"

        saved = load_file(tmp_path / "mine" / "trained.safetensors")
        assert torch.equal(saved["policy.weight"], trainer.engine.module.policy.weight)

    def test_a_line_a_step_and_sample_conversations_are_shown(self, make, capsys):
        make(training_steps=3, sample_steps=2, num_sample_conversations=1).train()

        shown = capsys.readouterr().out
        assert [f"step {step}/3  loss " in shown for step in (1, 2, 3)] == [True] * 3
        assert shown.count("sample conversation") == 2


class TestStartingAgain:
    def test_a_folder_with_a_run_is_refused_and_left_alone(self, make, run):
        make().train()
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

        with pytest.raises(OutputFolderError, match=f"--resume {run / 'checkpoints' / 'step-000003'}"):
            make(lr=0.1).train()

        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    def test_overwriting_begins_anew(self, make, run):
        make(training_steps=5, save_steps=2).train()

        make(training_steps=2, overwrite_output_dir=True).train()

        assert {line["step"] for line in metrics(run)} == {1, 2}
        assert len(list((run / "rollouts").iterdir())) == 2
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-000002"]

    def test_resuming_from_what_is_no_checkpoint_changes_nothing(self, make, run):
        make().train()
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

        for settings in ({}, {"overwrite_output_dir": True}):
            with pytest.raises(CheckpointError, match=r"not a checkpoint .*there are .*step-000003"):
                make(**settings).train(run / "checkpoints" / "step-000002")
        (run / "checkpoints" / "step-000003" / "optimizer.pt").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"optimizer\.pt has 0 bytes"):
            make().train(run / "checkpoints" / "step-000003")
        before[run / "checkpoints" / "step-000003" / "optimizer.pt"] = b""

        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    def test_resuming_with_overwriting_keeps_what_there_was(self, make, run):
        make(training_steps=3).train()

        make(training_steps=5, overwrite_output_dir=True).train(run / "checkpoints" / "step-000003")

        assert sorted({line["step"] for line in metrics(run)}) == [1, 2, 3, 4, 5]

    def test_a_step_without_an_update_comes_once_when_it_comes_again(self, make, run):
        make(FixedExamples([2, 2, 0, 2]), training_steps=4, save_steps=2).train()

        make(FixedExamples([0, 2]), training_steps=4, save_steps=2).train(run / "checkpoints" / "step-000002")

        assert [(line["step"], line["update"]) for line in metrics(run)] == [(1, 1), (2, 2), (3, 2), (4, 3)]

    def test_taken_up_before_its_last_checkpoints_a_run_keeps_those_that_it_makes_now(self, make, run):
        make(training_steps=6, save_steps=2, save_total_limit=None).train()

        make(training_steps=5, save_steps=1, save_total_limit=1).train(run / "checkpoints" / "step-000002")

        assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-000005"]

    def test_another_optimizer_or_rate_than_the_checkpoints_is_refused_by_name(self, make, run):
        make(training_steps=3).train()

        for name, value in (("lr", 0.5), ("optimizer", "sgd"), ("weight_decay", 0.3), ("warmup_steps", 1)):
            settings = {name: value} | ({"lr_scheduler": "linear"} if name == "warmup_steps" else {})
            with pytest.raises(CheckpointError, match=rf"training\.{name}: .*, now {value!r}"):
                make(training_steps=4, **settings).train(run / "checkpoints" / "step-000003")

    def test_what_changed_is_told(self, make, run, capsys):
        make(training_steps=3).train()
        capsys.readouterr()

        make(training_steps=4, num_episodes_per_experience=2).train(run / "checkpoints" / "step-000003")

        shown = capsys.readouterr().out
        assert f"resumed from {run / 'checkpoints' / 'step-000003'} at step 3" in shown
        assert re.findall("changed since step-000003: (.*)", shown) == [
            "training.training_steps: 3, now 4",
            "training.num_episodes_per_experience: 8, now 2",
        ]


@pytest.fixture
def at_step(make):
    """Makes trainers that do something in the rollouts of a training step."""

    def at_step(step, do, **settings):
        sampler, algorithm = build_plain()
        trainer = make(sampler=sampler, algorithm=algorithm, **settings)
        rollout = sampler.rollout

        def rollout_and_more(seed):
            if trainer.state.step == step - 1:
                do()
            return rollout(seed)

        sampler.rollout = rollout_and_more
        return trainer

    return at_step


class TestPreemption:
    def stopped(self, at_step, step, **settings):
        trainer = at_step(step, lambda: signal.raise_signal(signal.SIGTERM), **settings)
        with pytest.raises(Preempted) as caught:
            trainer.train()
        return trainer, caught.value

    @pytest.mark.parametrize("async_save", [False, True])
    def test_the_step_is_finished_and_saved_and_the_run_goes_on_from_there(
        self, at_step, make, run, tmp_path, capsys, async_save
    ):
        whole = make(training_steps=5, output_dir=tmp_path / "whole")
        whole.train()

        trainer, preempted = self.stopped(at_step, 2, training_steps=5, save_steps=None, async_save=async_save)

        assert preempted.checkpoint == run / "checkpoints" / "step-000002"
        assert {line["step"] for line in metrics(run)} == {1, 2}
        assert not (run / "tester").exists()
        assert not same(weights(trainer), weights(whole))
        assert (
            f"stopped by a signal after step 2; to resume: --resume {preempted.checkpoint}" in capsys.readouterr().out
        )

        resumed = make(training_steps=5, save_steps=None)
        resumed.train("auto")

        assert f"resumed from {preempted.checkpoint} at step 2" in capsys.readouterr().out
        assert same(weights(resumed), weights(whole))
        assert {line["step"] for line in metrics(run)} == {1, 2, 3, 4, 5}
        assert (run / "tester").exists()

    def test_in_the_last_step_it_stops_too_and_what_is_left_comes_when_it_is_resumed(self, at_step, make, run):
        self.stopped(at_step, 3)
        assert not (run / "tester").exists()

        make().train("auto")

        assert (run / "tester" / "trained.safetensors").exists()
        assert {line["step"] for line in metrics(run)} == {1, 2, 3}

    def test_handlers_are_there_while_it_trains_alone(self, at_step):
        before, inside = signal.getsignal(signal.SIGTERM), []

        at_step(1, lambda: inside.append(signal.getsignal(signal.SIGTERM))).train()

        assert before not in inside
        assert signal.getsignal(signal.SIGTERM) is before

    def test_trackers_are_ended(self, at_step, monkeypatch):
        ended = []
        monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", lambda _: ended.append("tensorboard"))

        self.stopped(at_step, 2, log_with=["tensorboard"])

        assert ended == ["tensorboard"]


class TestResumingAutomatically:
    def test_without_a_checkpoint_it_begins_and_says_so(self, make, run, capsys):
        trainer = make()

        trainer.train("auto")

        assert trainer.state.step == 3
        shown = capsys.readouterr().out
        assert f"there is no whole checkpoint in {run / 'checkpoints'}: the run starts from the beginning" in shown

    def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(self, at_step, make, run):
        def killed():
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            at_step(3, killed).train()
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 3, "upda')
        (run / "rollouts" / "step-000009.parquet").touch()
        with pytest.raises(OutputFolderError):
            make().train()

        trainer = make()
        trainer.train("auto")

        assert [line["update"] for line in metrics(run)] == list(range(1, trainer.state.update + 1))
        assert len(list((run / "rollouts").iterdir())) == 3

    def test_a_damaged_checkpoint_is_passed_over_and_named(self, make, run, tmp_path, capsys):
        make(training_steps=4, output_dir=tmp_path / "whole").train()
        make(training_steps=3, save_steps=1).train()
        damaged = run / "checkpoints" / "step-000003" / "trained.safetensors"
        damaged.write_bytes(b"")
        capsys.readouterr()

        resumed = make(training_steps=4, save_steps=1)
        resumed.train("auto")

        shown = capsys.readouterr().out
        assert f"skipped: {damaged} has 0 bytes" in shown
        assert f"resumed from {run / 'checkpoints' / 'step-000002'} at step 2" in shown
        assert torch.equal(
            resumed.engine.module.policy.weight, checkpoint_weights(tmp_path / "whole", 4)["policy.weight"]
        )

    def test_a_run_that_ended_is_nothing_to_begin_anew(self, make, run):
        make(save_steps=None).train()
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

        with pytest.raises(OutputFolderError, match=r"already holds a run \(tester\)"):
            make().train("auto")

        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    def test_a_run_that_ended_with_a_checkpoint_ends_again(self, make, run):
        first = make()
        first.train()
        before = metrics(run)

        again = make()
        again.train("auto")

        assert same(weights(again), weights(first))
        assert metrics(run) == before

    def test_it_needs_a_folder_that_is_named(self, make, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)

        with pytest.raises(ConfigurationError, match=r"looks for checkpoints in training\.output_dir.*null"):
            make(output_dir=None).train("auto")

        assert list(tmp_path.iterdir()) == []


class LetterScorer(Scorer):
    def score(self, texts):
        return [text.count("e") / (1 + len(text)) for text in texts]


class TestLanguageModels:
    def test_a_tiny_one_is_trained_and_saved(self, make, run):
        sampling = SamplingConfiguration(max_new_tokens=4)
        system = HFASTSystem(
            "tiny",
            "tiny",
            scorer=LetterScorer(),
            lora=LoRAConfiguration(r=2),
            rollout=RolloutConfiguration(tester=sampling, target=sampling),
        )
        frozen = {name: p.detach().clone() for name, p in system.tester.named_parameters() if not p.requires_grad}
        sampler = ASTSampler(system, ["Once upon a time", "The weather"], tree_depth=2)
        trainer = make(DPO(system), sampler, training_steps=2, num_episodes_per_experience=2, eval_steps=2)

        trainer.train()

        assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= {
            path.name for path in (run / "tester").iterdir()
        }
        after = dict(system.tester.named_parameters())
        assert frozen
        assert all(torch.equal(tensor, after[name]) for name, tensor in frozen.items())
        adapter = load_file(run / "tester" / "adapter_model.safetensors")
        assert any(tensor.abs().sum() > 0 for name, tensor in adapter.items() if "lora_B" in name)
        for line in metrics(run):
            assert line.keys() >= {"dpo/reward_accuracy", "reward/combined_score", "reward/naturalness", "tokens"}
            assert line["tokens"] > 0
