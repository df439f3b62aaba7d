"""Attention in parts, against the whole written out for each query by itself."""

from __future__ import annotations

import math

import pytest
import torch

from astra_accel.models.forward import attention
from astra_accel.models.forward.attention import Rule, attention_part, merge_partial_attention

RULES = {
    "plain": Rule(None, None, None),
    "scaled": Rule(0.3, None, None),
    "soft cap": Rule(0.3, 2.0, None),
    "window": Rule(None, None, 4),
}
BATCH, HEADS, KEY_HEADS, QUERIES, KEYS, DIM = 3, 4, 2, 5, 11, 8


def states() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    query = 3 * torch.randn(BATCH, HEADS, QUERIES, DIM, generator=draw)
    key, value = torch.randn(2, BATCH, KEY_HEADS, KEYS, DIM, generator=draw).unbind()
    return query, key, value


def some_mask(rows: int = QUERIES, always: tuple[int, ...] = (-1,)) -> torch.Tensor:
    """Hides about half of the keys, but never some of them."""
    hidden = torch.rand(BATCH, rows, KEYS, generator=torch.Generator().manual_seed(1)) < 0.5
    hidden[..., always] = False
    return torch.zeros(hidden.shape).masked_fill_(hidden, -torch.inf)


def by_query(query, key, value, mask: torch.Tensor | None, rule: Rule) -> torch.Tensor:
    """One query and one key at a time, in Python's numbers."""
    output = torch.zeros_like(query, dtype=torch.float64)
    for batch, head, at in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).tolist():
        key_head = head // (HEADS // KEY_HEADS)
        scores = []
        for other in range(key.shape[2]):
            scale = DIM**-0.5 if rule.scale is None else rule.scale
            score = scale * float(query[batch, head, at].double() @ key[batch, key_head, other].double())
            score = score if rule.softcap is None else rule.softcap * math.tanh(score / rule.softcap)
            row = 0 if mask is None or mask.shape[1] == 1 else at
            scores.append(score + (0.0 if mask is None else float(mask[batch, row, other])))
        weights = [math.exp(score) for score in scores]
        for weight, states_D in zip(weights, value[batch, key_head], strict=True):
            output[batch, head, at] += weight / sum(weights) * states_D
    return output.float()


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("mask", [None, some_mask(), some_mask(1)], ids=["no mask", "a mask", "a mask for all queries"])
def test_one_part_is_the_whole(rule, mask):
    part = attention_part(*states(), mask, rule)
    torch.testing.assert_close(part.output_BHQD, by_query(*states(), mask, rule))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("split", [1, 4, KEYS - 1])
def test_two_parts_are_the_whole(rule, split):
    query, key, value = states()
    # Only with a window a query may see nothing of a part.
    mask = some_mask(always=(-1,) if rule.window else (0, -1))
    parts = [
        attention_part(query, key[:, :, keys], value[:, :, keys], mask[:, :, keys], rule)
        for keys in (slice(split), slice(split, None))
    ]
    expected = by_query(query, key, value, mask, rule)
    torch.testing.assert_close(merge_partial_attention(*parts), expected)
    torch.testing.assert_close(merge_partial_attention(*parts[::-1]), expected)


def test_a_part_of_which_nothing_is_seen_adds_nothing():
    query, key, value = states()
    nothing = torch.full((BATCH, QUERIES, KEYS), -torch.inf)
    part, unseen = (attention_part(query, key, value, mask, RULES["window"]) for mask in (None, nothing))
    assert torch.equal(merge_partial_attention(part, unseen), merge_partial_attention(unseen, part))
    torch.testing.assert_close(merge_partial_attention(part, unseen), by_query(query, key, value, None, RULES["plain"]))


def test_scores_far_beyond_what_an_exponential_holds():
    query, key, value = states()
    far = 1e4 * query
    parts = [
        attention_part(far, key[:, :, keys], value[:, :, keys], None, RULES["plain"])
        for keys in (slice(5), slice(5, None))
    ]
    by_group = far.unflatten(1, (KEY_HEADS, -1))
    best = (by_group @ key.unsqueeze(2).transpose(-1, -2)).argmax(-1, keepdim=True)
    expected = value.unsqueeze(2).take_along_dim(best, dim=3)
    torch.testing.assert_close(merge_partial_attention(*parts), expected.flatten(1, 2))


def test_few_scores_at_once_change_nothing(monkeypatch):
    once = attention_part(*states(), some_mask(), RULES["soft cap"])
    monkeypatch.setattr(attention, "MAX_SCORES", HEADS * QUERIES * KEYS * 2)
    for part, expected in zip(attention_part(*states(), some_mask(), RULES["soft cap"]), once, strict=True):
        torch.testing.assert_close(part, expected)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_sixteen_bits(rule):
    query, key, value = (each.bfloat16() for each in states())
    part = attention_part(query, key, value, some_mask(), rule)
    assert (part.output_BHQD.dtype, part.lse_BHQ.dtype) == (torch.bfloat16, torch.float32)
    expected = by_query(query.float(), key.float(), value.float(), some_mask(), rule)
    torch.testing.assert_close(part.output_BHQD.float(), expected, rtol=0.03, atol=0.03)
