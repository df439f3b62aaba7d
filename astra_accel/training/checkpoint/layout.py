"""Checkpoints that are complete or absent: what they hold, and how they are read. `saving.py` writes them.

Everything is written to a folder with a temporary name, synced to disk and listed in a manifest with sizes and hashes;
then the folder gets its name in one rename, and only after that are older ones deleted. Reading verifies the
manifest first. Nothing in a checkpoint needs more than ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from astra_accel.distributed.engine import Engine
from astra_accel.experience.replay import Replay
from astra_accel.files.folders import remove
from astra_accel.training.optim import LearningRate
from astra_accel.training.prompt_digests import Digests

FORMAT = 1
MANIFEST, WEIGHTS, OPTIMIZER, ROLLOUT_STATE, REPLAY, STATE, CONFIG, PROMPTS = (
    "manifest.json",
    "trained.safetensors",
    "optimizer.pt",
    "rollout_state.pt",
    "replay.jsonl",
    "trainer_state.json",
    "config.yaml",
    "prompts.json",
)


class CheckpointError(RuntimeError):
    """A folder is no checkpoint, is damaged, or belongs to another model."""


class CheckpointFormatError(CheckpointError):
    """A checkpoint was written by another version of the package."""


class UnsavedError(OSError):
    """A checkpoint could not be written, as to a disk that is full. Those before it are as they were."""


@dataclass
class TrainerState:
    """How far a run is.

    Attributes:
        step: training steps done.
        update: optimizer steps done.
        batch: batches trained on; counted from 0 after a checkpoint of a version that did not count them.
        empty_in_row: the last experiences in a row that had no example.
        best_value: the best evaluation so far.
        best_step: its training step, which has a checkpoint that is not pruned.
        callbacks: what callbacks keep, by name; None where none keeps anything.
        untrained: the evaluation before the first training step, to which ``best_bounds`` are relative; None without.
        not_best: why the last evaluation that could not be the best could not; None where there is none.
    """

    step: int = 0
    update: int = 0
    batch: int = 0
    empty_in_row: int = 0
    best_value: float | None = None
    best_step: int | None = None
    callbacks: dict[str, Any] | None = None
    untrained: dict[str, float] | None = None
    not_best: str | None = None

    def as_json(self) -> str:
        """What a checkpoint holds of it."""
        optional = ("untrained", "not_best")
        values = {name: value for name, value in asdict(self).items() if value is not None or name not in optional}
        return json.dumps(values, indent=2) + "\n"


@dataclass
class Training:
    """What a checkpoint is made of.

    Of the system, what its rollouts depend on besides the weights, if it tells; of the prompts, which they are; the
    examples of a replay, where there is one.
    """

    engine: Engine
    learning_rate: LearningRate
    state: TrainerState
    config_yaml: str
    system: Any = None
    prompts: Digests = field(default_factory=dict)
    replay: Replay | None = None


def checkpoint_name(step: int) -> str:
    """``step-000100`` for step 100."""
    return f"step-{step:06d}"


def adopt_checkpoint(path: Path, folder: Path) -> None:
    """Copy a checkpoint of another run into a folder of checkpoints, complete or not at all."""
    temporary = folder / f".{path.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(path, temporary)
    rename_into_place(temporary, folder / path.name)


def load_checkpoint(training: Training, path: Path) -> TrainerState:
    """Restore weights, optimizer, schedule, what rollouts depend on, the replay and random states, and return how far
    it was.

    Raises:
        CheckpointError: it is none, a file of it is damaged (named), or its weights are another model's.
    """
    engine = training.engine
    load_weights(engine, path)
    saved, *others = [
        torch.load(path / name, map_location="cpu", weights_only=True, mmap=engine.sharded)
        for name in _shares(path, OPTIMIZER)
    ]
    state = saved["optimizer"]["state"]
    for other in others:
        state |= other["state"]
    engine.load_optimizer(saved["optimizer"]["param_groups"], state)
    training.learning_rate.load_state_dict(saved["learning_rate"])
    scaler = engine.accelerator.scaler
    if scaler is not None and saved["scaler"] is not None:
        scaler.load_state_dict(saved["scaler"])
    load_rollout_state = getattr(training.system, "load_rollout_state", None)
    if load_rollout_state is not None and (path / ROLLOUT_STATE).exists():
        load_rollout_state(torch.load(path / ROLLOUT_STATE, map_location="cpu", weights_only=True))
    if training.replay is not None and has_replay(path):
        _load_replay(training.replay, path / REPLAY)
    own_states = path / random_file(engine.accelerator.process_index)
    if own_states.exists():  # A run that goes on with more processes has none for the new ones.
        _restore_random_states(torch.load(own_states, weights_only=True))
    return read_state(path)


def load_weights(engine: Engine, path: Path) -> None:
    """Restore the trained weights alone from a checkpoint.

    Raises:
        CheckpointError: as :func:`load_checkpoint`.
    """
    verify_checkpoint(path)
    own = engine.module.trained_state()
    with ExitStack() as files:
        saved: dict[str, Any] = {}  # the file that a weight is in
        for name in _shares(path, WEIGHTS):
            try:
                file = files.enter_context(safe_open(path / name, framework="pt"))
            except SafetensorError as error:
                raise CheckpointError(f"{path / name} can't be read: {error}") from error
            saved |= dict.fromkeys(file.keys(), file)
        differing = sorted(set(saved) ^ set(own)) or [
            name for name, file in saved.items() if list(engine.shape(own[name])) != file.get_slice(name).get_shape()
        ]
        if differing:
            raise CheckpointError(
                f"{path} holds the weights of another model: {len(differing)} of them differ in name or shape "
                f"({', '.join(differing[:3])}, …)"
            )
        # In the order of one process's names, since some launches load together.
        engine.load_trained_state((name, saved[name].get_tensor(name)) for name in own)


def _load_replay(replay: Replay, file: Path) -> None:
    try:
        replay.load(file.read_text(encoding="utf-8"))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} can't be read: {error}") from error


def has_replay(path: Path) -> bool:
    """Whether a checkpoint holds the examples of a replay."""
    return (path / REPLAY).is_file()


def read_config(path: Path) -> str:
    """The configuration with which a checkpoint was written, as YAML."""
    return (path / CONFIG).read_text(encoding="utf-8")


def read_state(path: Path) -> TrainerState:
    """How far the run was that wrote a checkpoint."""
    return TrainerState(**json.loads((path / STATE).read_text(encoding="utf-8")))


def read_prompts(path: Path) -> Digests:
    """Which prompts the run had that wrote a checkpoint; none where it did not tell, as older versions."""
    file = path / PROMPTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def prune_checkpoints(folder: Path, keep: int | None, step: int, best_step: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints up to training step ``step`` (None: delete none) and the best.

    Those of later steps are what a run left that was resumed from before them; they must not pass for the newest.
    """
    if keep is None:
        return
    names = [path.name for path in list_checkpoints(folder)]
    kept = [name for name in names if int(name[5:]) <= step][-keep:]
    if best_step is not None:
        kept.append(checkpoint_name(best_step))
    for name in names:
        if name not in kept:
            remove(folder / name)


