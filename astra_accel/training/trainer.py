"""The training loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from astra_accel.config import AUTO, RunConfiguration, TrainingConfiguration, check_resume
from astra_accel.core.evaluator import Evaluator
from astra_accel.core.optional import ComputesMany, offers
from astra_accel.distributed.accelerator import check_accelerator, launch_advice, make_accelerator
from astra_accel.distributed.collectives import on_main, pop_wait_seconds, translate_collective_errors
from astra_accel.distributed.engine import check_saving, make_engine
from astra_accel.distributed.step_module import StepModule
from astra_accel.errors import EXIT_CODE, Interrupted, Preempted
from astra_accel.experience.collect import Harness
from astra_accel.experience.curriculum import Curriculum
from astra_accel.experience.loader import Experience, ExperienceLoader
from astra_accel.experience.off_policy import check_algorithm
from astra_accel.experience.replay import Replay
from astra_accel.files.run_folder import check_output_dir
from astra_accel.files.run_lock import RunLock
from astra_accel.files.run_status import telling_status
from astra_accel.sharing.push import check_push, push_tester
from astra_accel.training.callbacks.base import CallbackHandler, TrainerControl
from astra_accel.training.callbacks.best import KeepBest, bring_best, evaluate_untrained, load_best
from astra_accel.training.callbacks.console import Display
from astra_accel.training.callbacks.run_files import RunFolder, agree_on_output_dir
from astra_accel.training.callbacks.stop_at import StopAt
from astra_accel.training.callbacks.trackers import Trackers
from astra_accel.training.checkpoint import layout as checkpoints
from astra_accel.training.checkpoint.layout import TrainerState, Training
from astra_accel.training.checkpoint.save import CheckpointSaver
from astra_accel.training.checkpoint.verify import WholeCheckpoint, newest_together, verify_together
from astra_accel.training.config_text import config_yaml
from astra_accel.training.metrics import Stopwatch, experience_metrics, mean_reward, speed_figures
from astra_accel.training.optim import LearningRate, build_optimizer
from astra_accel.training.preemption import Preemption
from astra_accel.training.prompt_digests import digests_of, prompts_of
from astra_accel.training.replay_source import begin_replay
from astra_accel.training.resume import resume_from
from astra_accel.training.run_context import RunContext
from astra_accel.training.tester_files import write_tester
from astra_accel.training.update import Updater


class AccelTrainer:
    """Trains the tester of a system, on any number of processes.

    Works with any system, sampler and algorithm that fulfil the contracts, even if they inherit from none of our
    classes::

        system = HFASTSystem("tiny", "tiny", scorer=ProfanityScorer())
        trainer = AccelTrainer(TrainingConfiguration(training_steps=10), ASTSampler(system), DPO(system))
        trainer.train()

    Args:
        config: the training configuration.
        sampler: rolls out its ``system``.
        algorithm: makes examples and losses from the rollouts.
        accelerator: connects the processes to train on; None makes one as configured.
        evaluator: computes the metrics of held-out rollouts, from ``evaluator.seeds`` if it has any; None is
            an ``ASTEvaluator``, which needs nothing but rewards.
        run_config: the whole configuration that ``config`` is part of, for ``config.yaml``.
        callbacks: are notified during the run, and may ask to stop, save or evaluate
            (:class:`~.callbacks.TrainerCallback`).
        prompts: what conversations begin with, by use (``train``, ``dev``, ``test``), so that a run resumed from a
            checkpoint notices changed prompts; None asks the sampler.
        lock: the output folder's lock if the caller already holds it; None acquires it while training.

    Attributes:
        config: the training configuration.
        harness: collects experiences.
        control: the callbacks' requests.
        folder: the run's output folder.
        display: what the main process shows on screen.

    Raises:
        ValueError, RuntimeError: the launch, sampler or system can't be trained as configured.
    """

    def __init__(
        self,
        config: TrainingConfiguration,
        sampler: Any,
        algorithm: Any,
        *,
        accelerator: Accelerator | None = None,
        evaluator: Evaluator | None = None,
        run_config: RunConfiguration | None = None,
        callbacks: Sequence[Any] = (),
        prompts: Mapping[str, Sequence[Any]] | None = None,
        lock: RunLock | None = None,
    ) -> None:
        self.config = config
        if accelerator is None:
            uses_all = getattr(sampler.system, "uses_every_parameter", False)
            accelerator = make_accelerator(config, find_unused_parameters=not uses_all)
        self.accelerator = accelerator
        check_accelerator(accelerator, config)
        on_main(accelerator, lambda: check_push(config))
        check_algorithm(algorithm, sampler, config.replay)
        self.evaluator = _default_evaluator(sampler, config) if evaluator is None else evaluator
        self.harness = Harness(
            sampler,
            algorithm,
            config.num_episodes_per_experience,
            batch_size=config.batch_size,
            seed=config.seed,
            accelerator=self.accelerator,
            replay=Replay.from_configuration(config, algorithm, self.evaluator),
            curriculum=Curriculum.from_configuration(config, sampler),
        )
        optimizer = build_optimizer(config, sampler.system.parameters())
        self.learning_rate = LearningRate(config, optimizer)
        self.engine = make_engine(self.accelerator, StepModule(sampler.system, algorithm), optimizer, config)
        if self.engine.sharded:
            check_saving(sampler.system)
        self.loader = ExperienceLoader(
            self.accelerator, algorithm, config.batch_size, config.gradient_accumulation_steps, config.seed
        )
        self.display = Display(self.accelerator.is_main_process, config.training_steps)
        self.folder = RunFolder(agree_on_output_dir(self.accelerator, config), lock)
        if config.output_dir is None and self.accelerator.is_main_process:
            self.folder.remove_if_unused()
        self.config_yaml = config_yaml(config, run_config)
        self.prompts = digests_of(prompts_of(sampler) if prompts is None else prompts)
        self.control = TrainerControl()
        own = [self.folder, Trackers(), self.display, KeepBest(), *([StopAt()] if config.stop_at else [])]
        self.callbacks = CallbackHandler(self, [*own, *callbacks])
        self._run = RunContext(config, accelerator, self.engine, TrainerState(), self.folder, self.display)
        self._updater = Updater(self._run, self.loader, self.learning_rate, algorithm, self.callbacks)
        self.stopwatch = Stopwatch()
        self._saver = CheckpointSaver(
            self.accelerator,
            self.folder.checkpoints,
            config,
            lambda path: self.callbacks.call("on_save", path),
            self.folder.lock.verify,
        )
        self._preemption = Preemption()
        self._verified: WholeCheckpoint | None = None

    def adopt_verified(self, checkpoint: WholeCheckpoint | None) -> None:
        """Accept a checkpoint that the run may resume from as verified, so that its files are not read again."""
        self._verified = checkpoint

    def train(self, resume_from_checkpoint: str | Path | None = None) -> None:
        """Run training to its end, from the beginning or from a checkpoint.

        Afterwards the system holds the weights that ``tester/`` holds: those of the best checkpoint where
        evaluations chose one and ``load_best_at_end`` is set, else the last.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or ``"auto"``: see :meth:`find_checkpoint`.

        Raises:
            CheckpointError: ``resume_from_checkpoint`` is not a whole checkpoint of this model.
            ConfigurationError: it is ``"auto"``, and no output folder is configured; or the folder can't be written to.
            OutputFolderError: the output folder holds another run.
            FolderInUseError: another run writes to the output folder now.
            LockLostError: another run took over the output folder, since this one's heartbeat had stopped.
            NonFiniteError, EmptyExperienceError: training can't continue.
            RankError: another process failed, died, or did not answer for ``config.timeout`` seconds.
            SharingError: the tester was written, but could not be uploaded (``push_to_hub``).
            Preempted: a process got SIGTERM or SIGUSR1, or an endpoint can't be asked; the last training step was
                completed and has a checkpoint.
        """
        holding, rescuing = self.folder.held(self.accelerator), self._saver.rescuing()
        with self._preemption.watching(), translate_collective_errors(self.config.timeout), holding, rescuing:
            self._begin(resume_from_checkpoint)
            is_main = self.accelerator.is_main_process
            with telling_status(self.folder.path, here=is_main, verify=self.folder.lock.verify):
                evaluate_untrained(self._run, self.evaluate, self.stopwatch)
                self._run_steps()
                self._end()

    @property
    def state(self) -> TrainerState:
        """The run's progress."""
        return self._run.state

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer, as Accelerate prepared it."""
        return self.engine.optimizer

    @property
    def _global_step_counter(self) -> int:
        """The number of batches trained on, under the reference's name; resumed runs continue the count."""
        return self.state.batch

    def add_callback(self, callback: Any) -> None:
        """Add a callback, which is called after the others; a class is instantiated."""
        self.callbacks.add(callback)

    def remove_callback(self, callback: Any) -> Any:
        """Remove a callback, or the first one of a class, and return it.

        Raises:
            ValueError: there is no such callback.
        """
        return self.callbacks.remove(callback)

    def _run_steps(self) -> None:
        with self.display.running(self.state.step):
            while not self._is_at_end:
                pop_wait_seconds()  # drops the waits between training steps
                self.callbacks.call("on_step_begin")
                try:
                    with self.stopwatch.phase("rollout"), self.engine.unsharded_weights():
                        experience = self.harness.collect(self.state.step)
                except Interrupted as interruption:
                    self._interrupt(interruption)
                    return
                self.callbacks.call("on_experience", experience)
                with self.stopwatch.phase("update") if experience.steps else nullcontext():
                    records = self._updater.update_on(experience)
                self.state.step += 1
                self.learning_rate.advance(mean_reward(experience))
                self._after_step(experience, records)

    @property
    def _is_at_end(self) -> bool:
        return self.state.step >= self.config.training_steps or self.callbacks.stopping

    def evaluate(self, seeds: Sequence[Any] | None = None) -> dict[str, float]:
        """The evaluator's metrics of the current tester on held-out prompts; the same on every process.

        Args:
            seeds: one per episode; None uses the evaluator's own, up to ``num_eval_episodes``.
        """
        if seeds is None:
            given = self.evaluator.seeds
            seeds = given[: self.config.num_eval_episodes] if given else range(self.config.num_eval_episodes)
        with self.engine.unsharded_weights():
            graphs = self.harness.evaluate(list(seeds))
            if offers(self.evaluator, ComputesMany):
                metrics = self.harness.spread(graphs, self.evaluator.compute_metrics_many)
            else:
                metrics = [self.evaluator.compute_metrics(graph) for graph in graphs]
        return self.evaluator.aggregate_metrics(metrics)

    def find_checkpoint(self, resume: str | Path | None) -> Path | None:
        """The checkpoint that ``resume`` refers to. All processes must call it.

        ``"auto"`` is the newest whole one in the output folder; None if there is none: the run starts from the
        beginning.

        Raises:
            ConfigurationError: ``"auto"``, and no output folder is configured.
            CheckpointError: ``"auto"``, and the newest is of another version of the package.
        """
        if resume != AUTO:
            return None if resume is None else Path(resume)
        check_resume(self.config, resume)
        found, passed_over = newest_together(self.accelerator, self.folder.checkpoints, self._verified)
        for why in passed_over:
            self.display.say(f"skipped: {why}")
        self._verified = found
        return None if found is None else found.path

    def save_tester(self, folder: str | Path | None = None) -> Path:
        """Write the current tester (None: to the run's ``tester/``). All processes must call it."""
        path = self.folder.tester if folder is None else Path(folder)
        weights = self.engine.gathered_state() if self.engine.sharded else None
        if folder is None:
            on_main(self.accelerator, self.folder.lock.verify)
        system = self.harness.sampler.system
        on_main(self.accelerator, lambda: write_tester(self._run, system, self.config_yaml, path, weights))
        return path

    def _after_step(self, experience: Experience, records: list[dict[str, Any]]) -> None:
        figures: dict[str, Any] = experience_metrics(experience)
        waited = self.callbacks.sync_control(pop_wait_seconds)
        speed = speed_figures(figures["tokens"], self.stopwatch.seconds, waited)
        if self.control.should_evaluate or self._is_due(self.config.eval_steps):
            self.control.should_evaluate = False
            try:
                with self.stopwatch.phase("evaluate"):
                    metrics = self.evaluate()
                figures |= {f"eval/{name}": value for name, value in metrics.items()}
                self.callbacks.call("on_evaluate", metrics)
            except Interrupted as interruption:
                if not interruption.in_order:
                    raise
                self.display.say(f"no evaluation after step {self.state.step}: {interruption}")
        figures |= speed | self.stopwatch.take()
        preempted = self._report(experience, [{**record, **figures} for record in records])
        saved = False
        with self.stopwatch.phase("save"):
            if self.control.should_save or self._is_due(self.config.save_steps) or preempted:
                self.control.should_save = False
                saved = self._saver.save(self.saved_parts(), wait=preempted)
            else:
                self._saver.poll()
        if preempted and saved:
            self._stop()

    def _is_due(self, every: int | None) -> bool:
        return every is not None and (self._is_at_end or self.state.step % every == 0)

    def _report(self, experience: Experience, records: list[dict[str, Any]]) -> bool:
        """Write and show a training step; returns whether any process was asked to end meanwhile."""

        def report() -> bool:
            for record in records:
                self.callbacks.call("on_log", record)
            self.callbacks.call("on_step_end", experience, records)
            self.state.callbacks = self.callbacks.state()
            return self._preemption.noted

        return any(self.callbacks.sync_control(report))

    def _begin(self, resume: str | Path | None) -> None:
        config = self.config.model_copy(update={"output_dir": self.folder.path})
        checkpoint = self.find_checkpoint(resume)
        resuming, automatic = checkpoint is not None, resume == AUTO
        on_main(self.accelerator, lambda: check_output_dir(config, resuming, restarting=automatic))
        if checkpoint is not None:
            if self._verified is None or self._verified.path != checkpoint:
                self._verified = verify_together(self.accelerator, checkpoint)
            resume_from(self._run, self._verified, self.saved_parts())
            self._verified = None  # its files may change from here on
        elif automatic:
            self.display.say(
                f"there is no whole checkpoint in {self.folder.checkpoints}: the run starts from the beginning"
            )
        if not resuming and config.replay is not None and config.replay.source is not None:
            with self.engine.unsharded_weights():
                number = begin_replay(self.harness, self.accelerator, config.replay.source)
            self.display.say(f"the replay begins with {number} examples of {config.replay.source}")
        fresh = not resuming and config.overwrite_output_dir
        on_main(self.accelerator, lambda: self.folder.begin(self.config_yaml, overwrite=fresh))
        on_main(self.accelerator, lambda: self.folder.rewind(self.state.step))
        if checkpoint is not None:
            bring_best(self._run, checkpoint)
        self.control = TrainerControl()
        self.callbacks.sync_control(self.callbacks.begin)
        self.display.say(f"writing to {self.folder.path}")
        for line in launch_advice(self.accelerator, self.config):
            self.display.say(line)

    def _end(self) -> None:
        if self.callbacks.stopping and self.state.step < self.config.training_steps:
            self.display.say(f"a callback stopped the run after step {self.state.step}")
        self._saver.settle()
        if self.config.load_best_at_end:
            load_best(self._run)
        self.save_tester()
        self.callbacks.sync_control(lambda: self.callbacks.call("on_train_end"))
        self.display.say(f"tester saved to {self.folder.tester}")
        for address in on_main(self.accelerator, lambda: push_tester(self.config, self.folder.path)):
            self.display.say(f"tester uploaded to {address}")
        # A script may end here, but must not end right after an exchange: see `end_together`.
        self.accelerator.wait_for_everyone()

    def _interrupt(self, interruption: Interrupted) -> None:
        """End at the training step that was completed last, with a checkpoint."""
        self.display.say(f"interrupted: {interruption}")
        path = self.folder.checkpoints / checkpoints.checkpoint_name(self.state.step)
        self._saver.settle()
        if self.state.step > 0 and not on_main(self.accelerator, (path / checkpoints.MANIFEST).is_file):
            self._saver.save(self.saved_parts(), wait=True)
        if not interruption.in_order:
            self._stop("interrupted after step", interruption.exit_code)

    def _stop(self, why: str = "stopped by a signal after step", code: int = EXIT_CODE) -> None:
        """End early, with a checkpoint of this training step."""
        # Together, since a launcher kills the others as soon as one process has exited with an error code.
        self.callbacks.sync_control(lambda: self.callbacks.call("on_train_end"))
        path = self.folder.checkpoints / checkpoints.checkpoint_name(self.state.step)
        ways = [] if self.state.step == 0 else [f"--resume {path}"]
        ways += [] if self.config.output_dir is None else [f"--resume {AUTO}"]
        self.display.say(f"{why} {self.state.step}; to resume: {', or '.join(ways)}")
        self.accelerator.wait_for_everyone()  # as in `_end`
        raise Preempted(path, code)

    def saved_parts(self) -> Training:
        """The parts that a checkpoint saves."""
        progress = self.engine, self.learning_rate, self.state, self.config_yaml
        harness = self.harness
        return Training(*progress, harness.sampler.system, self.prompts, harness.replay, harness.curriculum)


Trainer = AccelTrainer


def _default_evaluator(sampler: Any, config: TrainingConfiguration) -> Evaluator:
    from astra_accel.evaluation.evaluator import ASTEvaluator, figures_among

    return ASTEvaluator(sampler, figures=figures_among(config.watched_metrics))
