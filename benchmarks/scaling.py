"""Whether time follows the number of distinct tokens: rollout and update against width, depth, episodes and prompts.

    python benchmarks/scaling.py [--episodes 8] [--width 2] [--depth 3] [--tokens 32] [--prompt-tokens 64] [--repeats 3]

One quantity grows while the others stay: a quarter, half and all of the episodes; the width and its double; the depth
less one and the depth; prompts of a length, of twice and of four times that (the listed prompts end to end, cut). But
for the depth's own row, trees are a turn less deep than ``--depth``. All settings take turns at the clock.

For each growth the result says by how much the distinct tokens grew and by how much the time, and what that makes for
tokens that double: ``2 ** (log(time ratio) / log(token ratio))``, where they grew by more than a tenth. 2 is time in
proportion to tokens, and less where larger batches do the same work faster. Tokens of a rollout are those that tester
and target read (``limit.py``), of an update those that the tester reads to score all pairs. An update computes what the
baseline says too: how much of that a rollout has left depends on how far the updates in between have moved the tester.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise, product
from typing import Any, NamedTuple

import limit
from common import build_system, every_prompt_once, first_prompts, interleaved, medians, parse, report, seconds
from update import Update, nothing_recalled, num_distinct, plain_pairs


class Setting(NamedTuple):
    """Prompts and the shape of their trees."""

    prompts: Sequence[str]
    width: int
    depth: int


class Prepared(NamedTuple):
    """A setting's work, done once already, and the distinct tokens of it."""

    works: Mapping[str, Callable[[], Any]]
    num_tokens: Mapping[str, int]


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the growths."""
    options = parse(__doc__, arguments, width=2, depth=3, prompt_tokens=64)
    system = build_system(options)
    growths = settings(options, first_prompts(options), system.roles.tester.files.tokenizer)
    prepared = {
        f"{axis} {size}": prepare(system, setting)
        for axis, points in growths.items()
        for size, setting in points.items()
    }
    works = {f"{what}, {name}": seconds(work) for name, done in prepared.items() for what, work in done.works.items()}
    measured = interleaved(works, options.repeats)

    took = medians(measured)
    ratios, figures = {}, {}
    for axis, what in product(growths, ("rollout", "update")):
        for smaller, larger in pairwise(growths[axis]):
            one, other = (prepared[f"{axis} {size}"].num_tokens[what] for size in (smaller, larger))
            longer = took[f"{what}, {axis} {larger}"] / took[f"{what}, {axis} {smaller}"]
            name = f"{what}, {axis} {smaller} -> {larger}"
            figures[name] = f"tokens {one} -> {other} (x {other / one:.3g}) and time x {longer:.3g}"
            if other > 1.1 * one:
                ratios[f"{name}: distinct tokens doubled, time x"] = of_doubling(other / one, longer)
    return report("scaling", options, measured, ratios, figures=figures)


def prepare(system: Any, setting: Setting) -> Prepared:
    """Roll out and update once, and count."""
    sampler, seeds = every_prompt_once(system, *setting)
    graphs = sampler.rollout_many(seeds)
    update = Update(system, graphs)
    update()
    work_of_roles = [limit.count_work(calls) for calls in limit.rollout_calls(system, graphs).values()]
    return Prepared(
        {"rollout": lambda: sampler.rollout_many(seeds), "update": lambda: nothing_recalled(system, update)},
        {
            "rollout": sum(work.num_tokens for work in work_of_roles),
            "update": num_distinct(plain_pairs(system, update.steps)),
        },
    )


def settings(options: argparse.Namespace, prompts: Sequence[str], tokenizer: Any) -> dict[str, dict[int, Setting]]:
    """The settings of each growth, by what grows and how large it is."""
    width, depth, shallow = options.width, options.depth, max(options.depth - 1, 1)
    numbers = sorted({max(options.episodes // part, 1) for part in (4, 2, 1)})
    lengths = [options.prompt_tokens * times for times in (1, 2, 4)]
    long_ids = tokenizer("\n".join(prompts * (1 + 4 * options.prompt_tokens)), add_special_tokens=False).input_ids
    return {
        "episodes": {number: Setting(prompts[:number], width, shallow) for number in numbers},
        "width": {number: Setting(prompts, number, shallow) for number in (width, 2 * width)},
        "depth": {number: Setting(prompts, width, number) for number in sorted({shallow, depth})},
        "prompt tokens": {
            length: Setting(_cut(long_ids, length, len(prompts), tokenizer), width, shallow) for length in lengths
        },
    }


def of_doubling(grown: float, longer: float) -> float:
    """By how much the time grows where tokens double, if it goes with a power of them."""
    return 2 ** (math.log(longer) / math.log(grown))


def _cut(ids: Sequence[int], length: int, count: int, tokenizer: Any) -> list[str]:
    """Texts of about so many tokens, one after the other out of a long one."""
    return [tokenizer.decode(ids[start : start + length]) for start in range(0, count * length, length)]


if __name__ == "__main__":
    main()
