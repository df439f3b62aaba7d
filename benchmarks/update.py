"""How much faster a DPO update is than a sequence at a time, and how near to what the machine can do.

    python benchmarks/update.py [--episodes 8] [--width 2] [--depth 3] [--tokens 32] [--repeats 3] [--full]
        [--as-published]

All sides take one optimizer step on the same pairs: the contexts of one rollout, done before, with rewards drawn at
random so that no two tie and every context gives a pair.

Reference: for each pair four forwards over whole sequences with a log-softmax over the whole vocabulary (chosen and
rejected probe under tester and baseline), the loss and its backward. It has our adapter, and runs the baseline without
gradient. The published reference does neither: it trains all weights of the tester, and keeps the graph through a
baseline of its own. ``--as-published`` measures that too; it takes three times the work and four times the memory.

Ours: ``precompute``, then what the trainer runs: loader, step module, backward, optimizer. In a real run the baseline's
log-probs are left over from the rollout, where the same weights played the target, and that is what the ratios count;
the time without them is in the result too.

The limit counts every distinct token of the pairs once, at 4 FLOPs a parameter for LoRA (forward, and the gradient of
what each layer reads) and 6 where all weights are trained (and theirs), at the rate of this run's matrix products.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import limit
import plain
import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from common import build_system, device, every_prompt_once, first_prompts, interleaved, medians, parse, report, seconds

from astra_accel import DPO
from astra_accel.algorithms.dpo import DPOStep
from astra_accel.core.sampler import Graph, Node
from astra_accel.distributed.step_module import StepModule
from astra_accel.experience.loader import Experience, ExperienceLoader
from astra_accel.models.forward.prefix_tree import num_distinct_tokens

LR = 1e-5


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the ratios."""
    options = parse(
        __doc__, arguments, switches={"as_published": "measure the reference as published too"}, width=2, depth=3
    )
    system = build_system(options)
    sampler, seeds = every_prompt_once(system, first_prompts(options), options.width, options.depth)
    ours = Update(system, sampler.rollout_many(seeds))
    pairs = plain_pairs(system, ours.steps)
    policies = plain.shared_policies(system)

    products, num_flops = limit.matrix_products(system.roles.target.model)
    for warm_up in (lambda: plain_backward(policies, pairs[:1]), ours, products):
        warm_up()
    works = {
        "reference": plain_update(policies, pairs, system.parameters()),
        "ours": ours,
        "ours, nothing recalled": lambda: nothing_recalled(system, ours),
        "matrix products": products,
    }
    if options.as_published:
        files = system.roles.tester.files
        tester, baseline = (files.load(getattr(torch, options.dtype)).to(device()) for _ in range(2))
        published = plain.policies_as_published(tester, baseline)
        works["reference as published"] = plain_update(published, pairs, tester.parameters())
    measured = interleaved({name: seconds(work) for name, work in works.items()}, options.repeats)

    took = medians(measured)
    rates = limit.Rates(num_flops / took["matrix products"], 0.0)
    size = limit.Size.from_model(system.roles.target.model)
    num_tokens = num_distinct(pairs)
    least = limit.update_limit(num_tokens, size, rates, full=options.full)
    ratios = {
        "reference / ours": took["reference"] / took["ours"],
        "limit / ours": least / took["ours"],
        "reference / ours, nothing recalled": took["reference"] / took["ours, nothing recalled"],
    }
    if options.as_published:
        ratios["reference as published / ours"] = took["reference as published"] / took["ours"]
    return report(
        "update",
        options,
        measured,
        ratios,
        figures={
            "limit, s": least,
            "FLOP/s": rates.flops_per_second,
            "pairs": len(pairs),
            "distinct tokens": num_tokens,
            "tokens of whole sequences": sum(
                len(pair.context) + len(probe) for pair in pairs for probe in (pair.chosen, pair.rejected)
            ),
        },
    )


def nothing_recalled(system: Any, update: Callable[[], None]) -> None:
    """An update that computes what the baseline says, whatever a rollout has left of it."""
    recall, system.roles.baseline.recall = system.roles.baseline.recall, None
    update()
    system.roles.baseline.recall = recall


class Update:
    """One update on all pairs of some graphs, as the trainer does it; call it to do it once more.

    Attributes:
        steps: the pairs.
    """

    def __init__(self, system: Any, graphs: Sequence[Graph]) -> None:
        draw = random.Random(0)
        self._graphs = [replace(graph, children=_with_rewards(graph.children, draw)) for graph in graphs]
        self._algorithm = DPO(system, beta=plain.BETA)
        by_graph = [self._algorithm.flatten(graph) for graph in self._graphs]
        self.steps: list[DPOStep] = [step for steps in by_graph for step in steps]
        self._trees = [number for number, steps in enumerate(by_graph) for _ in steps]
        self._accelerator = Accelerator(
            cpu=device().type == "cpu", dataloader_config=DataLoaderConfiguration(split_batches=True)
        )
        self._loader = ExperienceLoader(self._accelerator, self._algorithm, len(self.steps), accumulation=1, seed=0)
        optimizer = torch.optim.AdamW(system.parameters(), lr=LR)
        self._step_module, self._optimizer = self._accelerator.prepare(StepModule(system, self._algorithm), optimizer)

    def __call__(self) -> None:
        """Backward and optimizer step."""
        self.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()

    def backward(self) -> None:
        """The gradient of the mean loss over all pairs, from the baseline's log-probs on."""
        steps = self._algorithm.precompute(self.steps)
        for batch, weight, _ in self._loader.micro_batches(Experience(0, self._graphs, steps, self._trees), epoch=0):
            with self._accelerator.accumulate(self._step_module):
                loss, _ = self._step_module(batch)
                # Accelerate divides by the number of micro-batches.
                self._accelerator.backward(loss * weight * self._accelerator.gradient_accumulation_steps)


def plain_pairs(system: Any, steps: Sequence[DPOStep]) -> list[plain.Pair]:
    """The same pairs as token ids, those that were sampled."""
    room = system.rollout_config.tester.max_new_tokens
    return [
        plain.Pair(
            system.views.tester.own_turn(step.prefix, room), step.suffix_pos.sampled_ids, step.suffix_neg.sampled_ids
        )
        for step in steps
    ]


def plain_update(
    policies: plain.Policies, pairs: Sequence[plain.Pair], parameters: Iterable[torch.nn.Parameter]
) -> Callable[[], None]:
    """One update on all pairs, pair by pair; call it to do it once more."""
    optimizer = torch.optim.AdamW(parameters, lr=LR)

    def update() -> None:
        plain_backward(policies, pairs)
        optimizer.step()
        optimizer.zero_grad()

    return update


def plain_backward(policies: plain.Policies, pairs: Sequence[plain.Pair]) -> None:
    """The gradient of the mean loss over all pairs."""
    for pair in pairs:
        (plain.dpo_loss(policies, [pair]) / len(pairs)).backward()


def num_distinct(pairs: Sequence[plain.Pair]) -> int:
    """Distinct tokens that a model reads to score all pairs; a last token is only predicted."""
    return num_distinct_tokens(
        [(*pair.context, *probe)[:-1] for pair in pairs for probe in (pair.chosen, pair.rejected)]
    )


def _with_rewards(nodes: Sequence[Node], draw: random.Random) -> list[Node]:
    return [replace(node, reward=draw.random(), children=_with_rewards(node.children, draw)) for node in nodes]


if __name__ == "__main__":
    main()
