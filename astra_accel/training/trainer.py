"""The training loop."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file

from astra_accel.config import AUTO, RunConfiguration, Section, TrainingConfiguration, check_resume, to_yaml
from astra_accel.core.evaluator import Evaluator
from astra_accel.sharing.folders import README
from astra_accel.sharing.model_card import Origin, model_card, weights_in
from astra_accel.sharing.push import check_push, push_tester
from astra_accel.training import checkpoint as checkpoints
from astra_accel.training.checkpoint import TrainerState, Training
from astra_accel.training.display import Display
from astra_accel.training.distributed import (
    check_accelerator,
    launch_advice,
    make_accelerator,
    naming_lost_processes,
    on_every_rank,
    on_main,
    take_waited,
)
from astra_accel.training.engine import check_saving, make_engine
from astra_accel.training.experience import Experience, ExperienceLoader, Shard
from astra_accel.training.harness import Harness
from astra_accel.training.memory import return_freed_memory
from astra_accel.training.metrics import Stopwatch, UpdateTally, experience_metrics
from astra_accel.training.optim import LearningRate, build_optimizer
from astra_accel.training.outputs import METRICS, RunFolder, check_output_dir, new_output_dir, write_atomically
from astra_accel.training.preemption import Preempted, Preemption
from astra_accel.training.saving import CheckpointSaver
from astra_accel.training.status import telling_status
from astra_accel.training.step_module import StepModule

logger = logging.getLogger(__name__)


# What the optimizer's and the schedule's saved state decides: a new value would be overruled, or would not fit.
FIXED_ON_RESUME = tuple(
    f"training.{name}" for name in ("optimizer", "lr", "weight_decay", "lr_scheduler", "warmup_steps")
)


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; the optimizer did not step."""


class EmptyExperienceError(RuntimeError):
    """Too many experiences in a row gave no training example."""


