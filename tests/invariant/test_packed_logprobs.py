"""Log-probs and gradients are those of one plain forward a sequence, however many sequences are read at once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest
import torch

from astra_accel.models.logprobs import sequence_logprobs
from tests.helpers.architectures import ARCHITECTURES, FALLS_BACK, VOCABULARY, WINDOW, build

Ids = list[int]

# How the same may be computed. The pairs below have some 400 distinct tokens, and 500 with their repetitions.
WAYS: dict[str, dict[str, Any]] = {
    "packed": {},
    "several packs": {"token_budget": 90},
    "checkpointed": {"activation_checkpointing": True},
    "several packs, checkpointed": {"token_budget": 90, "activation_checkpointing": True},
    "padded": {"packing": "none"},
    "padded batches": {"packing": "none", "token_budget": 90},
    "padded, checkpointed": {"packing": "none", "activation_checkpointing": True},
}


def pairs() -> tuple[list[Ids], list[Ids]]:
    """Contexts and continuations as a rollout makes them, and others.

    Two trees of siblings and their descendants, deeper than any window; contexts of one token; continuations that
    begin alike, are the same, continue beyond another, or are none.
    """
    draw = random.Random(0)

    def some(length: int) -> Ids:
        return [draw.randrange(VOCABULARY) for _ in range(length)]

    contexts, continuations = [], []
    for root in (some(100), some(1)):
        state = root
        for _ in range(3):
            siblings = [some(7), some(12)]
            contexts += [state, state]
            continuations += siblings
            state = [*state, *siblings[0], *some(9)]
    contexts += [root, root, root, some(40), some(1), some(3 * WINDOW)]
    alike = some(8)
    continuations += [alike, alike, [*alike[:5], *some(3)], [], some(60), some(1)]
    return contexts, continuations


def plain(model: Any, context: Sequence[int], continuation: Sequence[int]) -> torch.Tensor:
    """One forward without padding, mask or cache, and a whole log-softmax."""
    ids = torch.tensor([[*context, *continuation]])
    logprobs = model(input_ids=ids, use_cache=False).logits[0, len(context) - 1 : -1].float().log_softmax(-1)
    return logprobs.gather(-1, ids[0, len(context) :, None]).squeeze(-1)


def gradient(model: Any, logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """The gradient of all weights, as one vector, of a sum in which every token counts differently."""
    model.zero_grad()
    sum((values * torch.linspace(-1, 2, len(values))).sum() for values in logprobs).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


class Expected(NamedTuple):
    model: Any
    values: list[torch.Tensor]
    gradient: torch.Tensor


@pytest.fixture(scope="module", params=ARCHITECTURES)
def expected(request: pytest.FixtureRequest) -> Expected:
    model = build(request.param)
    values = [plain(model, *pair) for pair in zip(*pairs(), strict=True)]
    return Expected(model, [each.detach() for each in values], gradient(model, values))


@pytest.mark.parametrize("way", WAYS)
def test_values_and_gradients_are_those_of_a_forward_a_sequence(expected: Expected, way: str) -> None:
    found = sequence_logprobs(expected.model, *pairs(), **WAYS[way])
    for values, expected_values in zip(found, expected.values, strict=True):
        torch.testing.assert_close(values.detach(), expected_values, rtol=1e-4, atol=1e-4)
    assert expected.gradient.norm() > 1
    error = gradient(expected.model, found) - expected.gradient
    assert error.norm() < 1e-4 * expected.gradient.norm()


@pytest.mark.parametrize("way", ["packed", "several packs", "padded batches"])
def test_values_without_gradients(expected: Expected, way: str) -> None:
    with torch.no_grad():
        found = sequence_logprobs(expected.model, *pairs(), **WAYS[way])
    for values, expected_values in zip(found, expected.values, strict=True):
        torch.testing.assert_close(values, expected_values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", ["mistral", "qwen2_mixed_windows", "gemma2"])
def test_the_sequences_are_longer_than_the_windows(architecture: str) -> None:
    """Otherwise a window that nobody observes would go unnoticed."""
    model = build(architecture)
    contexts, continuations = pairs()
    narrow = plain(model, contexts[0], continuations[0])
    model.config.sliding_window = 10 * WINDOW
    assert (plain(model, contexts[0], continuations[0]) - narrow).abs().max() > 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_cannot_be_packed_says_so_once(architecture: str, caplog: pytest.LogCaptureFixture) -> None:
    model = build(architecture)
    about_packing = [f"{type(model).__name__} can't do prefix-tree packing"] if architecture in FALLS_BACK else []
    with torch.no_grad():
        for _ in range(2):
            sequence_logprobs(model, [[1, 2]], [[3]])
    assert [text.partition(" (")[0] for text in caplog.messages if "packing" in text] == about_packing
    if about_packing:
        with pytest.raises(ValueError, match=about_packing[0]):
            sequence_logprobs(model, [[1, 2]], [[3]], packing="prefix_tree")
    else:
        assert caplog.messages == []
        sequence_logprobs(model, [[1, 2]], [[3]], packing="prefix_tree")
