"""The line of bitsandbytes about the package kernels: read by those who use 4 bits on a CPU, and by nobody else."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.util import find_spec

import pytest

from astra_accel.models.kernel_notice import BEGINNING, LOGGER, KernelNotice


@pytest.fixture
def notice(monkeypatch):
    made = KernelNotice()
    monkeypatch.setattr(logging.getLogger(LOGGER), "filters", [made])  # without the one of this process
    return made


def test_that_line_alone_is_kept_back_until_it_is_wanted(notice, caplog):
    log = logging.getLogger(LOGGER)
    log.warning(f"{BEGINNING} from kernels-community: %s.", "No module named 'kernels'")
    log.warning("another warning")
    logging.getLogger("bitsandbytes").warning("one of another logger")
    assert caplog.messages == ["another warning", "one of another logger"]
    notice.tell()
    notice.tell()
    assert caplog.messages[2:] == [f"{BEGINNING} from kernels-community: No module named 'kernels'."]
    log.warning(f"{BEGINNING} again")
    assert caplog.messages[-1] == f"{BEGINNING} again"


PROGRAM = """
import sys
from astra_accel import HFASTSystem
from astra_accel.config import ModelConfiguration
HFASTSystem("tiny", "tiny")
print("now in 4 bits", file=sys.stderr)
model = ModelConfiguration(path="tiny", quantization="nf4")
HFASTSystem(model, model)
"""


@pytest.mark.slow
def test_a_fresh_process_says_it_only_once_a_model_of_4_bits_loads():
    functional = pytest.importorskip("bitsandbytes.functional", reason="the extra `quantization` is not installed")
    if not functional.has_avx512bf16() or find_spec("kernels") is not None:
        pytest.skip("bitsandbytes does not say it here: the CPU lacks AVX512-BF16, or kernels is installed")
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    before, after = done.stderr.split("now in 4 bits")
    assert BEGINNING not in before
    assert after.count(BEGINNING) == 1
