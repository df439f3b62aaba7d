"""What a training step of a recipe takes in float32 and in bfloat16, and the memory of each run.

    python benchmarks/precision.py [--config examples/configs/smollm2_mle.yaml] [--dtypes float32 bfloat16]
        [--repeats 3] [--SECTION.FIELD VALUE ...]

Each side is a run of its own by ``astra-accel train`` with another ``compute.dtype``, of four training steps; the sides
take turns. In the first two steps the tester is shown the recipe's examples before each prompt, if it has any, so more
is read; in the last two it is not. Of each pair the second step counts, since the first warms up. Seconds are those of
rollout and update together, as ``metrics.jsonl`` has them. Memory is the most that a run ever had resident.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS, TRAIN, medians, report
from memory import peak_gb

RECIPE = TRAIN.parent / "configs" / "smollm2_mle.yaml"
STEPS = {"with examples": 2, "without": 4}
PEAK = "peak memory, GB"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the ratios."""
    options, fields = _parse(arguments)
    config, options.config = options.config, options.config.name
    measured: dict[str, list[float]] = {}
    for repeat in range(options.repeats):
        for dtype in options.dtypes:
            for name, value in _run(config, dtype, fields).items():
                measured.setdefault(f"{dtype}, {name}", []).append(value)
                print(f"{repeat + 1}/{options.repeats} {dtype}, {name}: {value:.4g}", flush=True)
    middle = medians(measured)
    first, *others = options.dtypes
    ratios = {
        f"{first} / {other}, {name}": middle[f"{first}, {name}"] / middle[f"{other}, {name}"]
        for other in others
        for name in (*STEPS, PEAK)
    }
    memory = {name: middle[name] for name in measured if name.endswith(PEAK)}
    times = {name: values for name, values in measured.items() if name not in memory}
    return report("precision", options, times, ratios, figures=memory)


def _run(config: Path, dtype: str, fields: Sequence[str]) -> dict[str, float]:
    """The seconds of a training step of each kind, and the peak of memory."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "compute.dtype": dtype,
            "training.training_steps": max(STEPS.values()),
            "training.stop_at": "{}",
            "training.save_steps": "null",
            "training.sample_steps": "null",
            "training.output_dir": Path(folder) / "run",
            "evaluation.around_training": "false",
        }
        command = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
        peak = peak_gb([TRAIN, "--config", config, *command, *_two_steps_of_examples(config), *fields])
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = {line["step"]: line for line in map(json.loads, lines)}
    seconds = {step: line["seconds/rollout"] + line["seconds/update"] for step, line in steps.items()}
    return {name: seconds[step] for name, step in STEPS.items()} | {PEAK: peak}


def _two_steps_of_examples(config: Path) -> list[str]:
    has_examples = "few_shot:" in config.read_text(encoding="utf-8")
    return ["--rollout.few_shot.steps", "2"] if has_examples else []


def _parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=RECIPE, help="default: smollm2_mle.yaml, which `make demo` runs")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], help="the first is divided by the others"
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, in turns (default 3)")
    parser.add_argument("--target", type=float, help="what the first ratio is aimed at; written beside it")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the result is written")
    options, fields = parser.parse_known_args(arguments)
    options.prompts = "of the recipe"
    return options, fields


if __name__ == "__main__":
    main()
