"""Reading contexts into a cache: what is known from before is kept, every other distinct token is read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from astra_accel.models.decoding.cached_attention import feed
from astra_accel.models.decoding.kv_cache import Bin, CachedRow, Paths, PrefixCache, SharedPrefixes, Slots
from astra_accel.models.decoding.length_regimes import without_earlier_lengths
from astra_accel.models.forward.attention import Layout, attending
from astra_accel.models.forward.flex_attention import FlexLayout, tree_layout
from astra_accel.models.forward.head import head_of
from astra_accel.models.forward.padded import body_of
from astra_accel.models.forward.prefix_tree import Pack, pack_sequences, shared_prefixes
from astra_accel.models.forward.tree_attention import TreeLayout

Ids = tuple[int, ...]

TOKEN_BUDGET = 1024


class Scored(NamedTuple):
    """Tokens whose log-probs are wanted while a context is read.

    Attributes:
        start: how much of the context comes before them, at least 1.
        ids: the tokens; all but the last stand in the context from ``start`` on.
    """

    start: int
    ids: Ids


class Question(NamedTuple):
    """A context to read, and what is wanted of it."""

    context: Ids
    scored: Scored | None = None

    @property
    def num_known(self) -> int:
        """Tokens that need not be read if a cache has them: what they predict is not asked for."""
        return (len(self.context) if self.scored is None else min(self.scored.start, len(self.context))) - 1


class Match(NamedTuple):
    """The row of an earlier cache that a context goes on from, and how much of it."""

    row: CachedRow
    length: int


class Read(NamedTuple):
    """What came of reading a context.

    Attributes:
        row: has read it.
        hidden_H: the body's output at its end.
        scored: the log-probs that were wanted.
    """

    row: CachedRow
    hidden_H: torch.Tensor
    scored: tuple[float, ...] | None


def match(question: Question, memory: PrefixCache) -> Match | None:
    """The part of a context that was read before, where it is at least half of it.

    With less there is little to gain, and a long rest would be read beside the short ones of other rows.
    """
    row, shared = memory.longest(question.context)
    length = min(shared, question.num_known)
    return Match(row, length) if row is not None and 2 * length >= len(question.context) else None


class Start(NamedTuple):
    """How the reading of a context begins.

    Attributes:
        match: what is known of it; None reads it from its first token.
        prefix: what it shares with other contexts, which is held once.
    """

    match: Match | None
    prefix: Ids


def starts(questions: Iterable[Question], memory: PrefixCache) -> dict[Question, Start]:
    """How to begin with each of some contexts that are read at once."""
    matches = {question: match(question, memory) for question in questions}
    shared = shared_prefixes([question.context for question, found in matches.items() if found is None])
    return {
        question: Start(
            found,
            question.context[: shared[question.context]] if found is None else found.row.prefix[: found.length],
        )
        for question, found in matches.items()
    }


def read(
    model: Any,
    groups: Sequence[Mapping[Question, Start]],
    num_new: int,
    last_use: Sequence[Bin] = (),
) -> list[dict[Question, Read]]:
    """Read contexts, and leave room for ``num_new`` more tokens of each.

    Args:
        model: a model that takes packs and carried caches.
        groups: the contexts, by the bin that they come to; none twice. Where the model's frequencies depend on the
            length, the contexts and what will follow are of one regime.
        num_new: tokens that will follow.
        last_use: bins that nobody copies from afterwards.
    """
    most_unread = max(
        [0, *(len(ask.context) - found.length for group in groups for ask, (found, _) in group.items() if found)]
    )
    bins: list[Bin] = []
    places: dict[Question, tuple[Bin, int]] = {}
    for number, group in enumerate(groups):
        needed = [found.row.bin for later in groups[number + 1 :] for found, _ in later.values() if found]
        given_up = [rows for rows in last_use if not any(rows is other for other in needed)]
        # A forward feeds the first rows of a bin, so those that go on stand first.
        ordered = sorted(group, key=lambda question: group[question].match is None)
        rows = _opened({question: group[question] for question in ordered}, num_new, most_unread, given_up)
        bins.append(rows)
        places |= {question: (rows, place) for place, question in enumerate(ordered)}
    known = [question for question, (rows, place) in places.items() if place < rows.num_active]
    new = [question for question, (rows, place) in places.items() if place >= rows.num_active]
    answers: dict[Question, _Answer] = {}
    if known:
        answers |= _go_on(model, bins, known)
    if new:
        answers |= _begin(model, new, places)
    for rows in bins:
        rows.num_active = len(rows.ids)
    return [
        {question: Read(CachedRow(*places[question], question.context), *answers[question]) for question in group}
        for group in groups
    ]


def _opened(group: Mapping[Question, Start], num_new: int, most_unread: int, given_up: Sequence[Bin]) -> Bin:
    """A bin for some contexts, whose active rows have read what is known of the first of them."""
    known = {question: start.match for question, start in group.items() if start.match is not None}
    num_slots = num_new + max(len(question.context) - len(start.prefix) for question, start in group.items())
    num_slots = max(
        [num_slots, *(most_unread + found.length - len(group[question].prefix) for question, found in known.items())]
    )
    prefixes = _prefixes([start.prefix for start in group.values()], [found.row for found in known.values()])
    number = {prefix: index for index, prefix in enumerate(prefixes.ids)}
    ids = [list(question.context[: found.length]) for question, found in known.items()]
    rows = Bin(
        [*ids, *([] for _ in range(len(group) - len(known)))],
        prefixes,
        [number[start.prefix] for start in group.values()],
        num_slots,
    )
    rows.num_active = len(known)
    rows.copy([found.row for found in known.values()], given_up)
    return rows


def _prefixes(wanted: Sequence[Ids], known: Sequence[CachedRow]) -> SharedPrefixes:
    """What is held already, where that is just what is wanted; else room for it."""
    for row in known:
        if set(row.bin.prefixes.ids) == set(wanted):
            return row.bin.prefixes
    return SharedPrefixes.of(wanted)


_Answer = tuple[torch.Tensor, tuple[float, ...] | None]


def _go_on(model: Any, bins: Sequence[Bin], questions: Sequence[Question]) -> dict[Question, _Answer]:
    """Read what is new of contexts whose beginnings stand in the bins' active rows."""
    starts = [len(ids) for rows in bins for ids in rows.ids[: rows.num_active]]
    rest = [question.context[start:] for question, start in zip(questions, starts, strict=True)]
    hidden_UTH = feed(model, bins, rest)
    places = [
        (row, question.scored.start - 1 - start + offset, token)
        for row, (question, start) in enumerate(zip(questions, starts, strict=True))
        if question.scored is not None
        for offset, token in enumerate(question.scored.ids)
    ]
    values: list[float] = []
    if places:
        rows_R, steps_R, tokens_R = torch.tensor(places, device=hidden_UTH.device).unbind(-1)
        each_R = torch.arange(len(places), device=rows_R.device)
        values = head_of(model).logprobs(hidden_UTH[rows_R, steps_R], each_R, tokens_R).tolist()
    given = iter(values)
    return {
        question: (
            hidden_UTH[row, len(rest[row]) - 1],
            None if question.scored is None else tuple(next(given) for _ in question.scored.ids),
        )
        for row, question in enumerate(questions)
    }


