"""A system, a sampler and an algorithm that inherit from nothing of the package.

They have the shape of the contracts and no more: the system is a plain object with two small modules, the sampler
has ``rollout``, ``eval_rollout`` and ``system``, the algorithm ``flatten``, ``collate_fn`` and ``step``. So what
trains them trains whatever was written for the reference.

States and probes are small ints. In a state the tester picks a probe by the weights of its policy; the target's
response is fixed by arithmetic, and so is the reward, which takes three values only: of two sibling probes the better
one is an example against the worse one, and siblings that tie give none. So the episodes of an experience give unequal
numbers of examples, many of them no example at all. An experience takes about a millisecond.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState, GradientState

NUM_STATES, NUM_PROBES = 7, 5


@dataclass
class PlainNode:
    """A turn, with no more than the contract's fields."""

    context: int
    probe: int
    response: int
    reward: float
    children: list[PlainNode] = field(default_factory=list)


@dataclass
class PlainGraph:
    """The tree of an episode."""

    context: int
    children: list[PlainNode] = field(default_factory=list)


class PlainSystem:
    """A tester of 41 parameters (a table of logits, a value head on them) and a target that is arithmetic.

    Args:
        seed: of the weights.
    """

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.policy = torch.nn.Embedding(NUM_STATES, NUM_PROBES)
        self.value_head = torch.nn.Linear(NUM_PROBES, 1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(generator=generator)

    def parameters(self) -> Iterator[torch.nn.Parameter]:
        yield from self.policy.parameters()
        yield from self.value_head.parameters()

    def logprobs(self, states: torch.Tensor) -> torch.Tensor:
        """The log-prob of every probe in each state, ``[batch, probes]``."""
        return self.policy(states).log_softmax(-1)

    def values(self, states: torch.Tensor) -> torch.Tensor:
        """The value of each state, ``[batch]``."""
        return self.value_head(self.policy(states)).squeeze(-1)

    def respond(self, state: int, probe: int) -> int:
        return (2 * state + probe) % NUM_STATES

    def reward(self, state: int, probe: int) -> float:
        return float(self.respond(state, probe) % 3)

    def advance(self, state: int, probe: int, response: int) -> int:
        return (state + 3 * probe + response) % NUM_STATES


class PlainSampler:
    """Trees of one or two turns, which follow from the weights and the seed.

    Args:
        system: a :class:`PlainSystem`.
    """

    def __init__(self, system: PlainSystem) -> None:
        self.system = system

    def rollout(self, seed: int) -> PlainGraph:
        """Two probes a context, one turn deep or two, as the seed says."""
        numbers = random.Random(seed)
        state, depth = numbers.randrange(NUM_STATES), numbers.randint(1, 2)
        return PlainGraph(state, self._turns(state, 2, depth, numbers))

    def eval_rollout(self, seed: int) -> PlainGraph:
        """One conversation of two turns from state number ``seed``."""
        state = seed % NUM_STATES
        return PlainGraph(state, self._turns(state, 1, 2, random.Random(seed)))

    def _turns(self, state: int, width: int, depth: int, numbers: random.Random) -> list[PlainNode]:
        if depth == 0:
            return []
        nodes = []
        weights = self.system.logprobs(torch.tensor([state])).double().exp()[0].tolist()
        for _ in range(width):
            probe = numbers.choices(range(NUM_PROBES), weights)[0]
            response = self.system.respond(state, probe)
            behind = self.system.advance(state, probe, response)
            children = self._turns(behind, width, depth - 1, numbers)
            nodes.append(PlainNode(state, probe, response, self.system.reward(state, probe), children))
        return nodes


@dataclass(frozen=True)
class PlainStep:
    """Two probes of a state, the first of which earned ``margin`` more."""

    state: int
    better: int
    worse: int
    margin: float


class PlainAlgorithm:
    """Prefers the better of two probes, and fits the value head to the margin between them.

    Args:
        system: a :class:`PlainSystem`.
    """

    def __init__(self, system: PlainSystem) -> None:
        self.system = system

    def flatten(self, graph: PlainGraph) -> list[PlainStep]:
        """One example for each pair of siblings that do not tie."""
        steps = []
        pending = [graph.children]
        while pending:
            siblings = pending.pop(0)
            pending.extend(node.children for node in siblings if node.children)
            better = max(siblings, key=lambda node: node.reward)
            worse = min(siblings, key=lambda node: node.reward)
            if better.reward > worse.reward:
                steps.append(PlainStep(better.context, better.probe, worse.probe, better.reward - worse.reward))
        return steps

    @staticmethod
    def collate_fn(batch: Sequence[PlainStep]) -> dict[str, torch.Tensor]:
        """A tensor for each field."""
        return {name: torch.tensor([getattr(step, name) for step in batch]) for name in PlainStep.__annotations__}

    def step(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The mean loss over the examples."""
        logprobs = self.system.logprobs(batch["state"])
        better = logprobs.gather(-1, batch["better"][:, None])
        worse = logprobs.gather(-1, batch["worse"][:, None])
        preference = -F.logsigmoid(better - worse).squeeze(-1)
        value_error = (self.system.values(batch["state"]) - batch["margin"]).square()
        accuracy = (better > worse).float().mean()
        return (preference + 0.1 * value_error).mean(), {"plain/accuracy": accuracy, "plain/value": value_error.mean()}


class ListedEvaluator:
    """Finds one value after the other, whatever the rollouts were."""

    def __init__(self, values, seeds=None):
        self.values, self.seeds, self.rollouts = iter(values), seeds, []

    def compute_metrics(self, graph):
        return {"context": graph.context}

    def aggregate_metrics(self, metrics):
        self.rollouts.append([episode["context"] for episode in metrics])
        return {"score": next(self.values), "other": 0.0}


def build_plain(seed: int = 0) -> tuple[PlainSampler, PlainAlgorithm]:
    """A sampler and an algorithm on one new system, which is ``sampler.system``."""
    system = PlainSystem(seed)
    return PlainSampler(system), PlainAlgorithm(system)


def reset_accelerate() -> None:
    """Forget the accelerator of this process, whose state Accelerate keeps for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
