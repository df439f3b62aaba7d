"""How much faster an experience is rolled out level by level than a node at a time.

    python benchmarks/rollout.py [--model embedded] [--episodes 4] [--width 2] [--depth 2] [--tokens 16] [--repeats 3]

Both sides sample probes and responses of the same number of tokens at most for the same prompts, with the same models
and scorer, and compute the same reward. The node-at-a-time side is the pattern of a single-device trainer, written out
plainly: ``generate`` for the children of one node, then one forward for their naturalness. The two take turns; the
figure is the ratio of the medians of one run. Results go to ``benchmarks/results/rollout.json``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from astra_accel import ASTSampler, HFASTSystem
from astra_accel.config import RolloutConfiguration, SamplingConfiguration
from astra_accel.data import load_prompts
from astra_accel.models.logprobs import sequence_logprobs


def main() -> None:
    """Measure and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="hub id, folder, embedded or tiny")
    for name, default in (("episodes", 4), ("width", 2), ("depth", 2), ("tokens", 16), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()

    tokens = SamplingConfiguration(max_new_tokens=options.tokens)
    system = HFASTSystem(options.model, options.model, rollout=RolloutConfiguration(tester=tokens, target=tokens))
    prompts = load_prompts()[: options.episodes]
    sampler = ASTSampler(system, prompts, options.width, options.depth)
    seeds = list(range(options.episodes))

    level_by_level, node_at_a_time = [], []
    for _ in range(options.repeats + 1):
        level_by_level.append(_seconds(lambda: sampler.rollout_many(seeds)))
        node_at_a_time.append(
            _seconds(lambda: [_expand(system, prompt, options.width, options.depth) for prompt in prompts])
        )
    # The first turn of each warms up and does not count.
    ours, plain = statistics.median(level_by_level[1:]), statistics.median(node_at_a_time[1:])
    result = {
        **vars(options),
        "seconds an episode, node at a time": round(plain / options.episodes, 3),
        "seconds an episode, level by level": round(ours / options.episodes, 3),
        "ratio": round(plain / ours, 2),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {platform.system()}",
    }
    print(json.dumps(result, indent=2))
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    (folder / "rollout.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _expand(system: HFASTSystem, context: str, width: int, depth: int) -> None:
    """One tree, a node at a time: generate, respond, score, and down into each child."""
    if depth == 0:
        return
    probes = _generate(system, system.roles.tester, [context] * width)
    asked = [context + probe for probe in probes]
    responses = _generate(system, system.roles.target, asked)
    tokenizer = system.roles.target.files.tokenizer
    with system.roles.target.switch():
        for probe in probes:
            ids = [tokenizer(text, add_special_tokens=False).input_ids for text in (context, probe)]
            sequence_logprobs(system.roles.target.model, [ids[0]], [ids[1]])
    system.scorer.score([probe + response for probe, response in zip(probes, responses, strict=True)])
    system.scorer.score(responses)
    for text, response in zip(asked, responses, strict=True):
        _expand(system, text + response, width, depth - 1)


def _generate(system: HFASTSystem, role: Any, texts: list[str]) -> list[str]:
    tokenizer = role.files.tokenizer
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(role.model.device)
    with role.switch():
        output = role.model.generate(
            **inputs,
            do_sample=True,
            max_new_tokens=system.rollout_config.tester.max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _seconds(work: Any) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
