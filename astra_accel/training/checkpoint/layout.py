"""Checkpoints that are complete or absent: what they contain, and where.

Everything is written to a folder with a temporary name, synced to disk and listed in a manifest with sizes and hashes;
then one rename gives the folder its name, and only after that are older ones deleted. ``save`` writes them, ``verify``
checks the manifest, and ``load`` reads them.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from astra_accel.distributed.engine import Engine
from astra_accel.experience.curriculum import Curriculum
from astra_accel.experience.replay import Replay
from astra_accel.files.atomic import sync
from astra_accel.files.folders import remove
from astra_accel.training.optim import LearningRate
from astra_accel.training.prompt_digests import Digests

FORMAT = 1
MANIFEST, WEIGHTS, OPTIMIZER, ROLLOUT_STATE, REPLAY, CURRICULUM, STATE, CONFIG, PROMPTS = (
    "manifest.json",
    "trained.safetensors",
    "optimizer.pt",
    "rollout_state.pt",
    "replay.jsonl",
    "curriculum.json",
    "trainer_state.json",
    "config.yaml",
    "prompts.json",
)


class CheckpointError(RuntimeError):
    """A folder is not a checkpoint, is damaged, or belongs to another model."""


class CheckpointFormatError(CheckpointError):
    """A checkpoint was written by another version of the package."""


class UnsavedError(OSError):
    """A checkpoint could not be written, e.g. to a full disk. Earlier ones are unchanged."""


@dataclass
class TrainerState:
    """A run's progress.

    Attributes:
        step: training steps done.
        update: optimizer steps done.
        batch: batches trained on; counted from 0 after a checkpoint of a version that did not count them.
        empty_in_row: how many of the last experiences in a row had no example.
        best_value: the best evaluation so far.
        best_step: its training step, whose checkpoint is not pruned.
        callbacks: the callbacks' state by name; None if there is none.
        untrained: the evaluation before the first training step, to which ``best_bounds`` are relative; None without
            bounds.
        not_best: why the last ineligible evaluation could not be the best; None if there was none.
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
        """The state as a checkpoint stores it."""
        optional = ("untrained", "not_best")
        values = {name: value for name, value in asdict(self).items() if value is not None or name not in optional}
        return json.dumps(values, indent=2) + "\n"


@dataclass
class Training:
    """The parts that a checkpoint saves.

    Besides weights and progress: what the system's rollouts depend on besides the weights, if it has such a state;
    which prompts there are; and the examples of a replay and the prompts of a curriculum, if there is one.
    """

    engine: Engine
    learning_rate: LearningRate
    state: TrainerState
    config_yaml: str
    system: Any = None
    prompts: Digests = field(default_factory=dict)
    replay: Replay | None = None
    curriculum: Curriculum | None = None


def checkpoint_name(step: int) -> str:
    """``step-000100`` for step 100."""
    return f"step-{step:06d}"


def adopt_checkpoint(path: Path, folder: Path) -> None:
    """Copy a checkpoint of another run into a folder of checkpoints, completely or not at all."""
    temporary = folder / f".{path.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(path, temporary)
    rename_into_place(temporary, folder / path.name)


def has_replay(path: Path) -> bool:
    """Whether a checkpoint holds the examples of a replay."""
    return (path / REPLAY).is_file()


def read_config(path: Path) -> str:
    """The configuration that a checkpoint was written with, as YAML."""
    return (path / CONFIG).read_text(encoding="utf-8")


def read_state(path: Path) -> TrainerState:
    """The progress of the run that wrote a checkpoint."""
    return TrainerState(**json.loads((path / STATE).read_text(encoding="utf-8")))


def read_prompts(path: Path) -> Digests:
    """The prompts of the run that wrote a checkpoint; empty if not recorded, as by older versions."""
    file = path / PROMPTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def prune_checkpoints(folder: Path, keep: int | None, step: int, best_step: int | None) -> None:
    """Delete all but the newest ``keep`` checkpoints up to training step ``step`` (None: delete none) and the best.

    Those of later steps remain from before the run was resumed at an earlier step; they must not count as the newest.
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
    return [path for path in named_checkpoints(folder) if (path / MANIFEST).is_file()]


def named_checkpoints(folder: Path) -> list[Path]:
    """Everything named like a checkpoint, oldest first."""
    named = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted(named, key=lambda path: int(path.name[5:]))


def rename_into_place(temporary: Path, final: Path) -> None:
    """Force a folder and its files to disk, then give it its final name in one rename, replacing what had it."""
    for path in [*temporary.iterdir(), temporary]:
        sync(path)
    if final.exists():  # A resumed run reached a step that it had saved before.
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


def files_of_processes(path: Path, name: str) -> list[str]:
    """The files of a checkpoint with the parts of ``name`` that each process wrote, the main process's first."""
    files = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
    return [of_process(name, rank) for rank in range(len(files)) if of_process(name, rank) in files]


def random_file(rank: int) -> str:
    """The file of a process's random states."""
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
