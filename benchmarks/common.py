"""What the benchmarks share: options, prompts, the system, taking turns at the clock, and the results file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from astra_accel import ASTSampler, HFASTSystem
from astra_accel.config import LoRAConfiguration, ModelConfiguration, RolloutConfiguration, SamplingConfiguration
from astra_accel.data import load_prompts

RESULTS = Path(__file__).parent / "results"
TRAIN = Path(__file__).parents[1] / "examples" / "train.py"
PACKAGES = ("torch", "transformers", "peft", "accelerate")
HELP = {
    "episodes": "prompts: the first of the list",
    "width": "probes a context",
    "depth": "turns of an episode",
    "tokens": "new tokens a turn at most",
    "repeats": "measurements of each side, in turns",
}


def parse(
    doc: str | None,
    arguments: Sequence[str] | None,
    switches: Mapping[str, str] | None = None,
    *,
    dtypes: bool = False,
    **numbers: int,
) -> argparse.Namespace:
    """The options of a benchmark: those of all, a number for each name and default given here, and switches.

    With ``dtypes`` it measures several in one run, and the option has that name.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="of all roles: hub id, folder, embedded or tiny")
    if dtypes:
        parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of the weights")
    else:
        parser.add_argument("--dtype", default="float32", help="of the weights")
    parser.add_argument("--prompts", default="bundled", metavar="FILE", help="JSON list of strings or of objects")
    for name, default in {"episodes": 8, "tokens": 32, "repeats": 3, **numbers}.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=default, help=f"{HELP.get(name, '')} (default {default})")
    for name, meaning in (switches or {}).items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=meaning)
    parser.add_argument("--full", action="store_true", help="train all of the tester's weights, not LoRA")
    parser.add_argument("--target", type=float, help="what the first ratio is aimed at; written beside it")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER", help="where the result is written")
    return parser.parse_args(arguments)


def train_arguments(options: argparse.Namespace, prompts: Path, output_dir: Path) -> list[str]:
    """What makes ``examples/train.py`` a run of the options (with ``batch`` and ``steps``), and of nothing else."""
    fields = {
        "tester.path": options.model,
        "tester.dtype": options.dtype,
        "target.path": options.model,
        "target.dtype": options.dtype,
        "rollout.tree_width": options.width,
        "rollout.tree_depth": options.depth,
        "rollout.tester.max_new_tokens": options.tokens,
        "rollout.target.max_new_tokens": options.tokens,
        "training.training_steps": options.steps,
        "training.num_episodes_per_experience": options.episodes,
        "training.batch_size": options.batch,
        "training.lr": 1e-5,
        "training.save_steps": "null",
        "training.sample_steps": "null",
        "training.output_dir": output_dir,
        "training.overwrite_output_dir": "true",
        "prompts.train.source": prompts,
        "prompts.dev": "null",
        "prompts.test": "null",
        **({"lora": "null"} if options.full else {}),
    }
    return [text for name, value in fields.items() for text in (f"--{name}", str(value))]


def first_prompts(options: argparse.Namespace) -> list[str]:
    """The first prompts of the list, as many as there are episodes."""
    prompts = load_prompts(options.prompts)
    if len(prompts) < options.episodes:
        raise ValueError(f"--episodes is {options.episodes}, but {options.prompts} has {len(prompts)} prompts")
    return prompts[: options.episodes]


def build_system(options: argparse.Namespace) -> HFASTSystem:
    """The model in all three roles, with the project's defaults but for the options."""
    sampling = SamplingConfiguration(max_new_tokens=options.tokens)
    model = ModelConfiguration(path=options.model, dtype=options.dtype)
    return HFASTSystem(
        model,
        model,
        device=device(),
        lora=None if options.full else LoRAConfiguration(),
        rollout=RolloutConfiguration(tester=sampling, target=sampling),
    )


def device() -> torch.device:
    """Where everything runs: the accelerator if there is one, else the CPU."""
    return (torch.accelerator.is_available() and torch.accelerator.current_accelerator()) or torch.device("cpu")


def every_prompt_once(system: Any, prompts: Sequence[str], width: int, depth: int) -> tuple[ASTSampler, list[int]]:
    """A sampler, and for each prompt in order the first seed that chooses it."""
    seed_of: dict[int, int] = {}
    seed = 0
    while len(seed_of) < len(prompts):
        seed_of.setdefault(random.Random(seed).choice(range(len(prompts))), seed)
        seed += 1
    return ASTSampler(system, prompts, width, depth), [seed_of[place] for place in range(len(prompts))]


def seconds(work: Callable[[], Any]) -> Callable[[], float]:
    """A measurement of how long some work takes."""

    def measure() -> float:
        _wait()
        start = time.perf_counter()
        work()
        _wait()
        return time.perf_counter() - start

    return measure


def interleaved(measurements: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, list[float]]:
    """All measurements in turns (A, B, A, B, ...), so that what else the machine does meets all of them alike."""
    measured: dict[str, list[float]] = {name: [] for name in measurements}
    for repeat in range(repeats):
        for name, measure in measurements.items():
            measured[name].append(measure())
            print(f"{repeat + 1}/{repeats} {name}: {measured[name][-1]:.4g}", file=sys.stderr, flush=True)
    return measured


def medians(measured: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each measurement."""
    return {name: statistics.median(values) for name, values in measured.items()}


def report(
    name: str,
    options: argparse.Namespace,
    measured: Mapping[str, Sequence[float]],
    ratios: Mapping[str, float],
    *,
    unit: str = "s",
    figures: Mapping[str, Any] | None = None,
    packages: Sequence[str] = (),
) -> dict[str, Any]:
    """Print a result and write it to the results folder as ``NAME.json``; what was written."""
    chosen = {key: value for key, value in vars(options).items() if key not in ("results", "target", "output")}
    # Where a file of prompts lies concerns nobody but whoever ran this.
    chosen["prompts"] = Path(options.prompts).name
    result = {
        "benchmark": name,
        "options": chosen,
        "machine": _machine(),
        "versions": _versions((*PACKAGES, *packages)),
        "unit": unit,
        "repeats": {key: list(values) for key, values in measured.items()},
        "medians": medians(measured),
        "figures": dict(figures or {}),
        "ratios": dict(ratios),
        "target": options.target,
    }
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("\n".join(_lines(result)))
    print(f"written to {path}")
    return result


def _lines(result: Mapping[str, Any]) -> list[str]:
    lines = [result["benchmark"]]
    for name in ("options", "machine", "versions"):
        lines += [f"  {name}: " + ", ".join(f"{key} {value}" for key, value in result[name].items())]
    lines += [f"  {name}: {_short(value)}" for name, value in result["figures"].items()]
    for name, value in result["medians"].items():
        every = ", ".join(map(_short, result["repeats"][name]))
        lines += [f"  {name}: {_short(value)} {result['unit']} (median of {every})"]
    aims = [] if result["target"] is None else [f" (target {_short(result['target'])})"]
    for name, value in result["ratios"].items():
        lines += [f"  {name} = {_short(value)}{aims.pop() if aims else ''}"]
    return lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else device().type,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _versions(packages: Sequence[str]) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions
