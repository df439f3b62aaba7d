"""Fills a new replay with the examples of another run (``training.replay.source``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from astra_accel.algorithms import ALGORITHMS
from astra_accel.distributed.collectives import on_main
from astra_accel.errors import ConfigurationError
from astra_accel.experience.collect import Harness
from astra_accel.files.run_folder import CHECKPOINTS
from astra_accel.lazy import load
from astra_accel.training.checkpoint.layout import REPLAY, CheckpointError, has_replay, read_config
from astra_accel.training.checkpoint.verify import newest_checkpoint, verify_checkpoint
from astra_accel.training.config_text import flat

FIELD = "training.replay.source"


def begin_replay(harness: Harness, accelerator: Accelerator, source: Path) -> int:
    """Fill the replay of a new run; returns its number of examples. All processes must call it.

    Raises:
        ConfigurationError: there are no examples, or they can't be read.
    """
    # One process reads for all: the run may still be writing checkpoints, and each could find a different newest one.
    file, text = on_main(accelerator, lambda: _read(find_replay(source)))
    try:
        return harness.begin_replay(text)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{FIELD}: {file} can't be read: {error}") from error


def find_replay(source: Path) -> Path:
    """The replay file of a checkpoint, or of a run's newest whole checkpoint.

    Raises:
        ConfigurationError: there is no such run or checkpoint, or it had no replay.
    """
    try:
        checkpoint, passed_over = newest_checkpoint(source / CHECKPOINTS)
        if checkpoint is None and not passed_over:
            verify_checkpoint(source)
            checkpoint = source
    except CheckpointError as error:
        raise ConfigurationError(f"{FIELD}: {error}; expected a run with checkpoints, or a checkpoint") from error
    if checkpoint is None:
        raise ConfigurationError(f"{FIELD}: {source} has no whole checkpoint: {'; '.join(passed_over)}")
    if not has_replay(checkpoint):
        raise ConfigurationError(f"{FIELD}: {checkpoint} has no {REPLAY}: its run had no training.replay")
    return checkpoint / REPLAY


def check_source(source: Path, algorithm: Any, config_yaml: str) -> None:
    """Reject examples that a run can't start with, before models load.

    Args:
        source: a run or a checkpoint.
        algorithm: the algorithm that is to learn from them.
        config_yaml: the configuration of the new run.

    Raises:
        ConfigurationError: see :func:`find_replay`; or the algorithm can't learn from the examples, or they are another
            tester's.
    """
    checkpoint = find_replay(source).parent
    before, now = flat(read_config(checkpoint)), flat(config_yaml)
    name = before.get("algorithm.name")
    theirs = load(ALGORITHMS[name]).step_types if name in ALGORITHMS else ()
    if not set(theirs) <= {*getattr(algorithm, "step_types", ()), *getattr(algorithm, "adopted_types", ())}:
        raise ConfigurationError(
            f"{FIELD}: {checkpoint} has examples of {name!r}, from which {type(algorithm).__name__} can't learn; "
            f"expected those of its own, or with mle those of tb"
        )
    if _model(before) != _model(now) and not _is_trained_by(now, checkpoint):
        raise ConfigurationError(
            f"{FIELD}: {checkpoint} is of a run whose tester.path is {before.get('tester.path')!r}, but here it is "
            f"{now.get('tester.path')!r}; expected the same, since examples are made of its tokens, or a tester that "
            f"the run has trained"
        )


def _read(file: Path) -> tuple[Path, str]:
    return file, file.read_text(encoding="utf-8")


def _model(config: dict[str, Any]) -> Any:
    return config.get("tester.path"), config.get("tester.revision")


def _is_trained_by(config: dict[str, Any], checkpoint: Path) -> bool:
    """Whether the tester was trained by the checkpoint's own run."""
    return Path(str(config.get("tester.path"))).resolve().is_relative_to(checkpoint.resolve().parents[1])
