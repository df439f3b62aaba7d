"""Locks on DeepSpeed's builds: whose they are, which are removed, and what is told meanwhile."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from astra_accel.distributed import op_builds
from astra_accel.distributed.op_builds import BuildLockError, build_alone, find_lock, find_locks, wait_for_lock
from astra_accel.doctor.diagnosis import diagnose
from astra_accel.doctor.text import as_text

# As torch's FileBaton takes it, and keeps it open while it builds.
HOLD = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print('held', flush=True); time.sleep(600)"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an operation, on a file system of this machine alone."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(op_builds, "_all_is_seen", lambda path: True)
    made = tmp_path / "cpu_adam"
    made.mkdir()
    return made


@pytest.fixture
def builder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()


def test_the_lock_of_a_live_build_is_waited_for_and_told(
    folder: Path, builder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    lock = find_lock(folder / "lock")
    assert lock is not None
    assert (lock.holder, lock.abandoned) == (builder.pid, False)
    waiting = threading.Thread(target=wait_for_lock, args=("cpu_adam", folder / "lock"))
    waiting.start()
    time.sleep(0.5)
    assert waiting.is_alive()
    assert (folder / "lock").exists()
    assert f"waiting for a build of cpu_adam: {folder / 'lock'}, " in caplog.text
    assert f"held by process {builder.pid}" in caplog.text
    (folder / "lock").unlink()  # it is done
    waiting.join(timeout=10)
    assert not waiting.is_alive()


def test_the_lock_of_a_killed_build_is_removed_at_once(
    folder: Path, builder: subprocess.Popen[str], caplog: pytest.LogCaptureFixture
) -> None:
    kill(builder)
    assert (folder / "lock").exists()
    wait_for_lock("cpu_adam", folder / "lock")
    assert "waiting for a build" not in caplog.text
    assert not (folder / "lock").exists()
    assert "left by a build that was killed" in caplog.text


def test_a_compiler_that_goes_on_after_its_build_was_killed_holds_the_lock(folder: Path) -> None:
    (folder / "lock").touch()
    (folder / "ninja").symlink_to("/bin/sleep")
    compiler = subprocess.Popen([folder / "ninja", "600"], cwd=folder)
    try:
        lock = find_lock(folder / "lock")
        assert lock is not None
        assert lock.holder == compiler.pid
    finally:
        compiler.kill()
        compiler.wait()


def test_a_lock_that_another_machine_may_hold_is_left_and_ends_in_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_builds, "_all_is_seen", lambda path: False)
    (folder / "lock").touch()
    with pytest.raises(BuildLockError, match=rf"another machine or container .* rm '{folder / 'lock'}'"):
        wait_for_lock("cpu_adam", folder / "lock", patience=0.3)
    assert (folder / "lock").exists()


def test_on_a_shared_disk_a_build_that_was_killed_here_is_known_by_its_record(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that builds notes its machine and number, and is killed; then one of another machine."""
    monkeypatch.setattr(op_builds, "_all_is_seen", lambda path: False)
    code = f"""
import os, pathlib
from astra_accel.distributed.op_builds import build_alone
folder = pathlib.Path({str(folder)!r})
build_alone("cpu_adam", folder, lambda: ((folder / "lock").touch(), os.kill(os.getpid(), 9)))
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -9
    record = folder / op_builds.RECORD
    noted = json.loads(record.read_text(encoding="utf-8"))
    wait_for_lock("cpu_adam", folder / "lock", patience=0.3)
    assert list(folder.glob("lock")) + list(folder.glob(op_builds.RECORD)) == []

    (folder / "lock").touch()
    record.write_text(json.dumps(noted | {"machine": "another boot", "host": "node7"}), encoding="utf-8")
    with pytest.raises(BuildLockError, match=f"made by process {noted['pid']} on node7, which may be building"):
        wait_for_lock("cpu_adam", folder / "lock", patience=0.3)
    assert (folder / "lock").exists()


def test_a_build_that_ends_leaves_no_record(folder: Path) -> None:
    seen: list[bool] = []
    build_alone("cpu_adam", folder, lambda: seen.append((folder / op_builds.RECORD).exists()))
    assert seen == [True]
    assert not (folder / op_builds.RECORD).exists()


@pytest.mark.parametrize(
    ("kind", "table", "seen"),
    [("ext4", "first", True), ("ext4", "own", False), ("overlay", "own", True), ("nfs4", "first", False)],
)
def test_all_users_of_a_file_are_seen_on_local_disks(
    kind: str, table: str, seen: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A container with a process table of its own may share an ext4 folder with others, but no overlay."""
    monkeypatch.setattr(op_builds, "_file_system", lambda path: kind)
    own = Path("/proc/self/ns/pid").stat().st_ino
    monkeypatch.setattr(op_builds, "FIRST_PROCESS_TABLE", own if table == "first" else own + 1)
    assert op_builds._all_is_seen(tmp_path) is seen


def test_one_process_builds_and_the_others_wait_for_it(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    building: list[int] = []
    at_once: list[int] = []

    def load() -> None:
        building.append(1)
        at_once.append(len(building))
        time.sleep(0.3)
        (folder / "cpu_adam.so").touch()
        building.pop()

    threads = [threading.Thread(target=build_alone, args=("cpu_adam", folder, load)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert at_once == [1, 1, 1]
    assert caplog.text.count(f"DeepSpeed builds cpu_adam in {folder}, once") == 1


def test_a_build_that_takes_long_says_where_its_lock_is(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op_builds, "TELL_EVERY", 0.1)
    build_alone("cpu_adam", folder, lambda: time.sleep(0.4))
    assert f"delete {folder / 'lock'}" in caplog.text


def test_the_doctor_says_who_holds_a_lock_and_what_to_do(folder: Path, builder: subprocess.Popen[str]) -> None:
    assert f"cpu_adam  {folder / 'lock'}, " in as_text(diagnose())
    assert f"held by process {builder.pid}: wait for it" in as_text(diagnose())
    kill(builder)
    found = diagnose()
    assert [(lock.name, lock.abandoned) for lock in found.build_locks] == [("cpu_adam", True)]
    assert f"rm '{folder / 'lock'}'" in as_text(found)
    (folder / "lock").unlink()
    assert "Builds" not in as_text(diagnose())


def test_locks_are_found_in_the_folder_of_the_home_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    lock = tmp_path / "torch_extensions" / "py311_cpu" / "cpu_adam" / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    os.utime(lock, (time.time() - 100, time.time() - 100))
    (found,) = find_locks()
    assert found.path == lock
    assert 100 <= found.seconds < 200
