"""Whether two processes do twice the work in the time in which one does its own (weak scaling), on a CPU.

    python benchmarks/weak_scaling.py [--episodes 4] [--width 2] [--depth 2] [--tokens 16] [--batch 8] [--steps 3]
        [--repeats 3]

``examples/train.py`` as ``accelerate launch`` starts it, with one thread a process: one process with so many episodes
and such a batch, two with twice as many. Both measure themselves, by the seconds of a training step in
``metrics.jsonl``, whose first is left out. All prompts are the same one, so that it is not their lengths that differ.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from common import TRAIN, first_prompts, interleaved, medians, parse, report, train_arguments

CONFIGS = TRAIN.parents[1] / "accelerate_configs"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the ratio."""
    options = parse(__doc__, arguments, episodes=4, tokens=16, width=2, depth=2, batch=8, steps=3)
    figures: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.json"
        prompts.write_text(json.dumps(first_prompts(options)[:1]), encoding="utf-8")

        def measure(processes: int) -> float:
            lines = train(options, processes, prompts, Path(folder) / str(processes))
            figures[f"{processes} process(es)"] = _told(lines)
            return fmean(_seconds(line) for line in lines)

        measured = interleaved({"1 process": lambda: measure(1), "2 processes": lambda: measure(2)}, options.repeats)
    took = medians(measured)
    return report(
        "weak_scaling", options, measured, {"2 processes / 1": took["2 processes"] / took["1 process"]}, figures=figures
    )


def train(options: argparse.Namespace, processes: int, prompts: Path, run: Path) -> list[dict[str, Any]]:
    """Train on so many processes, each with the options' work; the figures of each training step but the first.

    Raises:
        RuntimeError: the run failed.
    """
    scaled = argparse.Namespace(
        **{**vars(options), "episodes": options.episodes * processes, "batch": options.batch * processes}
    )
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_cpu_threads_per_process", "1"]
    command = [*launcher, "--config_file", str(CONFIGS / f"cpu_{processes}.yaml"), str(TRAIN)]
    if subprocess.run([*command, *train_arguments(scaled, prompts, run)], stdout=sys.stderr, check=False).returncode:
        raise RuntimeError(f"the run on {processes} process(es) failed; its error is above")
    by_step = {}
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        by_step[record["step"]] = record
    return [record for step, record in by_step.items() if step > 1]


def _seconds(line: dict[str, Any]) -> float:
    return sum(value for name, value in line.items() if name.startswith("seconds/"))


def _told(lines: Sequence[dict[str, Any]]) -> str:
    """Tokens and seconds of a training step by phase, and the share of waiting."""
    names = [name for name in lines[0] if name.startswith("seconds/")]
    phases = ", ".join(f"{name[8:]} {fmean(line[name] for line in lines):.3g} s" for name in names)
    waited = fmean(line["speed/wait_share"] for line in lines)
    return f"{fmean(line['tokens'] for line in lines):.0f} tokens sampled, {phases}, {waited:.1%} of it waiting"


if __name__ == "__main__":
    main()
