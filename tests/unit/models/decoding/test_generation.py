"""Decoding with a cache, against a plain loop: one row at a time, the whole sequence fed anew for every token.

Whole rollouts of all architectures are in ``tests/invariant/test_carried_caches.py``.
"""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding import cached_attention, generation, token_sampling
from astra_accel.models.decoding.generation import carries, generate
from astra_accel.models.decoding.kv_cache import PrefixCache
from astra_accel.models.decoding.prefill import ScoreRequest
from astra_accel.models.decoding.token_sampling import NonFiniteLogitsError
from astra_accel.models.forward import capabilities
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny
from astra_accel.models.logprobs import sequence_logprobs
from tests.helpers.noise import drawn, warped_logprobs

SAMPLINGS = [
    SamplingConfiguration(max_new_tokens=12),
    SamplingConfiguration(temperature=1.4, top_p=0.9, top_k=60, max_new_tokens=12),
]
# Many, so that rows end all along the way.
END_IDS = frozenset(range(200, 225))


@pytest.fixture(scope="module", params=TINY_ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_tiny(request.param)[0].requires_grad_(False)


def contexts_of(lengths: list[int]) -> list[tuple[int, ...]]:
    draw = random.Random(1)
    return [tuple(draw.randrange(250) for _ in range(length)) for length in lengths]


def seeds_of(rows: int) -> list[tuple[int, ...]]:
    return [(9, row) for row in range(rows)]


def ids_of(model, contexts, seeds, sampling, **options) -> list[tuple[int, ...]]:
    return [row.ids for row in generate(model, contexts, seeds, sampling, **options)]


def plain(model, context, seed, sampling, end_ids) -> tuple[int, ...]:
    """The ids; no draw is so close that rounding could decide it."""
    sampled: list[int] = []
    for step in range(sampling.max_new_tokens):
        with torch.no_grad():
            logits_1V = model(input_ids=torch.tensor([[*context, *sampled]])).logits[:, -1]
        token, margin = drawn(warped_logprobs(logits_1V, sampling), seed, step)
        assert margin > 1e-4, "a close draw: take other seeds"
        sampled.append(token)
        if token in end_ids:
            break
    return tuple(sampled)


# One context five times, one of one token, and several of one length.
LENGTHS = [7, 1, 90, 7, 23, 40, 3]
CONTEXTS = [context for context in contexts_of(LENGTHS) for _ in range(2)] + 3 * contexts_of(LENGTHS)[:1]
DIFFERENT_ORDER = random.Random(2).sample(range(len(CONTEXTS)), len(CONTEXTS))


@pytest.fixture(scope="module", params=SAMPLINGS, ids=["all tokens", "filtered"])
def expected(request, model) -> tuple[SamplingConfiguration, list[tuple[int, ...]], list[tuple[int, ...]]]:
    sampling, seeds = request.param, seeds_of(len(CONTEXTS))
    rows = zip(CONTEXTS, seeds, strict=True)
    return sampling, seeds, [plain(model, *row, sampling, END_IDS) for row in rows]


def test_the_cases_are_worth_it(expected):
    sampling, _, rows = expected
    lengths = {len(row) for row in rows}
    assert len(lengths) > 3
    assert sampling.max_new_tokens in lengths
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("batch_rows", [1, 2, 3, 64])
def test_any_batch_gives_the_plain_ids(model, expected, batch_rows):
    sampling, seeds, rows = expected
    options = {"end_ids": END_IDS, "batch_rows": batch_rows}
    assert ids_of(model, CONTEXTS, seeds, sampling, **options) == rows
    shuffled = [CONTEXTS[row] for row in DIFFERENT_ORDER], [seeds[row] for row in DIFFERENT_ORDER]
    assert ids_of(model, *shuffled, sampling, **options) == [rows[row] for row in DIFFERENT_ORDER]


class TestStepsAtOnce:
    """The host looks at what was drawn after several steps, as on a GPU."""

    @pytest.mark.parametrize("batch_rows", [3, 64])
    @pytest.mark.parametrize("steps", [5, 8, 64])
    def test_the_ids_are_the_plain_ones(self, model, expected, batch_rows, steps, monkeypatch):
        monkeypatch.setitem(token_sampling.STEPS_AT_ONCE, "cpu", steps)
        sampling, seeds, rows = expected
        options = {"end_ids": END_IDS, "batch_rows": batch_rows}
        assert ids_of(model, CONTEXTS, seeds, sampling, **options) == rows

    def test_later_turns_continue_what_was_said_and_nothing_after_its_end(self, model, monkeypatch):
        assert carries(model)
        sampling = SamplingConfiguration(max_new_tokens=12)

        def two_turns() -> list[tuple[int, ...]]:
            memory = PrefixCache()
            options = {"end_ids": END_IDS, "memory": memory}
            first = ids_of(model, CONTEXTS, seeds_of(len(CONTEXTS)), sampling, **options)
            said = {(*context, *ids[:-1]) for context, ids in zip(CONTEXTS, first, strict=True)}
            assert {row.ids for row in memory._rows} == said
            contexts = [(*context, *ids, 7) for context, ids in zip(CONTEXTS, first, strict=True)]
            return first + ids_of(model, contexts, seeds_of(len(CONTEXTS)), sampling, **options)

        expected = two_turns()
        monkeypatch.setitem(token_sampling.STEPS_AT_ONCE, "cpu", 8)
        assert two_turns() == expected

    @pytest.mark.parametrize("kept", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 5, "top_p": 0.8}], ids=str)
    def test_the_host_waits_once_for_all_of_them(self, kept, monkeypatch):
        model = build_tiny("llama")[0].requires_grad_(False)
        assert carries(model)
        monkeypatch.setitem(token_sampling.STEPS_AT_ONCE, "cpu", 8)

        def looks(max_new_tokens: int) -> int:
            sampling = SamplingConfiguration(max_new_tokens=max_new_tokens, **kept)
            with _Looks() as found:
                generate(model, CONTEXTS, seeds_of(len(CONTEXTS)), sampling, end_ids=())
            return found.count

        looks(8)  # what is checked once of a model, is
        first = looks(1)
        # Each look is at two values, tokens and log-probs.
        assert [looks(steps) - first for steps in (2, 8, 9, 16, 17)] == [0, 0, 2, 2, 4]


