"""How much faster an experience is rolled out than a node at a time, and how near to what the machine can do.

    python benchmarks/rollout.py [--episodes 8] [--width 2] [--depth 3] [--tokens 32] [--repeats 3]

Reference: ``plain.rollout`` of each prompt. Ours: ``ASTSampler.rollout_many`` with a seed for each prompt. Both sides
have the same prompts, models, scorer, reward and token limit; they draw different tokens, so how many each drew is in
the result.

The limits are of the trees that ours rolled out, with this run's own rates (``limit.py``). Tester and target each read
every distinct token of all trees once: the prompts and what the other side said at once, at 2 FLOPs a parameter and
token, and what they say themselves in decoding steps, all rows of a level together. The first limit takes a step to
cost its reading alone, that is the weights once and the rows' distinct keys and values; the roofline takes the longer
of reading and arithmetic, which on a CPU is the arithmetic from a few rows on. A ratio of limit to ours of 1 would be
a rollout at the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import limit
import plain
from common import build_system, device, every_prompt_once, first_prompts, interleaved, medians, parse, report, seconds

from astra_accel.core.sampler import Graph, walk
from astra_accel.core.seeding import seeded


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and write the ratios."""
    options = parse(__doc__, arguments, width=2, depth=3, buffer_mib=2048)
    prompts, system = first_prompts(options), build_system(options)
    sampler, seeds = every_prompt_once(system, prompts, options.width, options.depth)
    rolled_out: dict[str, list[Graph]] = {}

    def reference() -> None:
        with seeded([0]):
            rolled_out["reference"] = [plain.rollout(system, text, options.width, options.depth) for text in prompts]

    def ours() -> None:
        rolled_out["ours"] = sampler.rollout_many(seeds)

    products, num_flops = limit.matrix_products(system.roles.target.model)
    reading, num_bytes = limit.reading(options.buffer_mib, device())
    for warm_up in (lambda: plain.rollout(system, prompts[0], options.width, 1), ours, products, reading):
        warm_up()
    works = {"reference": reference, "ours": ours, "matrix products": products, "reading": reading}
    measured = interleaved({name: seconds(work) for name, work in works.items()}, options.repeats)

    took = medians(measured)
    rates = limit.Rates(num_flops / took["matrix products"], num_bytes / took["reading"])
    size = limit.Size.from_model(system.roles.target.model)
    works_of_roles = [limit.count_work(calls) for calls in limit.rollout_calls(system, rolled_out["ours"]).values()]
    bandwidth = sum(limit.bandwidth_limit(work, size, rates) for work in works_of_roles)
    roofline = sum(limit.roofline_limit(work, size, rates) for work in works_of_roles)
    return report(
        "rollout",
        options,
        measured,
        {
            "reference / ours": took["reference"] / took["ours"],
            "limit / ours": bandwidth / took["ours"],
            "roofline limit / ours": roofline / took["ours"],
        },
        figures={
            "seconds an episode, reference": took["reference"] / len(prompts),
            "seconds an episode, ours": took["ours"] / len(prompts),
            "limit, s": bandwidth,
            "roofline limit, s": roofline,
            "FLOP/s": rates.flops_per_second,
            "B/s": rates.bytes_per_second,
            "tokens read at once": sum(work.num_prefill for work in works_of_roles),
            "tokens decoded": sum(step.num_rows for work in works_of_roles for step in work.steps),
            "decoding steps": sum(len(work.steps) for work in works_of_roles),
            "tokens sampled, reference": _num_sampled(system, rolled_out["reference"]),
            "tokens sampled, ours": _num_sampled(system, rolled_out["ours"]),
        },
    )


def _num_sampled(system: Any, graphs: Sequence[Graph]) -> int:
    """Tokens of all probes and responses, without the ends of turns."""
    tokenizer = system.roles.tester.files.tokenizer
    said = [str(text) for graph in graphs for _, node in walk(graph) for text in (node.probe, node.response)]
    return sum(len(tokenizer(text, add_special_tokens=False).input_ids) for text in said)


if __name__ == "__main__":
    main()
