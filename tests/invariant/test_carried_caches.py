"""Rollouts in which models continue from what they have read are those in which they read everything anew."""

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
from astra_accel.models.decoding.generation import Generated, generate
from astra_accel.models.decoding.kv_cache import PrefixCache
from astra_accel.models.decoding.prefill import ScoreRequest
from tests.helpers.architectures import ARCHITECTURES, FALLS_BACK, VOCABULARY, build
from tests.helpers.noise import exponentials

Ids = tuple[int, ...]
Seeds = Callable[[int, int, int], tuple[int, ...]]

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
    seeds: list[tuple[int, ...]]
    scored: list[ScoreRequest] | None
    said: list[Generated]
    num_fed: int


@dataclass
class Speaker:
    """One of the two models of a rollout, which counts what it reads.

    Attributes:
        model: of transformers.
        memory: what it continues from, or None.
        batch_rows: of a batch.
        seeds: those of a row by stream, turn and row.
        turns: what it has been asked so far.
    """

    model: Any
    memory: PrefixCache | None
    batch_rows: int
    seeds: Seeds
    turns: list[Turn] = field(default_factory=list)

    def speak(self, contexts: list[Ids], stream: int, scored: list[ScoreRequest] | None = None) -> list[Ids]:
        """One turn of each conversation."""
        seeds = [self.seeds(stream, len(self.turns), row) for row in range(len(contexts))]
        fed: list[int] = []
        count = self.model.get_input_embeddings().register_forward_hook(lambda _, args, __: fed.append(args[0].numel()))
        said = generate(
            self.model,
            contexts,
            seeds,
            SAMPLING,
            end_ids=END_IDS,
            batch_rows=self.batch_rows,
            memory=self.memory,
            scored=scored,
        )
        count.remove()
        self.turns.append(Turn(contexts, seeds, scored, said, sum(fed)))
        return [row.ids for row in said]


Rollout = tuple[list[Turn], list[Turn]]


def seeds_from(base: int) -> Seeds:
    return lambda stream, turn, row: (base, stream, turn, row)


def roll_out(
    models: tuple[Any, Any],
    carried: bool,
    seeds: Seeds = seeds_from(0),  # noqa: B008
    batch_rows: int = 64,
    lengths: Sequence[int] = PROMPT_LENGTHS,
) -> Rollout:
    """Trees of probes and responses: the turns of tester and target.

    The target scores the probes that it hears, the end of their turns included, which it does not hear.
    """
    tester, target = (Speaker(model, PrefixCache() if carried else None, batch_rows, seeds) for model in models)
    draw = random.Random(0)
    states = [tuple(draw.randrange(VOCABULARY) for _ in range(length)) for length in lengths]
    states.append(states[-2][:30])  # begins like another
    for _ in range(DEPTH):
        contexts = [state[-LIMIT:] for state in states for _ in range(WIDTH)]
        probes = tester.speak(contexts, stream=0)
        heard = [(*context, *spoken(probe))[-LIMIT:] for context, probe in zip(contexts, probes, strict=True)]
        asked = [ScoreRequest(len(ids) - len(spoken(probe)), probe) for ids, probe in zip(heard, probes, strict=True)]
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
def seeds(models: tuple[Any, Any]) -> Seeds:
    """Those of a rollout in which no draw is so close that rounding decides: of thousands, one in seven has some."""
    for base in range(20):
        margins = [
            margin
            for model, turns in zip(models, roll_out(models, False, seeds_from(base)), strict=True)
            for turn in turns
            for context, seed, said in zip(turn.contexts, turn.seeds, turn.said, strict=True)
            for margin in margins_of(said.ids, said_logprobs(model, context, said.ids), seed)
        ]
        if min(margins) > 1e-4:
            return seeds_from(base)
    raise AssertionError("every rollout has close draws")


@pytest.fixture(scope="module")
def rollout(models: tuple[Any, Any], seeds: Seeds) -> Rollout:
    return roll_out(models, carried=True, seeds=seeds)


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


def margins_of(ids: Ids, logprobs: torch.Tensor, seed: tuple[int, ...]) -> list[float]:
    """By how many nats each of ``ids`` is the likeliest for its noise in transformers' distribution."""
    warped = TemperatureLogitsWarper(SAMPLING.temperature)(None, logprobs).log_softmax(-1).numpy()
    margins = []
    for step, token in enumerate(ids):
        scores = warped[step] - np.log(exponentials(seed, step, VOCABULARY))
        margins.append(float(scores[token] - np.delete(scores, token).max()))
    return margins


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
    """Every token is what its noise draws from transformers' distribution, and every log-prob is the model's."""
    for model, turns in zip(models, rollout, strict=True):
        for turn in turns:
            for context, seed, row in list(zip(turn.contexts, turn.seeds, turn.said, strict=True))[::5]:
                logprobs = said_logprobs(model, context, row.ids)
                ids = torch.tensor(row.ids)
                torch.testing.assert_close(
                    torch.tensor(row.logprobs), logprobs.gather(-1, ids[:, None])[:, 0].float(), rtol=1e-4, atol=1e-4
                )
                assert min(margins_of(row.ids, logprobs, seed)) > 0
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
def test_carried_is_as_read_anew(models: tuple[Any, Any], seeds: Seeds, rollout: Rollout) -> None:
    assert_same_rollout(rollout, roll_out(models, carried=False, seeds=seeds))


@pytest.mark.parametrize("models", ["llama", "gemma2", "falcon_alibi"], indirect=True)
def test_small_batches_are_as_one_large(models: tuple[Any, Any], seeds: Seeds, rollout: Rollout) -> None:
    assert_same_rollout(rollout, roll_out(models, carried=True, seeds=seeds, batch_rows=5))


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
