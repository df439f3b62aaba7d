"""Rolls out prompts into trees of conversations, all episodes of an experience level by level."""

from __future__ import annotations

import inspect
import json
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from astra_accel.config import FewShotConfiguration
from astra_accel.core.optional import (
    ChecksPrompts,
    KeepsCaches,
    NamesRewardParts,
    ShowsExamples,
    StartsConversations,
    offers,
)
from astra_accel.core.outcomes import TARGET_ERROR, outcome_of, outcome_of_turn
from astra_accel.core.prompt import Goal, Prompt, as_json, goal_of
from astra_accel.core.sampler import Graph, Node, Sampler
from astra_accel.core.seeding import seed_sequence, seeded, text_seed
from astra_accel.methods.ast.system import ASTSystem

FEW_SHOT_STREAM = 5


def shown_before(config: FewShotConfiguration, seed: Sequence[int]) -> str:
    """Join some of the examples, none twice, in an order determined by the seed; the separator follows each."""
    generator = np.random.Generator(np.random.PCG64(seed_sequence((*seed, FEW_SHOT_STREAM))))
    chosen = generator.permutation(len(config.examples))[: config.number]
    return _joined([config.examples[place] for place in chosen.tolist()], config.separator)


def longest(config: FewShotConfiguration) -> str:
    """The longest text that :func:`shown_before` may return."""
    return _joined(sorted(config.examples, key=len, reverse=True)[: config.number], config.separator)


def _joined(examples: Sequence[str], separator: str) -> str:
    return "".join(f"{example.strip()}{separator}" for example in examples)


logger = logging.getLogger(__name__)

TRAIN_STREAM, EVAL_STREAM = 0, 1


@dataclass
class _Branch:
    """A point in a tree where probes are to be written.

    Attributes:
        state: the conversation so far.
        seed: the seed of the random numbers drawn there.
        children: the list to which its nodes are added.
        goal: what the conversation is to bring out.
    """

    state: Any
    seed: tuple[int, ...]
    children: list[Node]
    goal: Goal | None = None


