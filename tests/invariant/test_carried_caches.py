"""Rollouts in which models go on from what they have read are those in which they read everything anew."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper

from astra_accel.config import SamplingConfiguration
from astra_accel.models.generation import Generated, generate
from astra_accel.models.kv_cache import PrefixCache
from astra_accel.models.reading import Scored
from astra_accel.models.sampling import uniforms
from tests.helpers.architectures import ARCHITECTURES, FALLS_BACK, VOCABULARY, build

Ids = tuple[int, ...]
Numbers = Callable[[int, int, int], np.ndarray]

PROMPT_LENGTHS = (1, 2, 13, 130, 600)
WIDTH, DEPTH = 2, 3
LIMIT = 590
"""Tokens of context. The longest prompt is cut in every turn, so that it never begins like what was remembered."""
SAMPLING = SamplingConfiguration(temperature=1.2, max_new_tokens=9)
"""Without top-p: some of thousands of tokens would stand on its edge, where rounding decides."""
END_IDS = frozenset(range(0, VOCABULARY, 8))
"""Many, so that rows end all along the way."""
CARRIES = tuple(name for name in ARCHITECTURES if name not in FALLS_BACK)


@dataclass
class Turn:
    """What one model was asked in one turn of all conversations, and what it said."""

    contexts: list[Ids]
    numbers: list[Any]
    scored: list[Scored] | None
    said: list[Generated]
    num_fed: int


@dataclass
class Speaker:
    """One of the two models of a rollout, which counts what it reads.

    Attributes:
        model: of transformers.
        memory: what it goes on from, or None.
        batch_rows: of a batch.
        numbers: those of a row by stream, turn and row.
        turns: what it has been asked so far.
    """

    model: Any
    memory: PrefixCache | None
    batch_rows: int
    numbers: Numbers
    turns: list[Turn] = field(default_factory=list)

    def speak(self, contexts: list[Ids], stream: int, scored: list[Scored] | None = None) -> list[Ids]:
        """One turn of each conversation."""
        numbers = [self.numbers(stream, len(self.turns), row) for row in range(len(contexts))]
        fed: list[int] = []
        count = self.model.get_input_embeddings().register_forward_hook(lambda _, args, __: fed.append(args[0].numel()))
        said = generate(
            self.model,
            contexts,
            numbers,
            SAMPLING,
            end_ids=END_IDS,
            batch_rows=self.batch_rows,
            memory=self.memory,
            scored=scored,
        )
        count.remove()
        self.turns.append(Turn(contexts, numbers, scored, said, sum(fed)))
        return [row.ids for row in said]


Rollout = tuple[list[Turn], list[Turn]]


def drawn(stream: int, turn: int, row: int) -> np.ndarray:
    return uniforms((stream, turn, row), SAMPLING.max_new_tokens)


def roll_out(
    models: tuple[Any, Any],
    carried: bool,
    numbers: Numbers = drawn,
    batch_rows: int = 64,
    lengths: Sequence[int] = PROMPT_LENGTHS,
) -> Rollout:
    """Trees of probes and responses: the turns of tester and target.

    The target scores the probes that it hears, the end of their turns included, which it does not hear.
    """
    tester, target = (Speaker(model, PrefixCache() if carried else None, batch_rows, numbers) for model in models)
    draw = random.Random(0)
    states = [tuple(draw.randrange(VOCABULARY) for _ in range(length)) for length in lengths]
    states.append(states[-2][:30])  # begins like another
    for _ in range(DEPTH):
        contexts = [state[-LIMIT:] for state in states for _ in range(WIDTH)]
        probes = tester.speak(contexts, stream=0)
        heard = [(*context, *spoken(probe))[-LIMIT:] for context, probe in zip(contexts, probes, strict=True)]
        asked = [Scored(len(ids) - len(spoken(probe)), probe) for ids, probe in zip(heard, probes, strict=True)]
        responses = target.speak(heard, stream=1, scored=asked)
        states = [(*ids, *spoken(response)) for ids, response in zip(heard, responses, strict=True)]
    return tester.turns, target.turns


def spoken(ids: Ids) -> Ids:
    """What the other side reads of a turn."""
    return ids[:-1] if ids[-1] in END_IDS else ids


@pytest.fixture(scope="module", params=ARCHITECTURES)
def models(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return build(request.param, seed=0), build(request.param, seed=1)


@pytest.fixture(scope="module")
def numbers(models: tuple[Any, Any]) -> Numbers:
    """Those drawn, each moved off the ends of its token's share: some of thousands fall where rounding decides."""
    moved = {}
    for stream, (model, turns) in enumerate(zip(models, roll_out(models, carried=False), strict=True)):
        for number, turn in enumerate(turns):
            for row, (context, before, said) in enumerate(zip(turn.contexts, turn.numbers, turn.said, strict=True)):
                starts, ends = shares(torch.tensor(said.ids), said_logprobs(model, context, said.ids))
                inner = (starts + (ends - starts) * (0.1 + 0.8 * torch.from_numpy(before[: len(said.ids)]))).numpy()
                moved[stream, number, row] = np.concatenate([inner, before[len(said.ids) :]])
    return lambda *key: moved[key]


@pytest.fixture(scope="module")
def rollout(models: tuple[Any, Any], numbers: Numbers) -> Rollout:
    return roll_out(models, carried=True, numbers=numbers)


