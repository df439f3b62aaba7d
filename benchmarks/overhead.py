"""What the trainer costs besides the models, and what saving costs it, on one process.

    python benchmarks/overhead.py [--episodes 4] [--width 2] [--depth 2] [--tokens 16] [--batch 8] [--steps 3]
        [--repeats 3]

The trainer is ``AccelTrainer`` with DPO, without evaluations. The bare loop has the same system, seeds and examples: a
rollout, what the baseline says, and for each part that the trainer steps on the forward, the backward, and AdamW's step
at the end of an update. It has no exchange, loader, clipping, metrics, rows or files. That both computed the same is
checked by the weights that they end with. The other two sides are the trainer with a checkpoint after each training
step, which it waits for, or which is written while it continues; a stall is what ``seconds/save`` tells of one. The
exchanges of two processes are in ``weak_scaling.py``.

A training step is timed from the beginning of its rollout to that of the next one's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from common import build_system, first_prompts, interleaved, medians, parse, report

from astra_accel import DPO, AccelTrainer, ASTSampler, TrainingConfiguration
from astra_accel.core.sampler import Graph, rewarded_trees
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.experience.loader import Experience, MicroBatch

SAVING = {"trainer": None, "trainer, saving": False, "trainer, saving as it goes on": True}
"""The sides that train, and whether they save behind training's back; None saves nothing."""


class Clocked(ASTSampler):
    """A sampler that notes when each rollout begins, and its seeds."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.begun: list[float] = []
        self.seeds: list[list[int]] = []

    def rollout_many(self, seeds: Sequence[int], prompt_seeds: Sequence[int] | None = None) -> list[Graph]:
        """See the base class."""
        self.begun.append(time.perf_counter())
        self.seeds.append(list(seeds))
        return super().rollout_many(seeds, prompt_seeds)


class Trained(NamedTuple):
    """A side that was run: its clock, its weights, and what the trainer stepped on and logged."""

    sampler: Clocked
    weights: list[torch.Tensor]
    parts: list[list[MicroBatch]]
    lines: list[dict[str, Any]]

    @property
    def seconds(self) -> float:
        """Of all training steps but the last, after which none begins."""
        return self.sampler.begun[-1] - self.sampler.begun[0]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the ratios."""
    options = parse(__doc__, arguments, episodes=4, tokens=16, width=2, depth=2, batch=8, steps=3)
    with tempfile.TemporaryDirectory() as folder:
        config = configuration(options, Path(folder), None)
        accelerator = make_accelerator(config, find_unused_parameters=False)
        last = {"trainer": train(options, config, accelerator)}  # which also warms everything up

        def measure(name: str) -> float:
            if name == "bare loop":
                last[name] = bare(options, last["trainer"], config.lr)
            else:
                last[name] = train(options, configuration(options, Path(folder), SAVING[name]), accelerator)
            return last[name].seconds / options.steps

        sides = ("bare loop", *SAVING)
        measured = interleaved({name: lambda name=name: measure(name) for name in sides}, options.repeats)
    check_same(last["bare loop"].weights, last["trainer"].weights)
    took, stall = medians(measured), {name: stalled(last[name].lines) for name in sides[2:]}
    return report(
        "overhead",
        options,
        measured,
        {
            "trainer / bare loop": took["trainer"] / took["bare loop"],
            "stall of a save, as it goes on / at once": stall[sides[3]] / stall[sides[2]],
            **{f"{name} / trainer": took[name] / took["trainer"] for name in sides[2:]},
        },
        figures={
            **{f"{name}, seconds by phase": phases(last[name].lines) for name in SAVING},
            **{f"{name}: stall of a save, s": value for name, value in stall.items()},
            "parts stepped on": sum(map(len, last["trainer"].parts)),
            "updates": sum(part.is_last for parts in last["trainer"].parts for part in parts),
        },
    )


def configuration(options: argparse.Namespace, folder: Path, async_save: bool | None) -> TrainingConfiguration:
    """A run of one training step more than is timed; with checkpoints unless ``async_save`` is None."""
    return TrainingConfiguration(
        lr=1e-4,
        batch_size=options.batch,
        training_steps=options.steps + 1,
        num_episodes_per_experience=options.episodes,
        output_dir=folder / "run",
        overwrite_output_dir=True,
        save_steps=None if async_save is None else 1,
        async_save=bool(async_save),
        sample_steps=None,
    )


def train(options: argparse.Namespace, config: TrainingConfiguration, accelerator: Accelerator) -> Trained:
    """Run the trainer, and keep what it stepped on."""
    sampler = Clocked(build_system(options), first_prompts(options), options.width, options.depth)
    trainer = AccelTrainer(config, sampler, DPO(sampler.system), accelerator=accelerator)
    parts: list[list[MicroBatch]] = [[] for _ in range(config.training_steps)]
    micro_batches_of = trainer.loader.micro_batches

    def noting(experience: Experience, epoch: int) -> Iterator[MicroBatch]:
        for micro_batch in micro_batches_of(experience, epoch):
            parts[experience.index].append(micro_batch)
            yield micro_batch

    trainer.loader.micro_batches = noting
    trainer.train()
    accelerator.free_memory()  # It would keep the models of every trainer.
    lines = (trainer.folder.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    weights = [parameter.detach().clone() for parameter in sampler.system.parameters()]
    return Trained(sampler, weights, parts, [json.loads(line) for line in lines])


def bare(options: argparse.Namespace, trained: Trained, lr: float) -> Trained:
    """The same rollouts, forwards and backwards in a loop."""
    sampler = Clocked(build_system(options), first_prompts(options), options.width, options.depth)
    algorithm = DPO(sampler.system)
    optimizer = torch.optim.AdamW(sampler.system.parameters(), lr=lr)
    for seeds, parts in zip(trained.sampler.seeds, trained.parts, strict=True):
        with torch.no_grad():
            graphs = sampler.rollout_many(seeds)
        steps = [step for graph in graphs for tree in rewarded_trees(graph) for step in algorithm.flatten(tree)]
        algorithm.precompute(steps)
        for batch, loss_weight, is_last in parts:
            loss, _ = algorithm.step(batch)
            (loss * loss_weight).backward()
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
    return Trained(sampler, [parameter.detach() for parameter in sampler.system.parameters()], [], [])


def check_same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor]) -> None:
    """Find sides that did not compute the same, whose times say nothing.

    Raises:
        RuntimeError: their weights differ by more than rounding.
    """
    difference = max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))
    if difference > 1e-6:
        raise RuntimeError(f"the weights of the trainer and of the bare loop differ by {difference:.1e}")


def stalled(lines: Sequence[dict[str, Any]]) -> float:
    """Seconds that training waited for a checkpoint; the line of a training step has the one of the step before."""
    by_step = {line["step"]: line["seconds/save"] for line in lines if line["step"] > 1}
    return fmean(by_step.values())


def phases(lines: Sequence[dict[str, Any]]) -> str:
    """Seconds of a training step by phase."""
    by_step = {line["step"]: line for line in lines if line["step"] > 1}
    names = [name for name in next(iter(by_step.values())) if name.startswith("seconds/")]
    return ", ".join(f"{name[8:]} {fmean(line.get(name, 0.0) for line in by_step.values()):.3g}" for name in names)


if __name__ == "__main__":
    main()