class ASTSampler(Sampler):
    """The rollout trees of adaptive stress testing: ``tree_width`` probes per context, ``tree_depth`` turns.

    Everything random about an episode follows from its seed. With an ``HFASTSystem`` the random numbers of a node
    follow from the seed and its path, so an episode does not depend on those rolled out together with it. Systems
    that take no ``seeds`` use the global generators; their episodes are rolled out one at a time, with those
    generators seeded for each.

    Args:
        system: an ``ASTSystem``, or an object with its methods.
        prompts: what to train on: openings, or goals with openings (:class:`~astra_accel.core.prompt.Prompt`); None is
            the bundled list of openings.
        tree_width: probes per context.
        tree_depth: turns of an episode.
        eval_prompts: held-out prompts; None is the bundled list's dev split if the training prompts are bundled
            too, else ``prompts``.
        episodes_per_prompt: consecutive episodes that begin with the same prompt in training.
        eval_width: probes per context in evaluations; 1 gives conversations without branches.
        eval_depth: turns of an episode in evaluations; None is ``tree_depth``.
        eval_tries: tries with each prompt in evaluations: the root of a tree has ``eval_tries * eval_width`` children,
            the first ``eval_width`` of which begin the first try. It is the same however many tries follow.
        few_shot: examples that the tester is shown in its first training steps.
    """

    system: ASTSystem

    def __init__(
        self,
        system: ASTSystem,
        prompts: Sequence[str | Prompt] | None = None,
        tree_width: int = 2,
        tree_depth: int = 3,
        eval_prompts: Sequence[str | Prompt] | None = None,
        *,
        episodes_per_prompt: int = 1,
        eval_width: int = 1,
        eval_depth: int | None = None,
        eval_tries: int = 1,
        few_shot: FewShotConfiguration | None = None,
    ) -> None:
        super().__init__(system)
        shape = {
            "tree_width": tree_width,
            "tree_depth": tree_depth,
            "episodes_per_prompt": episodes_per_prompt,
            "eval_width": eval_width,
            "eval_depth": 1 if eval_depth is None else eval_depth,
            "eval_tries": eval_tries,
        }
        for name, value in shape.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        if prompts is None:
            from astra_accel.data import load_prompts

            prompts = load_prompts()
            eval_prompts = load_prompts(split="dev") if eval_prompts is None else eval_prompts
        self.prompts: list[str | Prompt] = list(prompts)
        self.eval_prompts = self.prompts if eval_prompts is None else list(eval_prompts)
        self.tree_width = tree_width
        self.tree_depth = tree_depth
        self.episodes_per_prompt = episodes_per_prompt
        self.eval_width = eval_width
        self.eval_depth = eval_depth
        self.eval_tries = eval_tries
        self.few_shot = few_shot
        self._experience = 0
        self._check_prompts()
        self._held_out = eval_prompts is not None
        self._takes_seeds = "seeds" in inspect.signature(system.rollout_prompt_with_tester).parameters

    def begin_experience(self, experience: int) -> None:
        """Begin training step number ``experience``, counted from 0."""
        self._experience = experience

    def rollout(self, seed: int | None = None) -> Graph:
        """Roll out an episode from a prompt chosen by the seed; None draws a seed from torch's global generator."""
        return self.rollout_many([_draw_seed() if seed is None else seed])[0]

    def rollout_many(self, seeds: Sequence[int], prompt_seeds: Sequence[int] | None = None) -> list[Graph]:
        """Roll out an episode for each seed together; ``prompt_seeds``, if given, choose the prompts."""
        prompts = [random.Random(seed).choice(self.prompts) for seed in prompt_seeds or seeds]
        return self._grow(prompts, [(seed, TRAIN_STREAM) for seed in seeds], self.tree_width, self.tree_depth)

    def eval_rollout(self, seed: int | str | Prompt | None = None) -> Graph:
        """Roll out an episode of ``eval_width`` from held-out prompt number ``seed``, or from the given prompt."""
        return self.eval_rollout_many([_draw_seed() if seed is None else seed])[0]

    def eval_rollout_many(self, seeds: Sequence[int | str | Prompt]) -> list[Graph]:
        """Roll out an episode for each held-out prompt, given by number (wrapping around) or itself."""
        if not self._held_out and not all(isinstance(seed, str | Prompt) for seed in seeds):
            logger.warning("No held-out prompts were given (eval_prompts): evaluating on prompts that are trained on.")
            self._held_out = True  # logged once
        prompts = [
            seed if isinstance(seed, str | Prompt) else self.eval_prompts[seed % len(self.eval_prompts)]
            for seed in seeds
        ]
        streams = [(_as_int(seed), EVAL_STREAM) for seed in seeds]
        return self._grow(prompts, streams, self.eval_width, self.eval_depth or self.tree_depth, self.eval_tries)

    def _grow(
        self,
        prompts: Sequence[str | Prompt],
        seeds: Sequence[tuple[int, ...]],
        width: int,
        depth: int,
        tries: int = 1,
    ) -> list[Graph]:
        start = self.system.start if offers(self.system, StartsConversations) else _opening
        states = map(start, prompts)
        graphs: list[Graph] = [Graph(state, [], seed[0]) for state, seed in zip(states, seeds, strict=True)]
        level = [
            _Branch(graph.context, seed, graph.children, goal_of(prompt))  # type: ignore[arg-type]
            for graph, seed, prompt in zip(graphs, seeds, prompts, strict=True)
        ]
        if self._takes_seeds and level:
            with self.system.rolling_out(depth) if offers(self.system, KeepsCaches) else nullcontext():
                level = self._expand(level, tries * width)
                for _ in range(depth - 1):
                    level = self._expand(level, width)
        else:
            for branch in level:
                for first in range(0, tries * width, width):
                    with seeded((*branch.seed, first) if first else branch.seed):
                        own_level = self._expand([branch], width, first)
                        for _ in range(depth - 1):
                            own_level = self._expand(own_level, width)
        return graphs

    def _expand(self, level: Sequence[_Branch], width: int, first: int = 0) -> list[_Branch]:
        """Write ``width`` turns at every branch, attach them to their trees, and return the branches after them.

        ``first`` is the place among its siblings of the first of them.
        """
        if not level:
            return []
        branches = [branch for branch in level for _ in range(width)]
        states = [branch.state for branch in branches]
        seeds = [(*branch.seed, child) for branch in level for child in range(first, first + width)]
        options = {"seeds": seeds} if self._takes_seeds else {}
        probes = self._probes(states, seeds, options)
        asked = [state + probe for state, probe in zip(states, probes, strict=True)]
        responses = self.system.rollout_prompt_with_target(asked, **options)
        rewards = self._rewards(states, probes, responses)
        next_level = []
        for branch, seed, probe, response, parts in zip(branches, seeds, probes, responses, rewards, strict=True):
            children: list[Node] = []
            info = {**parts, "probe_tokens": _num_tokens(probe), "response_tokens": _num_tokens(response)}
            info |= _thinking(probe=probe, response=response)
            if hasattr(response, "outcome"):
                info["outcome"] = outcome_of_turn(response, parts.get("response_score"))
            info |= {} if branch.goal is None else branch.goal.columns()
            branch.children.append(Node(branch.state, probe, response, parts["reward"], children, info))
            if outcome_of(response) != TARGET_ERROR:  # there is no answer to continue from
                state = self.system.advance(branch.state, probe, response)
                next_level.append(replace(branch, state=state, seed=seed, children=children))
        return next_level

    def _probes(
        self, states: Sequence[Any], seeds: Sequence[tuple[int, ...]], options: dict[str, Any]
    ) -> Sequence[Any]:
        few_shot = self.few_shot
        if few_shot is None or seeds[0][1] != TRAIN_STREAM or self._experience >= few_shot.steps:
            return self.system.rollout_prompt_with_tester(states, **options)
        shown = [
            self.system.preceded(state, shown_before(few_shot, seed)) for state, seed in zip(states, seeds, strict=True)
        ]
        probes = self.system.rollout_prompt_with_tester(shown, **options)
        # The log-probs from sampling are not those in the context that is trained on.
        return [
            replace(probe, sampled_logprobs=None) if hasattr(probe, "sampled_logprobs") else probe for probe in probes
        ]

    def _rewards(self, states: Sequence[Any], probes: Sequence[Any], responses: Sequence[Any]) -> Sequence[dict]:
        if offers(self.system, NamesRewardParts):
            return self.system.reward_parts(states, probes, responses)
        rewards = self.system.reward(states, probes, responses)
        return [{"reward": None if reward is None else float(reward)} for reward in rewards]

    def _check_prompts(self) -> None:
        check = self.system.check_prompts if offers(self.system, ChecksPrompts) else None
        depths = self.tree_depth, self.eval_depth or self.tree_depth
        for prompts, depth in zip((self.prompts, self.eval_prompts), depths, strict=True):
            if len(prompts) == 0:
                raise ValueError("prompts: there are none; expected at least one")
            if check is not None:
                check(prompts, depth)
        if self.few_shot is not None:
            self._check_few_shot(self.few_shot, check)

    def _check_few_shot(self, few_shot: FewShotConfiguration, check: Callable[..., None] | None) -> None:
        if not offers(self.system, ShowsExamples):
            raise ValueError(
                f"few_shot is set, but {type(self.system).__name__} has no method preceded(context, text); expected "
                f"null, or a system that can put a text before a context"
            )
        if check is not None:
            try:
                check([_preceded(longest(few_shot), prompt) for prompt in self.prompts], self.tree_depth)
            except ValueError as error:
                raise ValueError(f"with the examples of rollout.few_shot before them, {error}") from error


def _num_tokens(said: Any) -> int | None:
    return len(said.sampled_ids) if hasattr(said, "sampled_ids") else None


def _thinking(**said: Any) -> dict[str, str]:
    """The thinking before probe and response, if any: their texts don't include it."""
    thinking = {f"{name}_thinking": getattr(segment, "thinking", "") for name, segment in said.items()}
    return {name: text for name, text in thinking.items() if text}


def _draw_seed() -> int:
    return int(torch.randint(2**62, ()))


def _opening(prompt: Any) -> Any:
    """What a system that knows no goals begins with."""
    return prompt.opening if isinstance(prompt, Prompt) else prompt


def _preceded(text: str, prompt: str | Prompt) -> str | Prompt:
    return text + prompt if isinstance(prompt, str) else replace(prompt, opening=text + prompt.opening)


def _as_int(seed: int | str | Prompt) -> int:
    if not isinstance(seed, str | Prompt):
        return seed
    return text_seed(seed if isinstance(seed, str) else json.dumps(as_json(seed)))
