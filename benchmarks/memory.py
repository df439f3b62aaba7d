"""How much memory a LoRA run takes, next to the same run a node and a sequence at a time.

    python benchmarks/memory.py [--episodes 8] [--width 2] [--depth 3] [--tokens 32] [--batch 16] [--steps 2]

Each side is a process of its own that trains for some steps, and its figure is the most memory that the process ever
had resident (``ru_maxrss``), libraries and weights with it, in GB of 10^9 bytes. Ours is ``examples/train.py`` with
the project's defaults; the reference is ``plain.py``, which keeps the graph of a whole batch until its backward, as a
step on a batch does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import TRAIN, first_prompts, interleaved, medians, parse, report, train_arguments

FOLDER = Path(__file__).parent
# A new process starts out with the peak of the one that made it, so a small one stands between.
LAUNCHER = """
import resource, subprocess, sys
failed = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode != 0
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(failed)
"""
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the ratio."""
    options = parse(__doc__, arguments, width=2, depth=3, batch=16, steps=2, repeats=1)
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.json"
        prompts.write_text(json.dumps(first_prompts(options)), encoding="utf-8")
        commands = {
            "reference": [FOLDER / "plain.py", *_plain_arguments(options, prompts)],
            "ours": [TRAIN, *train_arguments(options, prompts, Path(folder) / "run")],
        }
        measured = interleaved(
            {name: lambda command=command: peak_gb(command) for name, command in commands.items()}, options.repeats
        )
    most = medians(measured)
    return report("memory", options, measured, {"reference / ours": most["reference"] / most["ours"]}, unit="GB")


def peak_gb(command: Sequence[str | Path]) -> float:
    """Run a Python script to its end; the most memory it had resident, in GB.

    Raises:
        RuntimeError: it failed.
    """
    launched = subprocess.run(
        [sys.executable, "-c", LAUNCHER, sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if launched.returncode != 0:
        raise RuntimeError(f"{Path(command[0]).name} failed; its error is above")
    return int(launched.stdout) * RSS_UNIT / 1e9


def _plain_arguments(options: argparse.Namespace, prompts: Path) -> list[str]:
    names = ("model", "dtype", "episodes", "width", "depth", "tokens", "batch", "steps")
    arguments = [text for name in names for text in (f"--{name}", str(getattr(options, name)))]
    return [*arguments, "--prompts", str(prompts), *(["--full"] if options.full else [])]


if __name__ == "__main__":
    main()