def assert_same_rollout(one: Rollout, other: Rollout) -> None:
    for turns, others in zip(one, other, strict=True):
        for turn, same in zip(turns, others, strict=True):
            assert turn.contexts == same.contexts
            for row, expected in zip(turn.said, same.said, strict=True):
                assert row.ids == expected.ids
                assert row.logprobs == pytest.approx(expected.logprobs, rel=1e-4, abs=1e-4)
                assert (row.scored is None) == (expected.scored is None)
                assert expected.scored is None or row.scored == pytest.approx(expected.scored, rel=1e-4, abs=1e-4)


def plain_logprobs(model: Any, ids: Ids) -> torch.Tensor:
    """The log-prob of every next token, ``[tokens, vocabulary]``: one forward without mask, padding or cache."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double().log_softmax(-1)


def said_logprobs(model: Any, context: Ids, ids: Ids) -> torch.Tensor:
    """Those from which each of ``ids``, said after ``context``, was drawn: ``[ids, vocabulary]``."""
    return plain_logprobs(model, (*context, *ids))[len(context) - 1 : -1]


def shares(ids: torch.Tensor, logprobs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Between which numbers transformers' distribution gives each of ``ids``: starts and ends, ``[ids]``."""
    ends = TemperatureLogitsWarper(SAMPLING.temperature)(None, logprobs).softmax(-1).cumsum(-1)
    edges = torch.cat([torch.zeros_like(ends[:, :1]), ends], dim=-1)
    return edges.gather(-1, ids[:, None])[:, 0], ends.gather(-1, ids[:, None])[:, 0]


def test_the_rollout_is_worth_it(rollout: Rollout) -> None:
    """Contexts of one token and at the limit, shared ones, turns that end early, at once, and not at all."""
    for number, turns in enumerate(rollout):
        contexts = [context for turn in turns for context in turn.contexts]
        lengths = {len(row.ids) for turn in turns for row in turn.said}
        assert lengths >= {1, 4, SAMPLING.max_new_tokens}
        assert max(map(len, contexts)) == LIMIT
        assert number == 1 or min(map(len, contexts)) == 1
        assert number == 1 or len(set(contexts)) <= len(contexts) / WIDTH
        assert [len(turn.contexts) for turn in turns] == [12, 24, 48]


def test_what_is_said_is_what_a_plain_forward_says(models: tuple[Any, Any], rollout: Rollout) -> None:
    """Every token is where its number falls in transformers' distribution, and every log-prob is the model's."""
    for model, turns in zip(models, rollout, strict=True):
        for turn in turns:
            for context, numbers, row in list(zip(turn.contexts, turn.numbers, turn.said, strict=True))[::5]:
                logprobs = said_logprobs(model, context, row.ids)
                ids = torch.tensor(row.ids)
                torch.testing.assert_close(
                    torch.tensor(row.logprobs), logprobs.gather(-1, ids[:, None])[:, 0].float(), rtol=1e-4, atol=1e-4
                )
                number = torch.from_numpy(numbers[: len(row.ids)])
                starts, ends = shares(ids, logprobs)
                assert ((starts < number) & (number < ends)).all()
                assert row.ids[-1] in END_IDS or len(row.ids) == SAMPLING.max_new_tokens
                assert not END_IDS.intersection(row.ids[:-1])


@pytest.mark.parametrize("models", CARRIES, indirect=True)
def test_scored_log_probs_are_those_of_a_plain_forward(models: tuple[Any, Any], rollout: Rollout) -> None:
    model, turns = models[1], rollout[1]
    for turn in turns:
        assert turn.scored is not None
        for context, asked, row in list(zip(turn.contexts, turn.scored, turn.said, strict=True))[::3]:
            logprobs = plain_logprobs(model, (*context[: asked.start], *asked.ids))[asked.start - 1 : -1]
            expected = logprobs.gather(-1, torch.tensor(asked.ids)[:, None])[:, 0].float()
            torch.testing.assert_close(torch.tensor(row.scored), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("models", CARRIES, indirect=True)
def test_carried_is_as_read_anew(models: tuple[Any, Any], numbers: Numbers, rollout: Rollout) -> None:
    assert_same_rollout(rollout, roll_out(models, carried=False, numbers=numbers))


@pytest.mark.parametrize("models", ["llama", "gemma2", "falcon_alibi"], indirect=True)
def test_small_batches_are_as_one_large(models: tuple[Any, Any], numbers: Numbers, rollout: Rollout) -> None:
    assert_same_rollout(rollout, roll_out(models, carried=True, numbers=numbers, batch_rows=5))


@pytest.mark.parametrize("architecture", ["llama", "mistral"])
def test_only_what_is_new_is_read(architecture: str) -> None:
    """Without a prompt at the limit, which is read anew in any case."""
    models = build(architecture, seed=0), build(architecture, seed=1)
    num_read = []
    for carried in (True, False):
        turns = [turn for turns in roll_out(models, carried, lengths=(30, 60, 130, 200)) for turn in turns[1:]]
        # The last token of a turn is fed to nobody while it is sampled.
        num_read.append([turn.num_fed - sum(len(row.ids) - 1 for row in turn.said) for turn in turns])
    assert all(2 * few < many for few, many in zip(*num_read, strict=True))


def test_what_cannot_carry_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    for architecture in ("falcon_alibi", "gpt2"):
        _, turns = roll_out((build(architecture), build(architecture)), carried=True, lengths=(1, 40))
        scores = {row.scored is not None for turn in turns for row in turn.said}
        assert scores == {architecture == "gpt2"}
    about = [text.partition(" (")[0] for text in caplog.messages]
    assert about.count("FalconForCausalLM can't do carried caches") == 2  # there are two of them
    assert all(text.startswith("Falcon") for text in about)
