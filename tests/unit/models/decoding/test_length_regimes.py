"""Lengths at which a model reads otherwise."""

from __future__ import annotations

import pytest
import torch

from astra_accel.models import logprobs as logprobs_module
from astra_accel.models.decoding.kv_cache import PrefixCache
from astra_accel.models.decoding.length_regimes import LengthRegimes, Piece, length_regimes, split_by_regime
from astra_accel.models.forward.capabilities import UnsupportedModelError
from astra_accel.models.logprobs import sequence_logprobs
from tests.helpers.architectures import build
from tests.helpers.long_range import ALL, DYNAMIC, LIMIT, LONGROPE, build_long_range


def test_most_models_have_one_regime():
    regimes = length_regimes(build("llama"))
    assert regimes == LengthRegimes()
    assert [regimes.regime_of(length) for length in (1, 10**6)] == [0, 0]
    assert regimes.longest_like(5) is None
    assert regimes.count == 1


def test_a_limit_belongs_to_the_shorter_lengths():
    regimes = LengthRegimes((4, 8))
    assert [regimes.regime_of(length) for length in range(1, 11)] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert [regimes.longest_like(length) for length in range(1, 11)] == [4, 4, 4, 4, 8, 8, 8, 8, None, None]
    assert regimes.count == 3


def test_where_every_length_is_a_regime():
    regimes = LengthRegimes(grows_beyond=3)
    assert [regimes.regime_of(length) for length in range(1, 7)] == [0, 0, 0, 1, 2, 3]
    assert [regimes.longest_like(length) for length in range(1, 7)] == [3, 3, 3, 4, 5, 6]
    assert regimes.count is None


@pytest.mark.parametrize("name", ALL)
def test_the_regimes_of_models(name):
    expected = LengthRegimes()
    if name in LONGROPE:
        expected = LengthRegimes((LIMIT,))
    if name in DYNAMIC:
        expected = LengthRegimes(grows_beyond=LIMIT)
    assert length_regimes(build_long_range(name)) == expected


def test_a_continuation_is_cut_where_its_regime_changes():
    """A token is predicted by a forward over those before it: of ``a b | c d e`` e is the first beyond a limit of 3."""
    found = split_by_regime(LengthRegimes((3,)), [(1, 2), (1, 2, 3, 4), (1,)], [(3, 4, 5), (5, 6), ()])
    assert found == {
        0: [Piece(0, (1, 2), (3, 4), 0)],
        1: [Piece(0, (1, 2, 3, 4), (5,), 1), Piece(1, (1, 2, 3, 4), (5, 6), 1)],
    }


def test_a_piece_a_token_where_every_length_is_a_regime():
    found = split_by_regime(LengthRegimes(grows_beyond=2), [(1, 2)], [(3, 4, 5)])
    assert found == {
        0: [Piece(0, (1, 2), (3,), 0)],
        1: [Piece(0, (1, 2, 3), (4,), 1)],
        2: [Piece(0, (1, 2, 3, 4), (5,), 2)],
    }


def test_a_memory_keeps_regimes_apart():
    memory, row = PrefixCache(), object.__new__(_Row)
    memory.replace_regimes({1: [row]})
    assert memory.longest((1, 2))[0] is None
    assert memory.of_regime(2).longest((1, 2))[0] is None
    assert memory.of_regime(1).longest((1, 2)) == (row, 2)
    memory.replace([])
    assert memory.of_regime(1).longest((1, 2))[0] is None


class _Row:
    ids = (1, 2)


class TestShardedWeights:
    """Processes that share sharded weights wait for one another's forwards, so all make as many."""

    @pytest.fixture(autouse=True)
    def _sharded(self, monkeypatch):
        monkeypatch.setattr(logprobs_module, "is_sharded", lambda model: True)

    @pytest.mark.parametrize("packing", ["auto", "none"])
    @pytest.mark.parametrize(
        ("contexts", "continuations"),
        [
            ([(5, 6)], [(7, 8)]),
            ([(5,) * 30], [(7, 8)]),
            ([(5,) * 20, (5, 6)], [(7,) * 9, (7, 8)]),
            ([(5, 6)], [()]),
        ],
    )
    def test_as_many_forwards_whatever_the_lengths(self, packing, contexts, continuations):
        model = build_long_range("phi3 longrope")
        with torch.no_grad():
            sequence_logprobs(model, [(5,)], [(6,)], packing=packing)  # the model's checks
            expected = sequence_logprobs(model, contexts, continuations, packing=packing)
        calls = []
        hook = model.model.rotary_emb.register_forward_hook(lambda *_: calls.append(1))
        found = sequence_logprobs(model, contexts, continuations, packing=packing)
        hook.remove()
        assert len(calls) == 2
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one.detach(), other)
        if any(continuations):
            torch.cat(found).sum().backward()

    def test_where_nobody_can_say_how_many_it_is_refused(self):
        model = build_long_range("llama dynamic")
        sequence_logprobs(model, [(5,) * 20], [(7,) * 4])
        with pytest.raises(UnsupportedModelError, match="dynamic rotary scaling"):
            sequence_logprobs(model, [(5,) * 20], [(7,) * 9])
