"""Accelerate's trackers: figures, the configuration and sample conversations, in each tracker's own form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from astra_accel.files.text import valid_text
from astra_accel.training.callbacks.base import TrainerCallback
from astra_accel.training.callbacks.console import sample_rows, samples_are_due
from astra_accel.training.config_text import flat

if TYPE_CHECKING:
    from astra_accel.experience.loader import Experience
    from astra_accel.training.trainer import AccelTrainer

PROJECT, SAMPLES = "astra_accel", "samples"
Rows = Sequence[Mapping[str, Any]]


class Trackers(TrainerCallback):
    """Logs a run to the accelerator's trackers. Trackers started before the run stay open after it."""

    def __init__(self) -> None:
        self._begun = False

    def on_train_begin(self, trainer: AccelTrainer) -> None:
        """Start the trackers, with the configuration."""
        accelerator = trainer.accelerator
        self._begun = bool(accelerator.log_with) and not accelerator.trackers
        if self._begun:
            config = {name: _valid(value) for name, value in flat(trainer.config_yaml).items()}
            # TensorBoard's files stay in the folder; what a resumed run repeats must not be in them twice.
            again = {"tensorboard": {"purge_step": trainer.state.update + 1}}
            accelerator.init_trackers(PROJECT, config=config, init_kwargs=again)

    def on_step_end(self, trainer: AccelTrainer, experience: Experience, records: Sequence[Mapping[str, Any]]) -> None:
        """Log the figures of each update under its number, and conversations whenever the screen shows some."""
        accelerator, config = trainer.accelerator, trainer.config
        for record in records:
            accelerator.log({name: _valid(value) for name, value in record.items()}, step=record["update"])
        if not (accelerator.trackers and accelerator.is_main_process and samples_are_due(config, trainer.state.step)):
            return
        rows = sample_rows(experience.graphs, config.num_sample_conversations)
        if rows:
            for tracker in accelerator.trackers:
                log_samples(tracker, [{"step": trainer.state.step, **row} for row in rows], records[-1]["update"])

    def on_train_end(self, trainer: AccelTrainer) -> None:
        """Do what ``Accelerator.end_training`` does, but keep the process group: evaluations may follow."""
        if self._begun:
            for tracker in trainer.accelerator.trackers:
                tracker.finish()
            trainer.accelerator.trackers.clear()


def log_samples(tracker: Any, rows: Rows, update: int) -> None:
    """Log sample conversations by the tracker's own means, if it has any. On the main process only.

    A tracker with a method ``log_table(name, columns, data, step=)`` gets a table: W&B's, ClearML's, and any custom
    tracker that has one.
    """
    writers = {"tensorboard": _as_text, "trackio": _as_trackio_table, "mlflow": _as_artifact}
    if tracker.name in writers:
        writers[tracker.name](tracker, rows, update)
    elif hasattr(tracker, "log_table"):
        tracker.log_table(SAMPLES, columns=list(rows[0]), data=[list(row.values()) for row in rows], step=update)


def _as_text(tracker: Any, rows: Rows, update: int) -> None:
    lines: list[str] = []
    for row in rows:
        if row["turn"] == 1:
            lines += ["", f"[prompt of episode {row['episode']}] {row['prompt']}"]
        reward = "missing" if row["reward"] is None else f"{row['reward']:.3f}"
        lines += [f"[tester, reward {reward}] {row['probe']}", f"[target] {row['response']}"]
    # TensorBoard renders texts as Markdown; indented, they are code, so a model's links and pictures stay text.
    text = "".join(f"    {line}\n" for line in "\n".join(lines).split("\n"))
    tracker.tracker.add_text(SAMPLES, text, global_step=update)


def _as_trackio_table(tracker: Any, rows: Rows, update: int) -> None:
    import pandas as pd
    import trackio

    tracker.log({SAMPLES: trackio.Table(dataframe=pd.DataFrame(rows))}, step=update)


def _as_artifact(tracker: Any, rows: Rows, update: int) -> None:  # noqa: ARG001
    """MLflow's tables have no steps, so one table grows and has the step as a column."""
    import mlflow

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    mlflow.log_table(columns, f"{SAMPLES}.json", run_id=tracker.tracker.info.run_id)


def _valid(value: Any) -> Any:
    return valid_text(value) if isinstance(value, str) else value