class _Looks(TorchFunctionMode):
    """Counts the calls that bring a tensor's values to the host."""

    NAMES = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "cpu", "numpy", "nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += getattr(func, "__name__", "") in self.NAMES
        return func(*args, **(kwargs or {}))


def test_a_row_ends_with_an_end_token_or_at_the_limit(model, expected):
    sampling, seeds, _ = expected
    for row in ids_of(model, CONTEXTS, seeds, sampling, end_ids=END_IDS):
        assert all(type(token) is int for token in row)
        assert not END_IDS.intersection(row[:-1])
        assert row[-1] in END_IDS or len(row) == sampling.max_new_tokens


def test_without_end_tokens_every_row_is_full(model):
    sampling = SamplingConfiguration(max_new_tokens=5)
    rows = ids_of(model, CONTEXTS, seeds_of(len(CONTEXTS)), sampling, end_ids=())
    assert [len(row) for row in rows] == [5] * len(CONTEXTS)


def test_one_token(model):
    sampling = SamplingConfiguration(max_new_tokens=1)
    seeds = seeds_of(len(CONTEXTS))
    expected = [plain(model, *row, sampling, ()) for row in zip(CONTEXTS, seeds, strict=True)]
    assert ids_of(model, CONTEXTS, seeds, sampling, end_ids=()) == expected