def _begin(
    model: Any, questions: Sequence[Question], places: Mapping[Question, tuple[Bin, int]]
) -> dict[Question, _Answer]:
    """Read contexts from their first token, packed, to their rows."""
    starts, rest = zip(*map(_as_sequence, questions), strict=True)
    answers: dict[Question, _Answer] = {}
    for pack in pack_sequences(starts, rest, TOKEN_BUDGET):
        layout = tree_layout(model, pack, keep=True)
        hidden_RH = packed_hidden(model, pack, layout)[pack.scored_nodes]
        edges_E = torch.tensor(pack.edges, device=hidden_RH.device)
        logprobs = head_of(model).logprobs(hidden_RH, *edges_E.unbind(-1)).tolist()
        _write(layout, {index: pack.path(index) for index in pack.sequences}, [places[ask] for ask in questions])
        for index, edges in pack.sequences.items():
            question = questions[index]
            rows, place = places[question]
            rows.ids[place] = list(question.context)
            wanted = None if question.scored is None else edges[: len(question.scored.ids)]
            scored = None if wanted is None else tuple(logprobs[edge] for edge in wanted)
            answers[question] = (hidden_RH[pack.edges[edges[-1]][0]], scored)
    return answers


def _write(layout: TreeLayout | FlexLayout, paths: Mapping[int, list[int]], rows_of: Sequence[tuple[Bin, int]]) -> None:
    """Bring the states of a packed forward to the rows of its sequences and to their prefixes, and drop them."""
    by_slots: dict[int, tuple[Slots, dict[int, list[int]]]] = {}
    for index, path in paths.items():
        rows, place = rows_of[index]
        num_shared = len(rows.prefix(place))
        for slots, row, nodes in (
            (rows.prefixes.slots, rows.prefix_of[place], path[:num_shared]),
            (rows.slots, place, path[num_shared:]),
        ):
            by_slots.setdefault(id(slots), (slots, {}))[1][row] = nodes
    if not layout.kept:
        return
    device = next(iter(layout.kept.values()))[0].device
    written = [(slots, Paths.of(nodes_of, device)) for slots, nodes_of in by_slots.values()]
    for layer in sorted(layout.kept):
        key_HND, value_HND = layout.kept.pop(layer)
        for slots, taken in written:
            slots.write(layer, key_HND, value_HND, taken)


def _as_sequence(question: Question) -> tuple[Ids, Ids]:
    """A context and continuation that end one token behind the question's context, so that all of it is read."""
    context, scored = question
    if scored is None:
        return context, (0,)
    behind = scored.ids[len(context) - scored.start :] or (0,)
    return context[: scored.start], (*context[scored.start :], *behind)


def packed_hidden(model: Any, pack: Pack, layout: Layout) -> torch.Tensor:
    """The body's output at every node of a pack, ``[nodes, hidden]``, in one forward."""
    ids_1N, positions_1N = (
        torch.tensor([values], device=model.device) for values in (pack.input_ids, pack.position_ids)
    )
    with attending(model, layout), without_earlier_lengths(model):
        return body_of(model)(input_ids=ids_1N, position_ids=positions_1N, use_cache=False)[0][0]
