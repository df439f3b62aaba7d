"""Attention of carried rows, against softmax over each row's whole sequence; and the cache's ends and copies."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch

from astra_accel.models.decoding.cached_attention import RowLayout, feed
from astra_accel.models.decoding.kv_cache import CacheBatch, CachedRow, Paths, PrefixCache, SharedPrefixes
from astra_accel.models.forward.attention import Rule
from astra_accel.models.forward.padded import body_of
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny

CPU = torch.device("cpu")
HEADS, KEY_HEADS, DIM = 4, 2, 8
PREFIXES = [(1, 2, 3, 4, 5), (7, 8)]
RULES = {
    "plain": Rule(None, None, None),
    "a scale and a cap": Rule(0.4, 5.0, None),
    "a window": Rule(None, None, 3),
}


class Sequences:
    """Rows with states for all of their tokens, of which a cache holds the first and the rest are read now."""

    def __init__(self, prefix_of: Sequence[int], read: Sequence[int], new: Sequence[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.prefix_of, self.read, self.new = list(prefix_of), list(read), list(new)
        shared = [self._states(len(ids), generator) for ids in PREFIXES]
        own = [self._states(length + more, generator) for length, more in zip(read, new, strict=True)]
        # [tokens, key heads, dim] each, keys and values
        self.states = [
            tuple(torch.cat(both) for both in zip(shared[prefix], mine, strict=True))
            for prefix, mine in zip(prefix_of, own, strict=True)
        ]
        self.queries = [torch.randn(more, HEADS, DIM, generator=generator) for more in new]

    @staticmethod
    def _states(length: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (length, KEY_HEADS, DIM)
        return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)

    def start(self, row: int) -> int:
        return len(PREFIXES[self.prefix_of[row]])

    def cached(self, rows: Sequence[int]) -> CacheBatch:
        """A batch of some rows that have read what is not new."""
        prefixes = SharedPrefixes.from_ids(PREFIXES)
        ids = [[*PREFIXES[self.prefix_of[row]], *range(100, 100 + self.read[row])] for row in rows]
        room = max(self.read) + max(self.new)  # for filling too
        batch = CacheBatch(ids, prefixes, [self.prefix_of[row] for row in rows], room)
        for place, prefix in enumerate(PREFIXES):
            row = self.prefix_of.index(place)
            states = [part[: len(prefix)].transpose(0, 1) for part in self.states[row]]
            prefixes.slots.write(0, *states, Paths.from_nodes({place: [*range(len(prefix))]}, CPU))
        for place, row in enumerate(rows):
            begun = slice(self.start(row), self.start(row) + self.read[row])
            states = [part[begun].transpose(0, 1) for part in self.states[row]]
            batch.slots.write(0, *states, Paths.from_nodes({place: [*range(self.read[row])]}, CPU))
        return batch

    def padded(self, rows: Sequence[int], of: str) -> torch.Tensor:
        """``[rows, heads, longest, dim]`` of what the rows read now."""
        longest = max(self.new[row] for row in rows)
        parts = []
        for row in rows:
            new = self.queries[row] if of == "query" else self.states[row][of == "value"][-self.new[row] :]
            parts.append(torch.cat([new, torch.zeros(longest - len(new), *new.shape[1:])]).transpose(0, 1))
        return torch.stack(parts)

    def plain(self, row: int, rule: Rule) -> torch.Tensor:
        """Softmax of the row's new queries over all that stands before them, ``[tokens, heads, dim]``."""
        key, value = (part.repeat_interleave(HEADS // KEY_HEADS, dim=1) for part in self.states[row])
        first = len(key) - self.new[row]
        outputs = []
        for step, query_HD in enumerate(self.queries[row]):
            end = first + step + 1
            begin = 0 if rule.window is None else max(0, end - rule.window)
            score_HK = torch.einsum("hd,khd->hk", query_HD, key[begin:end]) * (rule.scale or 1 / math.sqrt(DIM))
            if rule.softcap is not None:
                score_HK = rule.softcap * torch.tanh(score_HK / rule.softcap)
            outputs.append(torch.einsum("hk,khd->hd", score_HK.softmax(-1), value[begin:end]))
        return torch.stack(outputs)

    def attended(self, batches: Sequence[Sequence[int]], rule: Rule) -> dict[int, torch.Tensor]:
        """What the layout gives, by row."""
        rows = [row for each in batches for row in each]
        caches = [self.cached(each) for each in batches]
        layout = RowLayout(caches, [[9] * self.new[row] for row in rows], CPU)
        output_BTHD = layout.attend(0, *(self.padded(rows, of) for of in ("query", "key", "value")), rule)
        return {row: output_BTHD[place, : self.new[row]] for place, row in enumerate(rows)}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("batches", [[[0, 1, 2, 3, 4]], [[0, 3], [1, 2, 4]]], ids=["one batch", "two batches"])
@pytest.mark.parametrize("new", [[1, 1, 1, 1, 1], [2, 1, 4, 1, 3]], ids=["a token each", "pieces of unlike length"])
def test_attention_is_that_of_each_row_alone(rule: Rule, batches: list[list[int]], new: list[int]) -> None:
    sequences = Sequences(prefix_of=[0, 1, 0, 0, 1], read=[3, 0, 1, 5, 2], new=new)

    outputs = sequences.attended(batches, rule)

    for row, output_THD in outputs.items():
        torch.testing.assert_close(output_THD, sequences.plain(row, rule), rtol=1e-5, atol=1e-5)


def test_rows_that_end_leave_the_others_what_they_have_read() -> None:
    sequences = Sequences(prefix_of=[0, 1, 0, 0, 1], read=[3, 0, 1, 5, 2], new=[1, 1, 1, 1, 1])
    cache = sequences.cached(range(5))

    staying = cache.end([0, 3])

    assert sorted(staying) == [1, 2, 4]
    assert cache.num_active == 3
    layout = RowLayout([cache], [[9]] * 3, CPU)
    output = layout.attend(0, *(sequences.padded(staying, of) for of in ("query", "key", "value")), RULES["plain"])
    for place, row in enumerate(staying):
        torch.testing.assert_close(output[place], sequences.plain(row, RULES["plain"]), rtol=1e-5, atol=1e-5)
    layout.finish()
    assert [len(ids) for ids in cache.ids[:3]] == [sequences.start(row) + sequences.read[row] + 1 for row in staying]


@pytest.mark.parametrize("release", [False, True], ids=["kept", "given up"])
def test_a_copy_forks_rows_and_cuts_them_back(release: bool) -> None:
    sequences = Sequences(prefix_of=[0, 1], read=[4, 3], new=[1, 1])
    old = sequences.cached([0, 1])
    rows = old.rows()
    # Row 0 twice: whole, and cut back by two tokens; row 1 once.
    ids = [[*rows[0].ids], [*rows[0].ids[:-2]], [*rows[1].ids]]
    new = CacheBatch(ids, SharedPrefixes.from_ids(PREFIXES), [0, 0, 1], num_slots=6)

    new.copy([rows[0], rows[0], rows[1]], [old] if release else [])

    assert [new.num_own(row) for row in range(3)] == [4, 2, 3]
    kept = new.slots.buffers[0]
    assert kept is not None
    for place, (row, length) in enumerate([(0, 4), (0, 2), (1, 3)]):
        begun = slice(sequences.start(row), sequences.start(row) + length)
        for buffer, states in zip(kept, sequences.states[row], strict=True):
            assert torch.equal(buffer[place, :, :length], states[begun].transpose(0, 1))
    assert (old.slots.buffers[0] is None) == release


def test_the_longest_shared_prefix_is_that_of_a_search_through_all() -> None:
    generator = torch.Generator().manual_seed(1)
    texts = [tuple(torch.randint(3, (8,), generator=generator).tolist()) for _ in range(40)]
    cache = CacheBatch([[*ids] for ids in texts], SharedPrefixes.from_ids([()]), [0] * 40, 8)
    rows = [CachedRow(cache, row, ids) for row, ids in enumerate(texts)]
    found = PrefixCache()
    found.replace(rows)

    for _ in range(50):
        wanted = tuple(torch.randint(3, (6,), generator=generator).tolist())
        by_hand = max(_shared(ids, wanted) for ids in texts)
        row, length = found.longest(wanted)
        assert length == by_hand
        assert (row is None) == (length == 0)
        assert row is None or _shared(row.ids, wanted) == length


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = list(zip(one, other, strict=False))
    return next((place for place, (left, right) in enumerate(pairs) if left != right), len(pairs))


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_a_model_reads_on_as_if_it_had_read_all_at_once(architecture: str) -> None:
    """In pieces of unlike length, the body's output is that of each whole sequence."""
    model, _ = build_tiny(architecture)
    prefix, texts = [5, 6, 7], [[8, 9, 10, 11], [20, 21], [30, 31, 32]]
    pieces = [[0, 1, 4], [0, 1, 2], [0, 2, 3]]  # where each begins and ends
    cache = CacheBatch([[*prefix] for _ in texts], SharedPrefixes.from_ids([tuple(prefix)]), [0] * 3, num_slots=8)
    with torch.no_grad():
        read = model(input_ids=torch.tensor([prefix]), use_cache=True).past_key_values
        for number, layer in enumerate(read.layers):
            cache.prefixes.slots.write(number, layer.keys[0], layer.values[0], Paths.from_nodes({0: [0, 1, 2]}, CPU))
        for step in range(2):
            tokens = [text[ends[step] : ends[step + 1]] for text, ends in zip(texts, pieces, strict=True)]
            hidden_BTH = feed(model, [cache], tokens)
            for row, new in enumerate(tokens):
                whole = torch.tensor([[*prefix, *texts[row][: pieces[row][step + 1]]]])
                whole_TH = body_of(model)(input_ids=whole, use_cache=False)[0][0]
                torch.testing.assert_close(hidden_BTH[row, : len(new)], whole_TH[-len(new) :], rtol=1e-4, atol=1e-5)
    assert cache.ids == [[*prefix, *text] for text in texts]