def test_greedy_is_the_generate_of_transformers(model):
    contexts = contexts_of([4, 60, 11, 11, 2])
    sampling = SamplingConfiguration(temperature=0, max_new_tokens=20)
    found = ids_of(model, contexts, seeds_of(5), sampling, end_ids=END_IDS)
    for context, ids in zip(contexts, found, strict=True):
        whole = model.generate(
            torch.tensor([context]),
            attention_mask=torch.ones(1, len(context), dtype=torch.long),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=sorted(END_IDS),
            pad_token_id=0,
        )
        assert tuple(whole[0, len(context) :].tolist()) == ids


def fed_by(model, *arguments, **options) -> list[tuple[int, ...]]:
    """The shapes of the ids that the model is fed, once it has been checked at its first use."""
    generate(model, *arguments, **{name: value for name, value in options.items() if name != "memory"})
    shapes = []
    hook = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: shapes.append(tuple(args[0].shape))
    )
    try:
        generate(model, *arguments, **options)
    finally:
        hook.remove()
    return shapes


def test_a_context_is_read_once_however_many_rows_share_it(model):
    contexts = [context for context in contexts_of([5, 3]) for _ in range(4)]
    sampling = SamplingConfiguration(max_new_tokens=2)
    assert fed_by(model, contexts, seeds_of(8), sampling, end_ids=()) == [(1, 5 + 3), (8, 1)]


def test_what_contexts_share_is_read_once(model):
    """Siblings of 7 and 9 tokens on a context of 20, which is asked for as well."""
    root, one, other = contexts_of([20, 7, 9])
    contexts, sampling = [(*root, *one), root, (*root, *other)], SamplingConfiguration(max_new_tokens=1)
    assert fed_by(model, contexts, seeds_of(3), sampling, end_ids=()) == [(1, 36)]


def test_ended_rows_are_fed_no_more(model, expected):
    sampling, seeds, rows = expected
    fed = [num_rows for num_rows, _ in fed_by(model, CONTEXTS, seeds, sampling, end_ids=END_IDS)]
    # After the contexts, step t feeds the rows that continue to a token t + 1.
    assert fed[1:] == [sum(len(row) > step for row in rows) for step in range(1, max(map(len, rows)))]


def test_log_probs_are_those_of_the_whole_distribution(model, expected):
    """Whatever is drawn from: against a forward of context and turn."""
    sampling, seeds, _ = expected
    for context, row in zip(CONTEXTS, generate(model, CONTEXTS, seeds, sampling, end_ids=END_IDS), strict=True):
        with torch.no_grad():
            logprobs = model(torch.tensor([[*context, *row.ids]])).logits[0, len(context) - 1 : -1].log_softmax(-1)
        expected_logprobs = logprobs[torch.arange(len(row.ids)), list(row.ids)].tolist()
        assert row.logprobs == pytest.approx(expected_logprobs, rel=1e-4, abs=1e-4)
        assert row.scored is None


# --- What is known from before, and what is scored on the way -------------------------------------------------


def test_a_memory_holds_what_the_last_call_read(model):
    """Of a turn the last token is not fed; of a context all is fed but what a row of the memory begins with."""
    one, other = contexts_of([50, 40])
    sampling, options = SamplingConfiguration(max_new_tokens=4), {"end_ids": (), "memory": PrefixCache()}
    said = ids_of(model, [one, other], seeds_of(2), sampling, **options)
    longer = [(*one, *said[0], 7, 8, 9), (*other, *said[1], 6, 5, 4)]
    assert fed_by(model, longer, seeds_of(2), sampling, **options)[0] == (2, 1 + 3)
    # Cut back to where a row goes another way.
    assert fed_by(model, [(*one, 99)], seeds_of(1), sampling, **options)[0] == (1, 1)
    # Cut back to within what was the whole of a context.
    assert fed_by(model, [(*one[:40], 99)], seeds_of(1), sampling, **options)[0] == (1, 1)
    # What was not in the last call is forgotten.
    assert fed_by(model, [other], seeds_of(1), sampling, **options)[0] == (1, 40)


