"""Read contexts into a cache: cached tokens are kept, every other distinct token is read once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from astra_accel.models.decoding.cached_attention import feed
from astra_accel.models.decoding.kv_cache import CacheBatch, CachedRow, KVBuffer, Paths, PrefixCache, SharedPrefixes
from astra_accel.models.decoding.length_regimes import without_earlier_lengths
from astra_accel.models.forward.attention import Layout, attending
from astra_accel.models.forward.flex_attention import FlexLayout, tree_layout
from astra_accel.models.forward.head import head_of
from astra_accel.models.forward.padded import body_of
from astra_accel.models.forward.prefix_tree import TOKEN_BUDGET, Ids, Pack, pack_sequences, shared_prefixes
from astra_accel.models.forward.tree_attention import TreeLayout


class ScoreRequest(NamedTuple):
    """A request for the log-probs of tokens while a context is read.

    Attributes:
        start: the number of tokens of the context before them, at least 1.
        ids: the tokens; all but the last are in the context, from ``start`` on.
    """

    start: int
    ids: Ids


class PrefillRequest(NamedTuple):
    """A context to read, and the log-probs wanted of it."""

    context: Ids
    scored: ScoreRequest | None = None

    @property
    def num_known(self) -> int:
        """The number of tokens that need not be read if a cache has them, since what they predict is not needed."""
        return (len(self.context) if self.scored is None else min(self.scored.start, len(self.context))) - 1


class PrefixHit(NamedTuple):
    """The row of an earlier cache that a context continues, and the length of the part that they share."""

    row: CachedRow
    length: int


class PrefillResult(NamedTuple):
    """A context that was read.

    Attributes:
        row: the cache row that holds it.
        hidden_H: the body's output at its end.
        scored: the requested log-probs; None if none were requested.
    """

    row: CachedRow
    hidden_H: torch.Tensor
    scored: tuple[float, ...] | None


def match(request: PrefillRequest, memory: PrefixCache) -> PrefixHit | None:
    """The part of a context that was read before, if it is at least half of the context.

    Less would gain little, and its long rest would be read together with the short ones of other rows.
    """
    row, shared = memory.longest(request.context)
    length = min(shared, request.num_known)
    return PrefixHit(row, length) if row is not None and 2 * length >= len(request.context) else None


class PrefillPlan(NamedTuple):
    """How to read a context.

    Attributes:
        match: the part that a cache has; None reads the context from its first token.
        prefix: the part that it shares with other contexts, which is stored once.
    """

    match: PrefixHit | None
    prefix: Ids


def plan_prefill(requests: Iterable[PrefillRequest], memory: PrefixCache) -> dict[PrefillRequest, PrefillPlan]:
    """Plan how to read contexts that are read together."""
    matches = {request: match(request, memory) for request in requests}
    shared = shared_prefixes([request.context for request, found in matches.items() if found is None])
    return {
        request: PrefillPlan(
            found,
            request.context[: shared[request.context]] if found is None else found.row.prefix[: found.length],
        )
        for request, found in matches.items()
    }


def prefill(
    model: Any,
    groups: Sequence[Mapping[PrefillRequest, PrefillPlan]],
    num_new: int,
    release: Sequence[CacheBatch] = (),
) -> list[dict[PrefillRequest, PrefillResult]]:
    """Read contexts, and leave room for ``num_new`` more tokens of each.

    Args:
        model: a model that takes packs and carried caches.
        groups: the contexts of each cache batch, none twice. If the model's frequencies depend on the length, the
            contexts and what follows must be in one regime.
        num_new: the number of tokens that will follow.
        release: cache batches that are not copied from afterwards.
    """
    most_unread = max(
        [0, *(len(ask.context) - found.length for group in groups for ask, (found, _) in group.items() if found)]
    )
    batches: list[CacheBatch] = []
    places: dict[PrefillRequest, tuple[CacheBatch, int]] = {}
    for number, group in enumerate(groups):
        needed = [found.row.batch for later in groups[number + 1 :] for found, _ in later.values() if found]
        given_up = [rows for rows in release if not any(rows is other for other in needed)]
        # A forward feeds the first rows of a cache batch, so those with a hit come first.
        ordered = sorted(group, key=lambda request: group[request].match is None)
        rows = _opened({request: group[request] for request in ordered}, num_new, most_unread, given_up)
        batches.append(rows)
        places |= {request: (rows, place) for place, request in enumerate(ordered)}
    known = [request for request, (rows, place) in places.items() if place < rows.num_active]
    new = [request for request, (rows, place) in places.items() if place >= rows.num_active]
    answers: dict[PrefillRequest, _Answer] = {}
    if known:
        answers |= _continue(model, batches, known)
    if new:
        answers |= _read_packed(model, new, places)
    for rows in batches:
        rows.num_active = len(rows.ids)
    return [
        {request: PrefillResult(CachedRow(*places[request], request.context), *answers[request]) for request in group}
        for group in groups
    ]


def _opened(
    group: Mapping[PrefillRequest, PrefillPlan], num_new: int, most_unread: int, given_up: Sequence[CacheBatch]
) -> CacheBatch:
    """A cache batch for some contexts; its active rows hold the cached parts of the first contexts."""
    known = {request: start.match for request, start in group.items() if start.match is not None}
    num_slots = num_new + max(len(request.context) - len(start.prefix) for request, start in group.items())
    num_slots = max(
        [num_slots, *(most_unread + found.length - len(group[request].prefix) for request, found in known.items())]
    )
    prefixes = _prefixes([start.prefix for start in group.values()], [found.row for found in known.values()])
    number = {prefix: index for index, prefix in enumerate(prefixes.ids)}
    ids = [list(request.context[: found.length]) for request, found in known.items()]
    rows = CacheBatch(
        [*ids, *([] for _ in range(len(group) - len(known)))],
        prefixes,
        [number[start.prefix] for start in group.values()],
        num_slots,
    )
    rows.num_active = len(known)
    rows.copy([found.row for found in known.values()], given_up)
    return rows


def _prefixes(wanted: Sequence[Ids], known: Sequence[CachedRow]) -> SharedPrefixes:
    """The stored prefixes, if they are exactly those wanted; otherwise room for new ones."""
    for row in known:
        if set(row.batch.prefixes.ids) == set(wanted):
            return row.batch.prefixes
    return SharedPrefixes.from_ids(wanted)


_Answer = tuple[torch.Tensor, tuple[float, ...] | None]


def _continue(
    model: Any, batches: Sequence[CacheBatch], requests: Sequence[PrefillRequest]
) -> dict[PrefillRequest, _Answer]:
    """Read the rest of contexts whose beginnings are in the active rows of the cache batches."""
    starts = [len(ids) for rows in batches for ids in rows.ids[: rows.num_active]]
    rest = [request.context[start:] for request, start in zip(requests, starts, strict=True)]
    hidden_UTH = feed(model, batches, rest)
    places = [
        (row, request.scored.start - 1 - start + offset, token)
        for row, (request, start) in enumerate(zip(requests, starts, strict=True))
        if request.scored is not None
        for offset, token in enumerate(request.scored.ids)
    ]
    values: list[float] = []
    if places:
        rows_R, steps_R, tokens_R = torch.tensor(places, device=hidden_UTH.device).unbind(-1)
        each_R = torch.arange(len(places), device=rows_R.device)
        values = head_of(model).logprobs(hidden_UTH[rows_R, steps_R], each_R, tokens_R).tolist()
    given = iter(values)
    return {
        request: (
            hidden_UTH[row, len(rest[row]) - 1],
            None if request.scored is None else tuple(next(given) for _ in request.scored.ids),
        )
        for row, request in enumerate(requests)
    }


def _read_packed(
    model: Any, requests: Sequence[PrefillRequest], places: Mapping[PrefillRequest, tuple[CacheBatch, int]]
) -> dict[PrefillRequest, _Answer]:
    """Read contexts from their first token, packed, into their rows."""
    starts, rest = zip(*map(_as_sequence, requests), strict=True)
    answers: dict[PrefillRequest, _Answer] = {}
    for pack in pack_sequences(starts, rest, TOKEN_BUDGET):
        layout = tree_layout(model, pack, keep=True)
        hidden_RH = packed_hidden(model, pack, layout)[pack.scored_nodes]
        edges_E = torch.tensor(pack.edges, device=hidden_RH.device)
        logprobs = head_of(model).logprobs(hidden_RH, *edges_E.unbind(-1)).tolist()
        _write(layout, {index: pack.path(index) for index in pack.sequences}, [places[ask] for ask in requests])
        for index, edges in pack.sequences.items():
            request = requests[index]
            rows, place = places[request]
            rows.ids[place] = list(request.context)
            wanted = None if request.scored is None else edges[: len(request.scored.ids)]
            scored = None if wanted is None else tuple(logprobs[edge] for edge in wanted)
            answers[request] = (hidden_RH[pack.edges[edges[-1]][0]], scored)
    return answers


def _write(
    layout: TreeLayout | FlexLayout, paths: Mapping[int, list[int]], rows_of: Sequence[tuple[CacheBatch, int]]
) -> None:
    """Write the states of a packed forward to the rows of its sequences and to their prefixes, then drop them."""
    by_slots: dict[int, tuple[KVBuffer, dict[int, list[int]]]] = {}
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
    written = [(slots, Paths.from_nodes(nodes_of, device)) for slots, nodes_of in by_slots.values()]
    for layer in sorted(layout.kept):
        key_HND, value_HND = layout.kept.pop(layer)
        for slots, taken in written:
            slots.write(layer, key_HND, value_HND, taken)


def _as_sequence(request: PrefillRequest) -> tuple[Ids, Ids]:
    """A context and continuation that end one token after the request's context, so that all of it is read."""
    context, scored = request
    if scored is None:
        return context, (0,)
    rest = scored.ids[len(context) - scored.start :] or (0,)
    return context[: scored.start], (*context[scored.start :], *rest)


def packed_hidden(model: Any, pack: Pack, layout: Layout) -> torch.Tensor:
    """The body's output at every node of a pack, ``[nodes, hidden]``, in one forward."""
    ids_1N, positions_1N = (
        torch.tensor([values], device=model.device) for values in (pack.input_ids, pack.position_ids)
    )
    with attending(model, layout), without_earlier_lengths(model):
        return body_of(model)(input_ids=ids_1N, position_ids=positions_1N, use_cache=False)[0][0]