def list_checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a folder, oldest first."""
    return [path for path in _named(folder) if (path / MANIFEST).is_file()]


def newest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of a folder that is whole (None: there is none), and why each newer one is not.

    Raises:
        CheckpointFormatError: another version of the package can go on from it, and should.
    """
    passed_over = []
    for path in reversed(_named(folder)):
        try:
            verify_checkpoint(path)
        except CheckpointFormatError:
            raise
        except CheckpointError as error:
            passed_over.append(str(error))
        else:
            return path, passed_over
    return None, passed_over


def verify_checkpoint(path: Path) -> None:
    """Check that a checkpoint is whole.

    Raises:
        CheckpointError: names the folder that is none, or the file that is missing or damaged.
    """
    if not (path / MANIFEST).is_file():
        near = list_checkpoints(path) or list_checkpoints(path / "checkpoints") or list_checkpoints(path.parent)
        there_are = f"; there are {', '.join(map(str, near))}" if near else ""
        raise CheckpointError(f"{path} is no checkpoint (it has no {MANIFEST}){there_are}")
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        format_number = manifest["format"]
        files = [(name, expected["size"], expected["sha256"]) for name, expected in manifest["files"].items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged: {error!r}") from error
    if format_number != FORMAT:
        raise CheckpointFormatError(f"{path} has checkpoint format {format_number}; this version reads {FORMAT}")
    for name, size, digest in files:
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing from the checkpoint")
        if file.stat().st_size != size:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes, expected {size}: it is damaged")
        if sha256(file) != digest:
            raise CheckpointError(f"{file} has other contents than when it was written: it is damaged")


def _named(folder: Path) -> list[Path]:
    """What has the name of a checkpoint, oldest first."""
    named = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(named, key=lambda path: int(path.name[5:]))


def rename_into_place(temporary: Path, final: Path) -> None:
    """Force a folder and its files to disk, then give it its name in one rename, in the place of what had it."""
    for path in [*temporary.iterdir(), temporary]:
        sync(path)
    if final.exists():  # A resumed run comes to a step that it had saved before.
        outdated = final.with_name(f".{final.name}.outdated")
        remove(outdated)
        os.rename(final, outdated)
        os.rename(temporary, final)
        remove(outdated)
    else:
        os.rename(temporary, final)
    sync(final.parent)


def of_process(name: str, rank: int) -> str:
    """``optimizer.pt`` of the main process, ``optimizer-1.pt`` of process 1."""
    return name if rank == 0 else f"{Path(name).stem}-{rank}{Path(name).suffix}"


def _shares(path: Path, name: str) -> list[str]:
    """Those files of a checkpoint which hold the shares of the processes that wrote ``name``, the main one's first."""
    files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    return [of_process(name, rank) for rank in range(len(files)) if of_process(name, rank) in files]


def random_file(rank: int) -> str:
    """Where the random states of a process are."""
    return f"random_states_{rank}.pt"


def random_states() -> dict[str, Any]:
    """The states of all global random generators of this process."""
    _, words, *rest = np.random.get_state()
    return {
        "python": list(random.getstate()[1]),
        "python_gauss": random.getstate()[2],
        "numpy_words": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        "numpy_rest": [int(rest[0]), int(rest[1]), float(rest[2])],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_states(states: Mapping[str, Any]) -> None:
    random.setstate((3, tuple(states["python"]), states["python_gauss"]))
    words = states["numpy_words"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", words, *states["numpy_rest"]))
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])


def sha256(path: Path) -> str:
    """The hash of what a file holds."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