def test_what_rows_begin_with_is_held_once(model):
    """Two prompts, one of 50 tokens, four rows each, then two more turns of which half the rows continue in pairs."""
    prompts, sampling, memory = contexts_of([50, 20]), SamplingConfiguration(max_new_tokens=4), PrefixCache()
    contexts = [prompt for prompt in prompts for _ in range(4)]
    for _ in range(3):
        seeds = seeds_of(8)
        said = ids_of(model, contexts, seeds, sampling, end_ids=(), memory=memory)
        assert said == ids_of(model, contexts, seeds, sampling, end_ids=())
        assert sorted(ids for rows in memory.batches() for ids in rows.prefixes.ids) == sorted(prompts)
        for rows in memory.batches():
            longest = max(map(len, rows.prefixes.ids))
            assert {buffer.shape[2] for both in rows.prefixes.slots.buffers.values() for buffer in both} == {longest}
            own = max(map(rows.num_own, range(len(rows.ids))))
            assert {buffer.shape[2] for both in rows.slots.buffers.values() for buffer in both} <= {own + 1, own + 2}
        contexts = [(*contexts[row], *said[row], 7, row) for row in (0, 2, 5, 6) for _ in range(2)]


def test_the_prompt_that_contexts_of_a_turn_share_is_held_once(model):
    """What a target hears first: a prompt with a probe after it, other for each row."""
    (prompt, *probes), memory = contexts_of([50, 6, 6, 9]), PrefixCache()
    contexts, sampling = [(*prompt, *probe) for probe in probes], SamplingConfiguration(max_new_tokens=4)
    for _ in range(2):
        said = ids_of(model, contexts, seeds_of(3), sampling, end_ids=(), memory=memory)
        assert said == ids_of(model, contexts, seeds_of(3), sampling, end_ids=())
        assert [rows.prefixes.ids for rows in memory.batches()] == [(prompt,)]
        contexts = [(*context, *ids) for context, ids in zip(contexts, said, strict=True)]


@pytest.mark.parametrize(("numbers", "parts"), [([0, 1, 2, 3], 1), ([0, 0, 1, 2], 2)])
def test_rows_of_a_last_turn_that_share_nothing_attend_once_a_layer(model, numbers, parts, monkeypatch):
    """Those that may be continued, or share a prefix, attend to prefixes apart."""
    different = contexts_of([12, 9, 10, 11])
    contexts, sampling = [different[number] for number in numbers], SamplingConfiguration(max_new_tokens=5)
    ids_of(model, contexts, seeds_of(4), sampling, end_ids=())  # what is checked once of a model, is
    calls, attention = [], cached_attention.attention_part
    monkeypatch.setattr(cached_attention, "attention_part", lambda *args: calls.append(1) or attention(*args))
    memory, found = PrefixCache(), {}
    for remember in (False, True):
        calls.clear()
        options = {"end_ids": (), "memory": memory, "remember": remember}
        found[remember] = ids_of(model, contexts, seeds_of(4), sampling, **options)
        assert len(calls) == 4 * model.config.num_hidden_layers * (2 if remember else parts)
    assert found[False] == found[True]


def test_memories_do_not_mix(model):
    contexts, sampling = contexts_of([30, 20]), SamplingConfiguration(max_new_tokens=4)
    expected = ids_of(model, contexts, seeds_of(2), sampling, end_ids=())
    memory = PrefixCache()
    for _ in range(3):
        assert ids_of(model, contexts, seeds_of(2), sampling, end_ids=(), memory=memory) == expected
        assert ids_of(model, contexts[:1], seeds_of(1), sampling, end_ids=(), memory=PrefixCache()) == expected[:1]


