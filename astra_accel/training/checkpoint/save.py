"""How a run writes its checkpoints: at once, or while training continues.

Saving has three parts. A **snapshot** is a process's part of the state, in host memory; all processes take it together.
To **write** it, each process hashes it and forces it to disk on its own, so a thread can do it. To **publish** it, the
main process lists all files in the manifest and gives the folder its name. It does so once all processes have reported
theirs on disk, which they do in exchanges that take place anyway: the thread itself communicates with no other process.
"""

from __future__ import annotations

import copy
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import save_file

from astra_accel.config import TrainingConfiguration
from astra_accel.core.optional import HasRolloutState, offers
from astra_accel.distributed.collectives import RankError, gather_results, on_main
from astra_accel.files.atomic import sha256, sync
from astra_accel.files.run_lock import LockLostError
from astra_accel.training.checkpoint.layout import (
    CONFIG,
    CURRICULUM,
    FORMAT,
    MANIFEST,
    OPTIMIZER,
    PROMPTS,
    REPLAY,
    ROLLOUT_STATE,
    STATE,
    WEIGHTS,
    TrainerState,
    Training,
    UnsavedError,
    checkpoint_name,
    of_process,
    prune_checkpoints,
    random_file,
    random_states,
    rename_into_place,
)

logger = logging.getLogger(__name__)

Snapshot = dict[str, Any]
"""What one process writes, by file name: tensors, a value for ``torch.save``, or a text."""
RESCUE_SECONDS = 10.0
"""How long a failed run waits for the other processes' parts of a checkpoint."""


