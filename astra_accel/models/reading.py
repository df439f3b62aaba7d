"""Reading contexts into a cache: what is known from before is copied, every other distinct token is read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from astra_accel.models.attention import attending
from astra_accel.models.flex_layout import FlexLayout, tree_layout
from astra_accel.models.head import head_of
from astra_accel.models.kv_cache import Bin, CachedRow, PrefixCache, feed
from astra_accel.models.prefix_tree import Pack, pack_sequences
from astra_accel.models.tree_attention import TreeLayout

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


def read(
    model: Any,
    groups: Sequence[Sequence[Question]],
    memory: PrefixCache,
    num_new: int,
    last_use: Sequence[Bin] = (),
) -> list[list[Read]]:
    """Read contexts, and leave room for ``num_new`` more tokens of each.

    Args:
        model: a model that takes packs and carried caches.
        groups: the contexts, by the bin that they come to; none twice.
        memory: what was read before.
        num_new: tokens that will follow.
        last_use: bins that nobody copies from afterwards.
    """
    matches = {question: match(question, memory) for group in groups for question in group}
    most_unread = max([0, *(len(ask.context) - found.length for ask, found in matches.items() if found)])
    bins: list[Bin] = []
    places: dict[Question, tuple[Bin, int]] = {}
    for number, group in enumerate(groups):
        needed = [found.row.bin for later in groups[number + 1 :] for ask in later if (found := matches[ask])]
        given_up = [rows for rows in last_use if not any(rows is other for other in needed)]
        # A forward feeds the first rows of a bin, so those that go on stand first.
        known = [(question, found) for question in group if (found := matches[question])]
        ordered = [*(question for question, _ in known), *(question for question in group if not matches[question])]
        num_slots = max(len(question.context) for question in group) + num_new
        num_slots = max([num_slots, *(found.length + most_unread for _, found in known)])
        ids = [list(question.context[: found.length]) for question, found in known]
        rows = Bin([*ids, *([] for _ in ordered[len(known) :])], num_slots)
        rows.copy([found.row for _, found in known], given_up)
        rows.num_active = len(known)
        bins.append(rows)
        places |= {question: (rows, place) for place, question in enumerate(ordered)}
    answers: dict[Question, _Answer] = {}
    if any(rows.num_active for rows in bins):
        answers |= _go_on(model, bins, [question for question in places if matches[question]])
    new = [question for question in places if not matches[question]]
    if new:
        answers |= _begin(model, new, places)
    for rows in bins:
        rows.num_active = len(rows.ids)
    return [
        [Read(CachedRow(*places[question], question.context), *answers[question]) for question in group]
        for group in groups
    ]


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
    """Bring the states of a packed forward to the rows of its sequences, and drop them."""
    by_bin: dict[int, tuple[Bin, dict[int, list[int]]]] = {}
    for index, path in paths.items():
        rows, place = rows_of[index]
        by_bin.setdefault(id(rows), (rows, {}))[1][place] = path
    for layer in sorted(layout.kept):
        key_HND, value_HND = layout.kept.pop(layer)
        for rows, nodes in by_bin.values():
            rows.write(layer, key_HND, value_HND, nodes)


def _as_sequence(question: Question) -> tuple[Ids, Ids]:
    """A context and continuation that end one token behind the question's context, so that all of it is read."""
    context, scored = question
    if scored is None:
        return context, (0,)
    behind = scored.ids[len(context) - scored.start :] or (0,)
    return context[: scored.start], (*context[scored.start :], *behind)


def packed_hidden(model: Any, pack: Pack, layout: TreeLayout | FlexLayout) -> torch.Tensor:
    """The body's output at every node of a pack, ``[nodes, hidden]``, in one forward."""
    ids_1N, positions_1N = (
        torch.tensor([values], device=model.device) for values in (pack.input_ids, pack.position_ids)
    )
    with attending(model, layout):
        return model.base_model(input_ids=ids_1N, position_ids=positions_1N, use_cache=False)[0][0]
