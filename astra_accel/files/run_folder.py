"""The output folder of a run: what is in it, and whether a run may write there."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from astra_accel.config import TrainingConfiguration
from astra_accel.files.folders import check_writable
from astra_accel.files.run_lock import check_nesting

PACKAGES = ("astra-accel", "torch", "accelerate", "transformers", "peft", "datasets", "numpy")
CONFIG, METRICS, ROLLOUTS, CHECKPOINTS, TESTER = "config.yaml", "metrics.jsonl", "rollouts", "checkpoints", "tester"
PARTS = (CONFIG, METRICS, ROLLOUTS, CHECKPOINTS, TESTER)
JOURNAL = "journal"
"""The folder of what endpoints were asked, which is there before a run begins."""
# What else a run may leave: batches of an update that was not made, evaluations, a report, TensorBoard's files, its
# status.
EVALUATIONS = ("evaluation", "evaluation_untrained")
EXTRAS = ("non_finite", *EVALUATIONS, "report.html", "report.md", "astra_accel", "status.json")
WRITTEN = {
    ROLLOUTS: ("step-*.parquet", "step-*.tmp"),
    CHECKPOINTS: ("step-*", ".step-*"),
    "non_finite": ("*.pt",),
    "astra_accel": ("events.out.tfevents.*", "[0-9]*"),
}
"""The names that a run writes in those of its folders that may be links to folders with other files."""
FIELD = "training.output_dir"


class OutputFolderError(FileExistsError):
    """The output folder holds a run that would be mixed with the new one."""


def new_output_dir() -> Path:
    """Make a folder for a run that was given none. Runs that start in the same second each get their own.

    Raises:
        ConfigurationError: it can't be made.
    """
    name = Path("runs") / datetime.now().strftime("%Y%m%d-%H%M%S")
    check_writable(name.parent, f"{FIELD} is null, and the folder for new runs")
    number = 1
    while True:
        name.parent.mkdir(parents=True, exist_ok=True)
        path = name if number == 1 else name.with_name(f"{name.name}-{number}")
        try:
            path.mkdir()  # an existing one is another run's, even if both try at the same moment
        except FileExistsError:
            number += 1
        except FileNotFoundError:
            pass  # another run has just removed the empty runs/
        else:
            return path


def check_place(config: TrainingConfiguration) -> None:
    """Reject an output folder that can't be written to, or that another run is using.

    Raises:
        FolderInUseError, ConfigurationError: there is such a problem; names the field and the problem.
    """
    if config.output_dir is None:
        check_writable(Path("runs"), f"{FIELD} is null, and the folder for new runs")
        return
    check_nesting(config.output_dir, FIELD, (*PARTS, *EXTRAS))
    check_writable(config.output_dir, FIELD, (*PARTS, *EXTRAS))


def check_output_dir(config: TrainingConfiguration, resuming: bool, restarting: bool = False) -> None:
    """Check that the output folder is free.

    Args:
        config: the configuration that names the folder.
        resuming: whether the run continues from a checkpoint, so that the folder may hold anything.
        restarting: whether the run starts again after possibly being stopped before its first checkpoint. The folder
            may hold what it left, but no tester: that is the result of a run that ended.

    Raises:
        OutputFolderError: it holds a run; says how to resume or to overwrite it.
        NotADirectoryError: it is a file.
    """
    folder = config.output_dir
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"training.output_dir is {folder}, which is a file; expected a folder")
    found = [part for part in ((TESTER,) if restarting else PARTS) if (folder / part).exists()]
    if found and not resuming and not config.overwrite_output_dir:
        checkpoints = sorted((folder / CHECKPOINTS).glob("step-*"))
        resume = f"--resume {checkpoints[-1]}" if checkpoints else "(it has no checkpoint to resume from)"
        raise OutputFolderError(
            f"training.output_dir {folder} already holds a run ({', '.join(found)}). To resume it: {resume}. "
            f"To delete it: --training.overwrite_output_dir true. Or choose another folder"
        )


def environment() -> list[str]:
    """Versions, and the working folder's git revision if it has one, one per line."""
    lines = [f"python {platform.python_version()} on {platform.system()} {platform.machine()}"]
    for package in PACKAGES:
        try:
            lines.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            lines.append(f"{package} (not installed as a package)")
    try:
        revision = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        lines.append(f"git revision {revision}")
    except (OSError, subprocess.SubprocessError):
        pass  # no git or no repository: the line is left out
    return lines
