"""What all tests share."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

from tests.helpers.plain import reset_accelerate

# The models of the tests are tiny: threads cost them more than they bring, above all where processes share cores.
torch.set_num_threads(1)

# A slow moment of the machine is no failure, and a failure is one everywhere.
settings.register_profile("tests", deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _own_accelerate_state() -> Iterator[None]:
    """Accelerate keeps its state for the whole process: each test begins, and leaves, without any."""
    reset_accelerate()
    yield
    reset_accelerate()


BUILD = """
import logging
logging.basicConfig(level=logging.INFO, format="%(message)s")
from astra_accel.distributed.op_builds import build_for_cpu_processes, build_for_offload
build_for_cpu_processes()
build_for_offload("adam")
"""
BUILD_SECONDS = 1800
"""A compiler on a busy machine takes longer than a test with processes may."""


@pytest.fixture(scope="session")
def built_for_offload(request: pytest.FixtureRequest) -> None:
    """What steps optimizers on the host is compiled before the time of a test runs; says what it waits for."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    assert capture is not None
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
    with capture.global_and_fixture_disabled():
        subprocess.run([sys.executable, "-c", BUILD], env=environment, check=True, timeout=BUILD_SECONDS)