class CheckpointSaver:
    """Saves the checkpoints of a run and deletes old ones. All processes must call each method.

    With ``config.async_save``, at most one checkpoint at a time is written while training continues.

    Args:
        accelerator: connects the processes.
        folder: the folder of the checkpoints.
        config: how many to keep, whether to write while training continues, and what to do if writing fails.
        tell: called with the path of each published checkpoint.
        verify: raises if this run may no longer write to the folder; called before anything is written.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        folder: Path,
        config: TrainingConfiguration,
        tell: Callable[[Path], None] | None = None,
        verify: Callable[[], None] = lambda: None,
    ) -> None:
        self.accelerator, self.folder, self.config, self.tell = accelerator, folder, config, tell
        self._verify = verify
        self._writer = ThreadPoolExecutor(1, "checkpoint") if config.async_save else None
        self._pending: _Pending | None = None

    def save(self, training: Training, *, wait: bool = False) -> bool:
        """Save the current state; returns False if that failed and the run continues without (``stop_if_unsaved``).

        Waits for the previous checkpoint, but not for this one if it is written while training continues, unless
        ``wait``: it may still fail, and then :meth:`poll`, :meth:`settle` or the next call raises.

        Raises:
            UnsavedError: this checkpoint, or the previous one, can't be written.
            RankError: another process can't write its part.
        """
        self.settle()
        on_main(self.accelerator, self._verify)
        try:
            self._pending = _begin(training, self.folder, self._writer)
        except (UnsavedError, RankError) as error:
            return self._continue_without(training.state, error)
        return self.settle() if wait or self._writer is None else True

    def poll(self) -> None:
        """Publish the checkpoint that is being written, if all processes have written their parts.

        Raises:
            UnsavedError, RankError: as in :meth:`save`.
        """
        if self._pending is not None and all(gather_results(self.accelerator, self._pending.is_over)):
            self.settle()

    def settle(self) -> bool:
        """Wait for the checkpoint that is being written, if any, and publish it; returns False as :meth:`save` does.

        Raises:
            UnsavedError, RankError: as in :meth:`save`.
        """
        pending = self._pending
        if pending is None:
            return True
        on_main(self.accelerator, self._verify)
        try:
            path = _publish_together(self.accelerator, pending, self.folder)
        except (UnsavedError, RankError) as error:
            self._pending = None
            return self._continue_without(pending.training.state, error, pending.step)
        self._pending, limit = None, self.config.save_total_limit
        on_main(self.accelerator, lambda: prune_checkpoints(self.folder, limit, pending.step, pending.best_step))
        if self.tell is not None:
            self.tell(path)
        return True

    @contextmanager
    def rescuing(self) -> Iterator[None]:
        """A context for training: if training fails, the checkpoint that is being written is still published.

        The processes don't communicate here, since some may be gone. A checkpoint that can't be published is reported.
        """
        try:
            yield
        except BaseException:
            self._rescue()
            raise

    def _rescue(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None or not pending.temporary.exists():
            return
        try:
            pending.finish()
            if self.accelerator.is_main_process:
                self._verify()
                _await_listings(pending.temporary, self.accelerator.num_processes)
                _publish(pending.temporary, self.folder, self.accelerator.num_processes)
        except (OSError, LockLostError) as error:
            logger.warning("the checkpoint of step %d is not complete: %s", pending.step, error)

    def _continue_without(self, state: TrainerState, error: Exception, step: int | None = None) -> bool:
        """Returns False if the run continues, with a warning from the process that failed; else raises the error."""
        unsaved = isinstance(error, UnsavedError)
        if self.config.stop_if_unsaved or not any(gather_results(self.accelerator, lambda: unsaved)):
            raise error
        if state.best_step == (state.step if step is None else step):
            state.best_step = state.best_value = None  # No such checkpoint exists: the search restarts.
        logger.warning("%s; the run continues (training.stop_if_unsaved)", error)
        return False


@dataclass(frozen=True)
class _Pending:
    """A checkpoint that is being written.

    Attributes:
        temporary: the folder of its files until it is published.
        finish: waits until this process has written its part, and raises the error if it failed.
        is_over: whether ``finish`` would return or raise immediately.
    """

    training: Training
    step: int
    best_step: int | None
    temporary: Path
    finish: Callable[[], None]
    is_over: Callable[[], bool]


def _begin(training: Training, folder: Path, writer: ThreadPoolExecutor | None) -> _Pending:
    """Take the snapshot and start writing it: in a thread if there is one, else when ``finish`` is called."""
    accelerator, state = training.engine.accelerator, training.state
    temporary = folder / f".{checkpoint_name(state.step)}.tmp"
    snapshots: list[Snapshot] = []

    def prepare() -> None:
        shutil.rmtree(temporary, ignore_errors=True)
        with _naming(temporary):
            temporary.mkdir(parents=True)

    on_main(accelerator, prepare)
    gather_results(accelerator, lambda: snapshots.append(take_snapshot(training, copied=writer is not None)))
    write = partial(write_snapshot, snapshots.pop(), temporary, accelerator.process_index)
    if writer is None:
        return _Pending(training, state.step, state.best_step, temporary, write, lambda: True)
    future: Future[None] = writer.submit(write)
    return _Pending(training, state.step, state.best_step, temporary, future.result, future.done)


def take_snapshot(training: Training, *, copied: bool) -> Snapshot:
    """This process's part of the state: all of it on the main process; if sharded, every n-th tensor on each of n.

    So no process holds or writes more than its part of a state too large for one. All processes must call it.

    Args:
        training: the state to save.
        copied: whether the snapshot shares no memory that training changes. If not, it must be written before training
            continues.
    """
    engine, accelerator = training.engine, training.engine.accelerator
    rank, num_writers = accelerator.process_index, accelerator.num_processes if engine.sharded else 1
    weights = {
        name: _on_host(tensor.detach(), copied).contiguous()
        for index, (name, tensor) in enumerate(engine.trained_state())
        if index % num_writers == rank
    }
    state = {
        index: {name: _on_host(value, copied) for name, value in values.items()}
        for index, values in engine.optimizer_state()
        if index % num_writers == rank
    }
    files: Snapshot = {random_file(rank): random_states()}
    if rank < num_writers:
        files[of_process(WEIGHTS, rank)], files[of_process(OPTIMIZER, rank)] = weights, {"state": state}
    if accelerator.is_main_process:
        files |= _main_files(training, state)
    return files


def write_snapshot(snapshot: Snapshot, folder: Path, rank: int) -> None:
    """Write the files of one process, and their list last: once it exists, the others are on disk.

    Raises:
        UnsavedError: a file can't be written.
    """
    listed = {}
    with _naming(folder):
        for name, content in snapshot.items():
            path = folder / name
            if path.suffix == ".safetensors":
                save_file(content, path)
            elif path.suffix == ".pt":
                torch.save(content, path)
            else:
                path.write_text(content, encoding="utf-8")
            sync(path)
            listed[name] = {"size": path.stat().st_size, "sha256": sha256(path)}
        incomplete = folder / f"{_listing(rank)}.tmp"
        incomplete.write_text(json.dumps(listed), encoding="utf-8")
        incomplete.rename(folder / _listing(rank))


def _main_files(training: Training, optimizer_state: Mapping[int, Any]) -> Snapshot:
    scaler = training.engine.accelerator.scaler
    small = {
        "learning_rate": training.learning_rate.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "param_groups": training.engine.optimizer_groups(),
        "rollout_state": training.system.rollout_state() if offers(training.system, HasRolloutState) else {},
    }
    small = copy.deepcopy(small)  # These are objects that training continues with.
    optimizer = {"state": optimizer_state, "param_groups": small.pop("param_groups")}
    rollout_state = small.pop("rollout_state")
    return {
        OPTIMIZER: {"optimizer": optimizer, **small},
        **({ROLLOUT_STATE: rollout_state} if rollout_state else {}),
        **({REPLAY: training.replay.dump()} if training.replay is not None else {}),
        **({CURRICULUM: training.curriculum.dump()} if training.curriculum is not None else {}),
        STATE: training.state.as_json(),
        CONFIG: training.config_yaml,
        **({PROMPTS: json.dumps(training.prompts, indent=2) + "\n"} if training.prompts else {}),
    }


def _on_host(value: Any, copied: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return value
    # A view, e.g. of a gathered tensor, would be saved with all of its storage.
    is_view = value.untyped_storage().nbytes() != value.nbytes
    return value.to("cpu", copy=copied or is_view)


def _publish_together(accelerator: Accelerator, pending: _Pending, folder: Path) -> Path:
    try:
        gather_results(accelerator, pending.finish)
        return on_main(accelerator, lambda: _publish(pending.temporary, folder, accelerator.num_processes))
    except (UnsavedError, RankError):
        if accelerator.is_main_process:  # frees space on a full disk
            shutil.rmtree(pending.temporary, ignore_errors=True)
        raise


def _publish(temporary: Path, folder: Path, num_processes: int) -> Path:
    """List what the processes wrote in the manifest, and give the folder its name."""
    final = folder / temporary.name.removeprefix(".").removesuffix(".tmp")
    with _naming(temporary):
        files: dict[str, Any] = {}
        for rank in range(num_processes):
            listing = temporary / _listing(rank)
            files |= json.loads(listing.read_text(encoding="utf-8"))
            listing.unlink()
        manifest = {"format": FORMAT, "files": dict(sorted(files.items()))}
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        rename_into_place(temporary, final)
    return final


def _await_listings(temporary: Path, num_processes: int) -> None:
    """Wait a while for the processes that are still writing.

    Raises:
        TimeoutError: names those that have not written their part.
    """
    end = time.monotonic() + RESCUE_SECONDS
    while missing := [rank for rank in range(num_processes) if not (temporary / _listing(rank)).exists()]:
        if time.monotonic() > end:
            raise TimeoutError(f"process {', '.join(map(str, missing))} did not write its part")
        time.sleep(0.05)


def _listing(rank: int) -> str:
    return f".files-{rank}.json"


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turn the libraries' various errors for files that can't be written into one."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch's writer has no error class of its own, but names the place in its sources where it failed.
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        there = next(path for path in folder.parents if path.exists())
        free = shutil.disk_usage(there).free
        raise UnsavedError(f"the checkpoint {folder} could not be written ({free} bytes are free): {error}") from error
