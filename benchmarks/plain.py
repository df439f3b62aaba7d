"""The pattern of a single-device trainer, written out plainly, for the benchmarks to compare with.

Tree by tree and node by node: ``generate`` for the children of one node, each with its whole context; states are
strings, tokenised anew each time; log-probs come of a forward over one whole sequence and a log-softmax over the whole
vocabulary. In one thing it is better off than the reference: the three roles share one copy of the weights.

Run as a script it trains for a few steps, for ``memory.py`` to see how much memory that takes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from common import build_system, first_prompts, parse

from astra_accel import DPO
from astra_accel.core.sampler import Graph, Node

Ids = Sequence[int]
LogProbs = Callable[[Ids, Ids], torch.Tensor]
BETA = 0.1


class Pair(NamedTuple):
    """A context and two probes in it, as token ids."""

    context: Ids
    chosen: Ids
    rejected: Ids


@torch.no_grad()
def rollout(system: Any, prompt: str, width: int, depth: int) -> Graph[str, str]:
    """One tree, a node at a time."""
    return Graph(prompt, _expand(system, prompt, width, depth))


def logprobs(model: Any, context: Ids, continuation: Ids) -> torch.Tensor:
    """The log-prob of each token of a continuation, from one forward over the whole sequence."""
    ids_1T = torch.tensor([[*context, *continuation]], device=model.device)
    logprobs_TV = model(input_ids=ids_1T).logits[0].float().log_softmax(-1)
    # What is said of a token stands at the one before it.
    return logprobs_TV[:-1].gather(-1, ids_1T[0, 1:, None]).squeeze(-1)[len(context) - 1 :]


class Policies(NamedTuple):
    """Tester and baseline as functions from a context and a probe to the log-probs of the probe's tokens."""

    tester: LogProbs
    baseline: LogProbs


def shared_policies(system: Any) -> Policies:
    """Those of a system: one copy of the weights, and the baseline without gradient."""

    def baseline(context: Ids, probe: Ids) -> torch.Tensor:
        with torch.no_grad(), system.roles.baseline.switch():
            return logprobs(system.roles.baseline.model, context, probe)

    return Policies(partial(logprobs, system.roles.tester.model), baseline)


def policies_as_published(tester: Any, baseline: Any) -> Policies:
    """Two whole models without adapters; the graph through the baseline is kept although nobody trains it."""
    return Policies(*(partial(logprobs, model.requires_grad_(True)) for model in (tester, baseline)))


def dpo_loss(policies: Policies, pairs: Sequence[Pair]) -> torch.Tensor:
    """The mean DPO loss of some pairs, from four sequences a pair."""
    losses = []
    for context, chosen, rejected in pairs:
        margins = [
            policies.tester(context, probe).sum() - policies.baseline(context, probe).sum()
            for probe in (chosen, rejected)
        ]
        losses.append(-F.logsigmoid(BETA * (margins[0] - margins[1])))
    return torch.stack(losses).mean()


def pairs_of(system: Any, graph: Graph[str, str]) -> Iterator[Pair]:
    """The best probe of each context against the worst, tokenised."""
    tokenizer = system.roles.tester.files.tokenizer
    for step in DPO(system).flatten(graph):
        yield Pair(
            tokenizer(step.prefix).input_ids,
            *(tokenizer(probe, add_special_tokens=False).input_ids for probe in (step.suffix_pos, step.suffix_neg)),
        )


def _expand(system: Any, context: str, width: int, depth: int) -> list[Node[str, str]]:
    if depth == 0:
        return []
    config = system.rollout_config
    probes = _generate(system.roles.tester, [context] * width, config.tester.max_new_tokens)
    responses = _generate(system.roles.target, [context + probe for probe in probes], config.target.max_new_tokens)
    return [
        Node(
            context,
            probe,
            response,
            _reward(system, context, probe, response),
            _expand(system, context + probe + response, width, depth - 1),
        )
        for probe, response in zip(probes, responses, strict=True)
    ]


def _generate(role: Any, texts: list[str], max_new_tokens: int) -> list[str]:
    tokenizer = role.files.tokenizer
    inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left").to(role.model.device)
    with role.switch():
        output = role.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(role.files.end_ids) or None,
            pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def _reward(system: Any, context: str, probe: str, response: str) -> float:
    target, tokenizer = system.roles.target, system.roles.target.files.tokenizer
    asked, said = tokenizer(context).input_ids, tokenizer(probe, add_special_tokens=False).input_ids
    weights = system.reward_terms.weights
    naturalness = minimum = system.reward_terms.terms["naturalness"].minimum
    if said:
        with target.switch():
            naturalness = max(float(logprobs(target.model, asked, said).mean()), minimum)
    (both,), (alone,) = system.scorer.score([probe + response]), system.scorer.score([response])
    return weights["combined_score"] * both + weights["response_score"] * alone + weights["naturalness"] * naturalness


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the pattern does: batches of pairs, one backward and one update each."""
    options = parse(__doc__, arguments, width=2, depth=3, batch=16, steps=2)
    system = build_system(options)
    policies = shared_policies(system)
    optimizer = torch.optim.AdamW(system.parameters(), lr=1e-5)
    for _ in range(options.steps):
        trees = [rollout(system, prompt, options.width, options.depth) for prompt in first_prompts(options)]
        pairs = [pair for tree in trees for pair in pairs_of(system, tree)]
        for start in range(0, len(pairs), options.batch):
            dpo_loss(policies, pairs[start : start + options.batch]).backward()
            optimizer.step()
            optimizer.zero_grad()


if __name__ == "__main__":
    main()
