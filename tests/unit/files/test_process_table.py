"""Which process a number means."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from astra_accel.files.process_table import SAME_START, machine, own_start, process_exists, process_is_alive


def test_one_machine_has_one_name() -> None:
    code = "from astra_accel.files.process_table import machine; print(machine())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == machine()


def test_this_process_is_there_since_it_began() -> None:
    assert own_start() <= time.time()
    assert process_exists(os.getpid())
    assert process_is_alive(os.getpid(), own_start())


def test_another_process_of_the_same_number_is_not_the_same_process() -> None:
    assert not process_is_alive(os.getpid(), own_start() - 2 * SAME_START)


def test_a_process_that_ended_is_not_alive_even_while_its_number_is_taken() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    started = time.time()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not waited for yet
    assert process_exists(process.pid)
    assert not process_is_alive(process.pid, started)
    process.wait()
    assert not process_exists(process.pid)