@pytest.mark.parametrize("carried", [False, True])
def test_tokens_of_a_context_are_scored_on_the_way(model, carried):
    """All but the first, the end alone, none at all, and with a last token that does not stand in the context."""
    (context,) = contexts_of([30])
    asked = [
        ScoreRequest(1, context[1:]),
        ScoreRequest(25, context[25:]),
        ScoreRequest(30, ()),
        ScoreRequest(28, (*context[28:], 7)),
        ScoreRequest(30, (7,)),
        ScoreRequest(10, context[10:14]),
    ]
    memory = PrefixCache() if carried else None
    sampling = SamplingConfiguration(max_new_tokens=3)
    if carried:
        generate(model, [context[:27]], seeds_of(1), sampling, end_ids=(), memory=memory)
    rows = generate(
        model, [context] * len(asked), seeds_of(len(asked)), sampling, end_ids=(), memory=memory, scored=asked
    )
    assert [row.ids for row in rows] == ids_of(
        model, [context] * len(asked), seeds_of(len(asked)), sampling, end_ids=()
    )
    for row, (start, ids) in zip(rows, asked, strict=True):
        (expected,) = sequence_logprobs(model, [context[:start]], [ids], packing="none")
        assert row.scored == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-4)


# --- The rest -----------------------------------------------------------------------------------------------


def test_up_to_the_last_position(model):
    (context,) = contexts_of([500])
    sampling = SamplingConfiguration(max_new_tokens=12)
    (seed,) = seeds_of(1)
    expected = plain(model, context, seed, sampling, ())
    assert ids_of(model, [context], [seed], sampling, end_ids=()) == [expected]


def test_the_weights_can_be_trained_afterwards(model):
    """A tensor of inference mode that a model remembers (a rotary table) would stand in the way of a backward."""
    trained = type(model)(model.config).eval()
    modes = set()
    trained.register_forward_hook(lambda *_: modes.add((torch.is_grad_enabled(), torch.is_inference_mode_enabled())))
    contexts = contexts_of([400, 30])
    rows = ids_of(trained, contexts, seeds_of(2), SAMPLINGS[0], end_ids=())
    assert modes == {(False, False)}
    assert torch.is_grad_enabled()
    sum(values.sum() for values in sequence_logprobs(trained, contexts, rows)).backward()
    assert all(parameter.grad is not None for parameter in trained.parameters())


def test_the_global_generator_plays_no_part(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    rows = ids_of(model, CONTEXTS, seeds_of(len(CONTEXTS)), SAMPLINGS[0], end_ids=END_IDS)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert ids_of(model, CONTEXTS, seeds_of(len(CONTEXTS)), SAMPLINGS[0], end_ids=END_IDS) == rows


def test_no_rows(model):
    assert generate(model, [], [], SAMPLINGS[0], end_ids=END_IDS) == []


@pytest.mark.parametrize("sampling", [*SAMPLINGS, SamplingConfiguration(temperature=0, max_new_tokens=3)])
@pytest.mark.parametrize("carried", [True, False])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_draw_no_token(model, sampling, carried, bad, monkeypatch):
    """A row of the head is damaged, in a model whose abilities were found out before, and in one that is new."""
    spoilt = type(model)(model.config).eval().requires_grad_(False)
    spoilt.load_state_dict(model.state_dict())
    for known in (True, False):
        if known:
            generate(spoilt, CONTEXTS, seeds_of(len(CONTEXTS)), sampling, end_ids=END_IDS)
        else:
            capabilities._reasons.pop(spoilt)
        monkeypatch.setattr(generation, "carries", (lambda _: False) if not carried else carries)
        with torch.no_grad():
            spoilt.get_output_embeddings().weight[5] = bad
        asked = [ScoreRequest(len(context), ()) for context in CONTEXTS]
        with pytest.raises(NonFiniteLogitsError, match=r"logits are not finite \(nan or inf\)"):
            generate(spoilt, CONTEXTS, seeds_of(len(CONTEXTS)), sampling, end_ids=END_IDS, scored=asked)