class AccelTrainer:
    """Trains the tester of a system, on any number of processes.

    Works with any system, sampler and algorithm of the contracts' shape, also with those that inherit from none of
    our classes::

        system = HFASTSystem("tiny", "tiny", scorer=ProfanityScorer())
        trainer = AccelTrainer(TrainingConfiguration(training_steps=10), ASTSampler(system), DPO(system))
        trainer.train()

    Args:
        config: how to train.
        sampler: rolls its ``system`` out.
        algorithm: makes examples and losses of the rollouts.
        accelerator: the processes to train on; None makes one as configured.
        evaluator: computes the metrics of held-out rollouts, from ``evaluator.seeds`` if it has any; None is
            an ``ASTEvaluator``, which needs nothing but rewards.
        run_config: the whole configuration of which ``config`` is a part, for ``config.yaml``.

    Raises:
        ValueError, RuntimeError: a launch, a sampler or a system that can't be trained as configured.
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
    ) -> None:
        self.config = config
        if accelerator is None:
            uses_all = getattr(sampler.system, "uses_every_parameter", False)
            accelerator = make_accelerator(config, find_unused_parameters=not uses_all)
        self.accelerator = accelerator
        check_accelerator(accelerator, config)
        on_main(accelerator, lambda: check_push(config))
        check_sampler = getattr(algorithm, "check_sampler", None)
        if check_sampler is not None:
            check_sampler(sampler)
        self.evaluator = _default_evaluator(sampler) if evaluator is None else evaluator
        self.harness = Harness(
            sampler,
            algorithm,
            config.num_episodes_per_experience,
            batch_size=config.batch_size,
            seed=config.seed,
            accelerator=self.accelerator,
        )
        optimizer = build_optimizer(config, sampler.system.parameters())
        self.learning_rate = LearningRate(config, optimizer)
        self.engine = make_engine(self.accelerator, StepModule(sampler.system, algorithm), optimizer, config)
        if self.engine.sharded:
            check_saving(sampler.system)
        self.loader = ExperienceLoader(
            self.accelerator, algorithm, config.batch_size, config.gradient_accumulation_steps, config.seed
        )
        self.state = TrainerState()
        self.display = Display(self.accelerator.is_main_process, config.training_steps)
        self.folder = RunFolder(self._agree_on_folder())
        self._config_yaml = _config_yaml(config, run_config)
        self._saver = CheckpointSaver(self.accelerator, self.folder.checkpoints, config)
        self._stopwatch = Stopwatch()
        self._preemption = Preemption()

    def train(self, resume_from_checkpoint: str | Path | None = None) -> None:
        """Run training to its end, from the beginning or from a checkpoint.

        Afterwards the system holds the weights that ``tester/`` holds: those of the best checkpoint where
        evaluations chose one and ``load_best_at_end`` is set, else the last.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or ``"auto"``: see :meth:`find_checkpoint`.

        Raises:
            CheckpointError: ``resume_from_checkpoint`` is no whole checkpoint of this model.
            ConfigurationError: it is ``"auto"``, and no output folder is configured.
            OutputFolderError: the output folder holds another run.
            NonFiniteError, EmptyExperienceError: training can't go on.
            RankError: another process failed, died, or did not answer for ``config.timeout`` seconds.
            SharingError: the tester is there, but could not be uploaded (``push_to_hub``).
            Preempted: a process got SIGTERM or SIGUSR1; the training step was finished and has a checkpoint.
        """
        with self._preemption.watching(), naming_lost_processes(self.config.timeout), self._saver.rescuing():
            self._begin(resume_from_checkpoint)
            with telling_status(self.folder.path, here=self.accelerator.is_main_process):
                self._run_steps()
                self._end()

    def _run_steps(self) -> None:
        with self.display.running(self.state.step):
            while self.state.step < self.config.training_steps:
                with self._stopwatch.phase("rollout"), self.engine.whole_weights():
                    experience = self.harness.collect(self.state.step)
                records = self._update_on(experience)
                self.state.step += 1
                self.learning_rate.advance(_mean_reward(experience))
                self._after_step(experience, records)

    def evaluate(self, seeds: Sequence[Any] | None = None) -> dict[str, float]:
        """The evaluator's metrics of the tester as it is, on held-out prompts; the same on every process.

        Args:
            seeds: one an episode; None takes the evaluator's own, up to ``num_eval_episodes``.
        """
        if seeds is None:
            given = self.evaluator.seeds
            seeds = given[: self.config.num_eval_episodes] if given else range(self.config.num_eval_episodes)
        with self.engine.whole_weights():
            graphs = self.harness.evaluate(list(seeds))
        return self.evaluator.aggregate_metrics([self.evaluator.compute_metrics(graph) for graph in graphs])

    def find_checkpoint(self, resume: str | Path | None) -> Path | None:
        """The checkpoint that a run resumed from ``resume`` goes on from. All processes together.

        ``"auto"`` is the newest in the output folder that is whole, None where there is none: the run begins anew.

        Raises:
            ConfigurationError: ``"auto"``, and no output folder is configured.
            CheckpointError: ``"auto"``, and the newest is of another version of the package.
        """
        if resume != AUTO:
            return None if resume is None else Path(resume)
        check_resume(self.config, resume)
        # One process looks for all, or they might see different moments.
        found, passed_over = on_main(self.accelerator, lambda: checkpoints.newest_checkpoint(self.folder.checkpoints))
        for why in passed_over:
            self.display.say(f"passed over: {why}")
        return found

    def save_tester(self, folder: str | Path | None = None) -> Path:
        """Write the tester as it is (None: to ``tester/`` of the run). All processes together."""
        path = self.folder.tester if folder is None else Path(folder)
        weights = self.engine.gathered_state() if self.engine.sharded else None
        on_main(self.accelerator, lambda: self._write_tester(path, weights))
        return path

    def _update_on(self, experience: Experience) -> list[dict[str, Any]]:
        """Every update of an experience; a record of each."""
        if not experience.steps:
            return self._skip(experience)
        self.state.empty_in_row = 0
        records, tally, shards = [], UpdateTally(), []
        enough = False
        with self._stopwatch.phase("update"):
            self._return_freed_memory()
            for epoch in range(self.config.epochs_per_experience):
                for shard in self.loader.of(experience, epoch):
                    if enough:
                        continue  # Accelerate's loaders have to come to their end
                    loss, logs = self.engine.backward(shard.batch, shard.share, ends_update=shard.ends_update)
                    self._return_freed_memory()
                    tally.add(loss, logs, shard.share)
                    shards.append(shard)
                    if shard.ends_update:
                        records.append(self._finish_update(tally, shards, experience))
                        tally, shards = UpdateTally(), []
                        enough = self._stop_early(records[-1])
        return records

    def _stop_early(self, record: Mapping[str, Any]) -> bool:
        """Whether the algorithm wants no more updates on an experience; all processes have the same record."""
        stop_early = getattr(self.harness.algorithm, "stop_early", None)
        return stop_early is not None and stop_early(record)

    def _return_freed_memory(self) -> None:
        if self.accelerator.device.type == "cpu":
            return_freed_memory()

    def _finish_update(self, tally: UpdateTally, shards: Sequence[Shard], experience: Experience) -> dict[str, Any]:
        means = tally.reduce(self.accelerator)
        lr = self.learning_rate.value
        grad_norm = self.engine.update(
            self.config.max_grad_norm, lambda norm: self._check_finite(means["loss"], norm, shards)
        )
        self.state.update += 1
        return {
            "step": experience.index + 1,
            "update": self.state.update,
            **means,
            "grad_norm": grad_norm,
            "lr": lr,
        }

    def _check_finite(self, loss: float, grad_norm: float, shards: Sequence[Shard]) -> None:
        # With fp16 an overflow of gradients is the scaler's business: it skips the update and scales less.
        scaled = self.accelerator.scaler is not None
        finite = torch.isfinite(torch.tensor([loss, 0.0 if scaled else grad_norm])).all()
        if finite:
            return
        folder = self.folder.path / "non_finite"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"update-{self.state.update + 1:06d}-process-{self.accelerator.process_index}.json"
        batches = [{"share": shard.share, "batch": repr(shard.batch)} for shard in shards]
        path.write_text(json.dumps({"loss": repr(loss), "grad_norm": repr(grad_norm), "batches": batches}, indent=2))
        raise NonFiniteError(
            f"update {self.state.update + 1} has loss {loss} and gradient norm {grad_norm}; it was not made. "
            f"Its batches are in {folder}, the last good weights in {self.folder.checkpoints}"
        )

    def _skip(self, experience: Experience) -> list[dict[str, Any]]:
        self.state.empty_in_row += 1
        self.display.say(
            f"step {experience.index + 1}: no training example came of {len(experience.graphs)} episodes "
            f"(rewards that tie or are missing, or equal probes), so no update"
        )
        if self.state.empty_in_row >= self.config.max_empty_experiences:
            on_main(self.accelerator, lambda: self._write_rollouts(experience))
            raise EmptyExperienceError(
                f"{self.state.empty_in_row} experiences in a row gave no training example "
                f"(training.max_empty_experiences); their episodes are in {self.folder.path / 'rollouts'}"
            )
        # A training step without an update still tells its rewards, under the number of the last update.
        return [{"step": experience.index + 1, "update": self.state.update, "lr": self.learning_rate.value}]

    def _after_step(self, experience: Experience, records: list[dict[str, Any]]) -> None:
        step, config = self.state.step, self.config
        last = step == config.training_steps
        figures: dict[str, Any] = experience_metrics(experience)
        improved = False
        if config.eval_steps is not None and (last or step % config.eval_steps == 0):
            with self._stopwatch.phase("evaluate"):
                metrics = self.evaluate()
            figures |= {f"eval/{name}": value for name, value in metrics.items()}
            improved = self._note_best(metrics)
        figures |= self._speed(figures["tokens"])
        figures |= self._stopwatch.take()
        preempted = self._report(experience, records, figures)
        due = config.save_steps is not None and (last or step % config.save_steps == 0)
        saved = False
        with self._stopwatch.phase("save"):
            if improved or due or preempted:
                saved = self._saver.save(self._training(), wait=preempted)
            else:
                self._saver.poll()
        if preempted and saved:
            self._stop()

    def _report(self, experience: Experience, records: list[dict[str, Any]], figures: dict[str, Any]) -> bool:
        """Write and show a training step; whether any process was told to end meanwhile."""
        records = [{**record, **figures} for record in records]

        def write() -> bool:
            if self.accelerator.is_main_process:
                self._write_rollouts(experience)
                for record in records:
                    self.folder.write_metrics(record)
            return self._preemption.noted

        preempted = any(on_every_rank(self.accelerator, write))
        for record in records:
            self.accelerator.log(record, step=record["update"])
        self.display.step(self.state.step, records[-1])
        every = self.config.sample_steps
        if every is not None and (self.state.step == 1 or self.state.step % every == 0):
            self.display.conversations(experience.graphs, self.config.num_sample_conversations)
        return preempted

    def _speed(self, num_tokens: int) -> dict[str, float]:
        """How quickly a training step went, over all processes."""
        seconds = self._stopwatch.seconds
        waited = on_every_rank(self.accelerator, take_waited)
        return {
            "speed/tokens_per_second": num_tokens / (seconds["rollout"] + seconds.get("update", 0.0)),
            "speed/wait_share": fmean(waited) / math.fsum(seconds.values()),
        }

    def _note_best(self, metrics: Mapping[str, float]) -> bool:
        name = self.config.best_metric
        if name not in metrics:
            raise ValueError(f"training.best_metric is {name!r}; the evaluator gives {', '.join(metrics)}")
        if self.state.best_value is not None and metrics[name] <= self.state.best_value:
            return False
        self.state.best_value, self.state.best_step = metrics[name], self.state.step
        return True

    def _begin(self, resume: str | Path | None) -> None:
        config = self.config.model_copy(update={"output_dir": self.folder.path})
        checkpoint = self.find_checkpoint(resume)
        resuming, automatic = checkpoint is not None, resume == AUTO
        on_main(self.accelerator, lambda: check_output_dir(config, resuming, restarting=automatic))
        if checkpoint is not None:
            self._compare_configurations(checkpoint)
            self.state = checkpoints.load_checkpoint(self._training(), checkpoint)
            self.display.say(f"resumed from {checkpoint} at step {self.state.step}")
        elif automatic:
            self.display.say(f"there is no whole checkpoint in {self.folder.checkpoints}: the run begins anew")
        fresh = not resuming and config.overwrite_output_dir
        on_main(self.accelerator, lambda: self.folder.begin(self._config_yaml, overwrite=fresh))
        on_main(self.accelerator, lambda: self.folder.rewind(self.state.step))
        if checkpoint is not None:
            self._bring_best(checkpoint)
        if self.config.log_with:
            self.accelerator.init_trackers("astra_accel", config=_flat(self.config.model_dump(mode="json")))
        self.display.say(f"writing to {self.folder.path}")
        for line in launch_advice(self.accelerator, self.config):
            self.display.say(line)

    def _end(self) -> None:
        self._saver.settle()
        best = self.state.best_step
        if self.config.load_best_at_end and best is not None and best != self.state.step:
            path = self.folder.checkpoints / checkpoints.checkpoint_name(best)
            checkpoints.load_weights(self.engine, path)
            self.display.say(f"took the weights of {path}, the best by {self.config.best_metric}")
        self.save_tester()
        self._end_trackers()
        self.display.say(f"tester saved to {self.folder.tester}")
        for address in on_main(self.accelerator, lambda: push_tester(self.config, self.folder.path)):
            self.display.say(f"tester uploaded to {address}")
        # A script may end here, which it must not right behind an exchange: see `end_together`.
        self.accelerator.wait_for_everyone()

    def _stop(self) -> None:
        """End before the end, at a checkpoint of this training step."""
        self._end_trackers()
        path = self.folder.checkpoints / checkpoints.checkpoint_name(self.state.step)
        automatic = "" if self.config.output_dir is None else f", or --resume {AUTO}"
        self.display.say(f"stopped by a signal after step {self.state.step}; to go on: --resume {path}{automatic}")
        self.accelerator.wait_for_everyone()  # as in `_end`
        raise Preempted(path)

    def _end_trackers(self) -> None:
        """What ``Accelerator.end_training`` does, but the processes can still talk: evaluations may follow."""

        def finish() -> None:
            for tracker in self.accelerator.trackers:
                tracker.finish()

        # Together, since a launcher kills the others as soon as one process has exited with an error code.
        if self.config.log_with:
            on_every_rank(self.accelerator, finish)

    def _training(self) -> Training:
        return Training(self.engine, self.learning_rate, self.state, self._config_yaml, self.harness.sampler.system)

    def _compare_configurations(self, checkpoint: Path) -> None:
        checkpoints.verify_checkpoint(checkpoint)
        changes = changed_fields(checkpoints.read_config(checkpoint), self._config_yaml)
        fixed = [change for name, change in changes.items() if name in FIXED_ON_RESUME]
        if fixed:
            raise checkpoints.CheckpointError(
                f"{checkpoint} holds the state of another optimizer or schedule: {'; '.join(fixed)}. Resume with the "
                f"values that it has, or start a new run from its tester"
            )
        for change in changes.values():
            self.display.say(f"changed since {checkpoint.name}: {change}")

    def _bring_best(self, resumed: Path) -> None:
        """Have the best checkpoint so far among the run's own, where the resumed one is of another folder."""
        if self.state.best_step is None:
            return
        name = checkpoints.checkpoint_name(self.state.best_step)
        own, there = self.folder.checkpoints / name, resumed.parent / name

        def bring() -> bool:
            if not (own / checkpoints.MANIFEST).is_file() and (there / checkpoints.MANIFEST).is_file():
                checkpoints.adopt_checkpoint(there, self.folder.checkpoints)
            return (own / checkpoints.MANIFEST).is_file()

        # One process looks for all, or they might see different moments.
        if not on_main(self.accelerator, bring):
            self.display.say(f"{there}, the best checkpoint so far, is gone: the best is looked for anew")
            self.state.best_step = self.state.best_value = None

    def _write_rollouts(self, experience: Experience) -> None:
        self.folder.write_rollouts(experience.index + 1, experience.graphs)

    def _write_tester(self, path: Path, weights: dict[str, torch.Tensor] | None) -> None:
        """Write the tester, with these weights where it does not hold them whole itself."""
        save_pretrained = getattr(self.harness.sampler.system, "save_pretrained", None)
        path.mkdir(parents=True, exist_ok=True)
        if save_pretrained is None:
            save_file(self.engine.gathered_state() if weights is None else weights, path / checkpoints.WEIGHTS)
        elif weights is None:
            save_pretrained(path)
        else:
            save_pretrained(path, state_dict=weights)
        origin = Origin.of_run(self._config_yaml, asdict(self.state), self.folder.path / METRICS)
        write_atomically(path / README, model_card(origin, weights_in(path)))

    def _agree_on_folder(self) -> Path:
        """The output folder; where none is given, the one that the main process names."""
        chosen = [str(self.config.output_dir or new_output_dir())]
        broadcast_object_list(chosen)
        return Path(chosen[0])


Trainer = AccelTrainer


def changed_fields(before: str, after: str) -> dict[str, str]:
    """The fields that differ between two configurations in YAML, as ``training.lr: 0.001, now 0.01`` by name."""
    import yaml

    old, new = _flat(yaml.safe_load(before)), _flat(yaml.safe_load(after))
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return {name: f"{name}: {old.get(name)!r}, now {new.get(name)!r}" for name in names}


def _default_evaluator(sampler: Any) -> Evaluator:
    from astra_accel.methods.ast.evaluator import ASTEvaluator

    return ASTEvaluator(sampler)


def _config_yaml(config: TrainingConfiguration, run_config: RunConfiguration | None) -> str:
    return to_yaml(_Training(training=config) if run_config is None else run_config)


class _Training(Section):
    training: TrainingConfiguration


def _mean_reward(experience: Experience) -> float:
    return experience_metrics(experience).get("reward/mean", math.nan)  # not 0, which may be progress


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names; lists as text, which every tracker takes."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value if isinstance(value, int | float | str | bool) else str(value)
    return flat
