import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from astra_accel.errors import ConfigurationError
from astra_accel.files import run_lock
from astra_accel.files.run_lock import LOCK, FolderInUseError, LockLostError, RunLock, check_nesting
from tests.helpers.waiting import wait_until

HOLD = """
import sys, time
from pathlib import Path
from astra_accel.files import run_lock
if sys.argv[2] == "elsewhere":
    run_lock.machine = lambda: "another machine"
    run_lock.platform.node = lambda: "node17"
run_lock.RunLock(Path(sys.argv[1]), beat_seconds=0.05).acquire()
print("held", flush=True)
time.sleep(60)
"""


def lock(folder, **seconds):
    return RunLock(folder, **{"beat_seconds": 0.05, "stale_seconds": 0.6} | seconds)


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the lock of a folder, on this machine or as if on another one."""
    processes = []

    def start(place="here"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path), place],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "SLURM_JOB_ID": "4711"},
        )
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


class TestOnOneMachine:
    def test_the_second_is_told_who_holds_the_folder_at_once(self, tmp_path, hold):
        process = hold()

        with pytest.raises(FolderInUseError) as caught:
            lock(tmp_path, stale_seconds=10**6).acquire()  # a dead holder would be waited for that long

        assert isinstance(caught.value, ConfigurationError)  # which commands tell in a line, with exit code 2
        message = str(caught.value)
        assert "\n" not in message
        assert f"training.output_dir {tmp_path} is in use: process {process.pid} on " in message
        assert "SLURM_JOB_ID 4711" in message

    def test_a_killed_holder_keeps_nothing(self, tmp_path, hold):
        process = hold()
        process.send_signal(signal.SIGKILL)  # and nobody waits for it: a zombie keeps nothing either

        mine = lock(tmp_path, stale_seconds=60)

        def acquired():
            with suppress(FolderInUseError):
                mine.acquire()
            return mine.held

        wait_until(acquired, "the lock")
        mine.verify()
        mine.release()

    def test_a_stopped_holder_keeps_the_folder_however_long(self, tmp_path, hold):
        hold().send_signal(signal.SIGSTOP)
        time.sleep(0.3)

        with pytest.raises(FolderInUseError):
            lock(tmp_path, stale_seconds=0.1).acquire()

    def test_a_number_that_another_process_has_by_now_is_no_holder(self, tmp_path):
        first = lock(tmp_path)
        first.acquire()
        holder = json.loads((tmp_path / LOCK).read_text())
        first.release()
        (tmp_path / LOCK).write_text(json.dumps(holder | {"started": holder["started"] - 3600}))

        lock(tmp_path, stale_seconds=60).acquire()

    def test_of_many_that_ask_at_once_one_gets_it(self, tmp_path):
        locks = [lock(tmp_path) for _ in range(16)]
        start, outcomes = threading.Barrier(16), []

        def ask(one):
            start.wait()
            try:
                one.acquire()
                outcomes.append("got it")
            except FolderInUseError:
                outcomes.append("in use")

        threads = [threading.Thread(target=ask, args=(one,)) for one in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["got it"] + ["in use"] * 15
        (holder,) = (one for one in locks if one.held)
        holder.verify()
        holder.release()


class TestAcrossMachines:
    def test_a_live_holder_is_never_taken_over(self, tmp_path, hold):
        hold("elsewhere")

        with pytest.raises(FolderInUseError, match="on node17"):
            lock(tmp_path, stale_seconds=60).acquire()

    def test_a_killed_holder_is_waited_for_and_then_taken_over(self, tmp_path, hold):
        hold("elsewhere").kill()

        began = time.monotonic()
        mine = lock(tmp_path)
        mine.acquire()

        assert time.monotonic() - began >= 0.6
        mine.verify()

    def test_a_holder_that_was_taken_for_dead_stops(self, tmp_path, hold, monkeypatch):
        mine = lock(tmp_path)
        monkeypatch.setattr(mine, "_beat", lambda *_: None)  # as if suspended
        mine.acquire()
        mine.verify()
        monkeypatch.setattr(run_lock, "machine", lambda: "another machine")
        other = lock(tmp_path)
        other.acquire()

        with pytest.raises(LockLostError, match=r"has taken it over.*last checkpoint is whole"):
            mine.verify()
        mine.release()
        other.verify()  # what the first releases is not the second's
        other.release()
        assert not (tmp_path / LOCK).exists()

    def test_takers_of_a_dead_run_s_lock_don_t_take_it_from_one_another(self, tmp_path, hold):
        hold("elsewhere").kill()
        # Long enough that the one which gets it beats in time on a busy machine.
        locks, outcomes = [lock(tmp_path, stale_seconds=5) for _ in range(8)], []

        def take(one):
            try:
                one.acquire()
                outcomes.append("got it")
            except FolderInUseError:
                outcomes.append("in use")

        threads = [threading.Thread(target=take, args=(one,)) for one in locks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["got it"] + ["in use"] * 7
        next(one for one in locks if one.held).verify()

    def test_a_quicker_run_s_lock_is_not_touched(self, tmp_path, monkeypatch):
        """If it were renamed only for a moment, a third run would find the folder free."""
        quicker = lock(tmp_path)
        quicker.acquire()
        monkeypatch.setattr(run_lock.os, "rename", lambda *_: pytest.fail("renamed"))

        assert lock(tmp_path)._take_away("what the dead run's file said") == 0.0

        quicker.verify()
        quicker.release()
        assert list(tmp_path.iterdir()) == []

    def test_a_lock_whose_holder_beats_after_all_is_given_back(self, tmp_path):
        alive = lock(tmp_path)
        alive.acquire()

        lock(tmp_path)._rename_away("what the file said before the beat")

        alive.verify()
        alive.release()
        assert list(tmp_path.iterdir()) == []

    def test_what_another_run_has_claimed_is_left_to_it_unless_it_dies(self, tmp_path, hold, monkeypatch):
        holder = hold()
        holder.kill()
        holder.wait()
        before = (tmp_path / LOCK).read_text()
        claims = []

        def claimed_first(path, *flags):
            """Another run's claim on the dead run's lock, which comes a moment before ours."""
            if not claims and path != tmp_path / LOCK:
                claims.append(path)
                path.touch()
            return os_open(path, *flags)

        os_open = os.open
        monkeypatch.setattr(run_lock.os, "open", claimed_first)
        mine = lock(tmp_path)

        assert mine.attempt() > 0
        assert (tmp_path / LOCK).read_text() == before
        mine.acquire()
        mine.verify()
        mine.release()
        assert list(tmp_path.iterdir()) == []

    def test_time_in_which_nobody_watched_does_not_count(self):
        watched = run_lock._Watched()
        watched.changes("dead", time.monotonic(), beat_seconds=10.0)

        watched.changes("dead", time.monotonic() + 3600, beat_seconds=10.0)

        assert watched.seconds <= 10.0


class TestTheFile:
    def test_a_deleted_lock_stops_its_holder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(run_lock, "MISSING_SECONDS", 0.05)
        mine = lock(tmp_path)
        mine.acquire()
        (tmp_path / LOCK).unlink()

        with pytest.raises(LockLostError, match="its lock file is gone"):
            mine.verify()

    def test_the_heartbeat_changes_nothing_but_its_number(self, tmp_path):
        mine = lock(tmp_path, beat_seconds=0.01)
        mine.acquire()
        before = json.loads((tmp_path / LOCK).read_text())
        wait_until(lambda: json.loads((tmp_path / LOCK).read_text())["beat"] != before["beat"], "a beat")
        assert json.loads((tmp_path / LOCK).read_text()) | {"beat": before["beat"]} == before
        mine.release()

    def test_one_that_was_never_written_is_taken_over_after_a_while(self, tmp_path):
        (tmp_path / LOCK).touch()  # its run died in between

        lock(tmp_path).acquire()

    def test_releasing_leaves_no_trace_of_a_folder_that_was_made_for_it(self, tmp_path):
        mine = lock(tmp_path / "a" / "b")
        mine.acquire()

        mine.release()

        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_can_t_be_written_to_is_named(self):
        with pytest.raises(ConfigurationError, match=r"^training\.output_dir /proc/none/run can't be written to"):
            lock(run_lock.Path("/proc/none/run")).acquire()


def test_folders_of_live_runs_must_not_lie_inside_one_another(tmp_path, hold):
    hold()

    with pytest.raises(FolderInUseError, match="lie inside one another"):
        check_nesting(tmp_path / "rollouts" / "second", "training.output_dir")
    with pytest.raises(FolderInUseError, match="lie inside one another"):
        check_nesting(tmp_path.parent, "training.output_dir", parts=(tmp_path.name,))
    check_nesting(tmp_path.parent / "beside", "training.output_dir", parts=("tester",))
