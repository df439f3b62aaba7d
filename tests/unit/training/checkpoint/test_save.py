import errno
import json
import os
import threading
from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import set_seed

from astra_accel.config import TrainingConfiguration
from astra_accel.training.checkpoint import layout
from astra_accel.training.checkpoint import save as saving
from astra_accel.training.checkpoint.layout import UnsavedError, checkpoint_name, list_checkpoints
from astra_accel.training.checkpoint.load import load_checkpoint
from astra_accel.training.checkpoint.save import CheckpointSaver
from astra_accel.training.checkpoint.verify import verify_checkpoint
from tests.helpers.checkpoints import FILES, build, read_state, save_checkpoint, update
from tests.helpers.processes import run_processes
from tests.helpers.waiting import wait_until


class TestSaving:
    def test_a_step_that_is_saved_again_replaces_the_first(self, saved):
        training = build()
        update(training, 3)
        training.state.update = 99
        assert save_checkpoint(training, saved.parent) == saved

        assert read_state(saved).update == 99
        assert [path.name for path in saved.parent.iterdir()] == ["step-000003"]

    def test_what_an_earlier_attempt_left_is_no_part_of_it(self, tmp_path):
        for name in (".step-000000.tmp", ".step-000000.outdated"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "rubbish").touch()
        training = build()
        save_checkpoint(training, tmp_path)

        path = save_checkpoint(training, tmp_path)

        assert {file.name for file in path.iterdir()} == FILES
        assert [path.name for path in tmp_path.iterdir()] == ["step-000000"]

    @pytest.mark.parametrize("number", [1, 2])
    @pytest.mark.parametrize("step", [3, 4], ids=["the same step", "a new step"])
    def test_a_full_disk_leaves_the_earlier_ones_whole_and_no_half_one(self, saved, monkeypatch, number, step):
        training = build()
        training.state.step = step
        save, calls = torch.save, []

        def fill_disk(value, path):
            calls.append(path)
            if len(calls) == number:
                path.write_bytes(b"half a fi")
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            save(value, path)

        with monkeypatch.context() as patch:
            patch.setattr(saving.torch, "save", fill_disk)
            with pytest.raises(OSError, match="No space left on device"):
                save_checkpoint(training, saved.parent)

        assert len(calls) == number
        assert list_checkpoints(saved.parent) == [saved]
        assert not [path for path in saved.parent.iterdir() if path.name.startswith("step-") and path != saved]
        assert read_state(saved).update == 3
        load_checkpoint(build(), saved)

        training = build()
        training.state.step = step
        save_checkpoint(training, saved.parent)
        assert [path.name for path in list_checkpoints(saved.parent)] == sorted({"step-000003", checkpoint_name(step)})
        assert read_state(saved.parent / checkpoint_name(step)).update == 0

    def test_a_failure_before_the_name_is_given_leaves_the_old_one(self, saved, monkeypatch):
        training = build()
        training.state.step = 3

        def fail(path):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(layout, "sync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            save_checkpoint(training, saved.parent)

        assert list_checkpoints(saved.parent) == [saved]
        assert read_state(saved).update == 3

    def test_everything_is_on_disk_before_it_gets_its_name(self, tmp_path, monkeypatch):
        synced, renamed = [], []
        for module in (layout, saving):
            monkeypatch.setattr(
                module,
                "sync",
                lambda path: synced.append((path.name, [name for name in renamed if name.startswith("step-")])),
            )
        rename = os.rename
        monkeypatch.setattr(layout.os, "rename", lambda a, b: (renamed.append(b.name), rename(a, b)))

        save_checkpoint(build(), tmp_path)

        assert {name for name, before in synced if not before} == FILES | {".step-000000.tmp"}
        assert synced[-1] == (tmp_path.name, ["step-000000"])


def saver_of(training, folder, **settings):
    config = TrainingConfiguration(**{"async_save": True} | settings)
    return CheckpointSaver(training.engine.accelerator, folder, config)


@pytest.fixture
def held_up(monkeypatch):
    """An event until which no thread writes a file; set it to let them."""
    go_on, save = threading.Event(), torch.save

    def slow(content, path):
        if threading.current_thread() is not threading.main_thread():
            assert go_on.wait(30)
        save(content, path)

    monkeypatch.setattr(saving.torch, "save", slow)
    yield go_on
    go_on.set()


def fill_disk(monkeypatch):
    def fail(content, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(saving.torch, "save", fail)


class TestSavingWhileTrainingGoesOn:
    def test_the_files_are_those_of_the_moment_to_the_bit(self, tmp_path, held_up):
        """What training does meanwhile to weights, moments, schedule, counters and memory is in none of them."""
        folders = [tmp_path / name for name in ("at once", "behind")]
        for folder in folders:
            training = build()
            update(training, 2)
            training.system = Remembering()
            set_seed(5)
            saver = saver_of(training, folder, async_save=folder.name == "behind")
            assert saver.save(training)
            update(training, 2)
            training.system.memory["numbers"].append(7.0)
            torch.rand(1)
            held_up.set()
            assert saver.settle()

        one, other = (folder / "step-000002" for folder in folders)
        verify_checkpoint(other)
        assert hashes(one) == hashes(other)
        assert set(hashes(one)) == FILES - {"manifest.json"} | {"rollout_state.pt"}
        assert {path.name for path in other.iterdir()} == {path.name for path in one.iterdir()}
        assert read_state(other).update == 2

    def test_saving_waits_for_no_disk_and_the_folder_gets_its_name_once_all_is_written(self, tmp_path, held_up):
        training = build()
        saver = saver_of(training, tmp_path)

        assert saver.save(training)
        saver.poll()
        assert list_checkpoints(tmp_path) == []
        held_up.set()
        wait_until(lambda: saver.poll() or list_checkpoints(tmp_path), "a checkpoint")

        assert [path.name for path in tmp_path.iterdir()] == ["step-000000"]
        assert {path.name for path in (tmp_path / "step-000000").iterdir()} == FILES
        load_checkpoint(build(), tmp_path / "step-000000")

    def test_the_next_save_waits_for_the_one_before(self, tmp_path, held_up):
        training = build()
        saver = saver_of(training, tmp_path)
        saver.save(training)
        update(training)
        threading.Timer(0.1, held_up.set).start()

        saver.save(training)

        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000"]
        assert saver.settle()
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000", "step-000001"]

    def test_one_may_be_waited_for(self, tmp_path):
        training = build()

        assert saver_of(training, tmp_path).save(training, wait=True)

        assert [path.name for path in tmp_path.iterdir()] == ["step-000000"]

    def test_old_ones_go_once_the_new_one_has_its_name(self, tmp_path, held_up):
        training = build()
        saver = saver_of(training, tmp_path, save_total_limit=1)
        held_up.set()
        saver.save(training, wait=True)
        held_up.clear()
        update(training)
        saver.save(training)

        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000"]
        held_up.set()
        saver.settle()
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000001"]

    @pytest.mark.parametrize("report", ["poll", "settle", "save"])
    def test_a_full_disk_is_told_where_the_run_next_asks(self, tmp_path, monkeypatch, report):
        training = build()
        saver = saver_of(training, tmp_path)
        with monkeypatch.context() as patch:
            fill_disk(patch)
            saver.save(training)
            with pytest.raises(UnsavedError, match=r"\.step-000000\.tmp could not be written .*No space left"):
                poll_until_raised(saver) if report == "poll" else _ask(saver, report, training)

        assert list(tmp_path.iterdir()) == []
        assert saver.save(training, wait=True)

    def test_a_run_may_go_on_without_and_forgets_a_best_that_there_is_not(self, tmp_path, monkeypatch, caplog):
        training = build()
        training.state.best_step, training.state.best_value = 0, 0.5
        saver = saver_of(training, tmp_path, stop_if_unsaved=False)
        with monkeypatch.context() as patch:
            fill_disk(patch)
            assert saver.save(training)
            update(training)
            assert not saver.settle()

        assert "could not be written" in caplog.text
        assert training.state.best_step is None
        assert training.state.best_value is None
        assert saver.save(training, wait=True)
        assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000001"]

    def test_behind_a_failure_of_the_run_it_is_published_all_the_same(self, tmp_path, held_up):
        training = build()
        saver = saver_of(training, tmp_path)
        threading.Timer(0.1, held_up.set).start()

        with pytest.raises(ZeroDivisionError):
            fail_after_saving(saver, training)

        assert [path.name for path in tmp_path.iterdir()] == ["step-000000"]
        verify_checkpoint(tmp_path / "step-000000")

    def test_a_failure_of_both_is_that_of_the_run_and_the_other_is_told(self, tmp_path, monkeypatch, caplog):
        training = build()
        saver = saver_of(training, tmp_path)
        fill_disk(monkeypatch)

        with pytest.raises(ZeroDivisionError):
            fail_after_saving(saver, training)

        assert list_checkpoints(tmp_path) == []
        assert "the checkpoint of step 0 is not complete" in caplog.text

    def test_another_process_that_is_gone_is_not_waited_for_for_long(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(saving, "RESCUE_SECONDS", 0.2)
        training = build()
        saver = saver_of(training, tmp_path)

        with pytest.raises(ZeroDivisionError):
            fail_after_saving(saver, training, accelerator=SimpleNamespace(num_processes=2, is_main_process=True))

        assert list_checkpoints(tmp_path) == []
        assert "process 1 did not write its part" in caplog.text


class Remembering:
    """A system whose rollouts depend on what it remembers."""

    def __init__(self):
        self.memory = {"numbers": [0.5]}

    def rollout_state(self):
        return self.memory

    def load_rollout_state(self, state):
        self.memory = state


def hashes(path):
    return {name: file["sha256"] for name, file in json.loads((path / "manifest.json").read_text())["files"].items()}


def fail_after_saving(saver, training, accelerator=None):
    with saver.rescuing():
        saver.save(training)
        saver.accelerator = accelerator or saver.accelerator
        raise ZeroDivisionError


def poll_until_raised(saver):
    wait_until(saver.poll, "the error")


def _ask(saver, how, training):
    saver.settle() if how == "settle" else saver.save(training)


def _save_both_ways(folder, kind):
    """Save at once, and after further updates; whether nothing had its name before all processes said so."""
    training = build(launch_kind=kind)
    update(training, 2)
    save_checkpoint(training, folder / "at once")
    saver = saver_of(training, folder / "behind")
    saver.save(training)
    update(training, 2)
    before = list_checkpoints(folder / "behind")
    assert saver.settle()
    return len(before)


@pytest.mark.parametrize("kind", ["ddp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("fsdp2", "zero2"))])
def test_two_processes_write_the_same_bits_both_ways(tmp_path, kind):
    assert run_processes(2, _save_both_ways, tmp_path, kind) == [0, 0]
    one, other = (tmp_path / name / "step-000002" for name in ("at once", "behind"))
    verify_checkpoint(other)
    assert hashes(one) == hashes(other)
    shares = {"trained-1.safetensors", "optimizer-1.pt"} if kind != "ddp" else set()
    assert set(hashes(other)) == FILES - {"manifest.json"} | shares | {"random_states_1.pt"}


def _fail_on_process_1(folder):
    """What each process learns of a disk that is full for process 1 alone, and whether the run can continue saving."""
    training = build()
    saver = saver_of(training, folder)
    write = saving.write_snapshot

    def failing(snapshot, temporary, rank):
        if rank == 1:
            raise UnsavedError("the disk of process 1 is full")
        write(snapshot, temporary, rank)

    saving.write_snapshot = failing
    saver.save(training)
    try:
        poll_until_raised(saver)
    except (UnsavedError, saving.RankError) as error:
        told = f"{type(error).__name__}: {error}"
    saving.write_snapshot = write
    left = sorted(path.name for path in folder.iterdir())
    return told, left, saver.save(training, wait=True)


def test_what_one_process_could_not_write_all_of_them_learn(tmp_path):
    main, other = run_processes(2, _fail_on_process_1, tmp_path)
    assert main == ("RankError: process 1 failed with UnsavedError: the disk of process 1 is full", [], True)
    assert other[0] == "UnsavedError: the disk of process 1 is full"
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-000000"]
