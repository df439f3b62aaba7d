"""Decoding: what is drawn depends only on a row's context and its own seed.

Every distinct context is read once, except for what was read in an earlier turn, and rows that have ended are no longer
fed. Log-probs computed on the way are returned, so that callers need not compute them again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from math import inf
from typing import Any

import torch

from astra_accel.config import SamplingConfiguration
from astra_accel.models.decoding.cached_attention import feed
from astra_accel.models.decoding.kv_cache import CacheBatch, CachedRow, PrefixCache, batch_price
from astra_accel.models.decoding.length_regimes import length_regimes
from astra_accel.models.decoding.padded_generation import generate_padded, takes_padding
from astra_accel.models.decoding.prefill import PrefillPlan, PrefillRequest, ScoreRequest, match, plan_prefill, prefill
from astra_accel.models.decoding.token_sampling import (
    Seed,
    check_finite,
    draw_on_device,
    looked_at,
    noise_keys,
    steps_at_once,
)
from astra_accel.models.decoding.turn_plan import Generated, Task, TurnPlan
from astra_accel.models.forward.capabilities import (
    assert_same,
    check_sequences,
    plain_logprobs,
    supports,
    transformers_model,
)
from astra_accel.models.forward.head import head_of
from astra_accel.models.forward.padded import cheapest_groups
from astra_accel.models.forward.prefix_tree import Ids
from astra_accel.models.layers.small_batch_linear import for_few_rows
from astra_accel.models.loading.embedding_rows import check_token_ids, embedding_rows

PREFIX_PRICE = 2
"""The cost of a prefix token that several rows read together, in tokens that each row reads alone.

A choice that was not measured. It only affects which rows share a batch.
"""


# no_grad and not inference_mode: models keep tensors that they make in a forward (rotary tables that grow), and
# an inference tensor among them would break the next backward of the weights that the roles share.
@torch.no_grad()
def generate(
    model: Any,
    contexts: Sequence[Ids],
    seeds: Sequence[Seed],
    sampling: SamplingConfiguration,
    *,
    end_ids: Collection[int],
    batch_rows: int = 64,
    memory: PrefixCache | None = None,
    remember: bool = True,
    scored: Sequence[ScoreRequest] | None = None,
    num_ids: int | None = None,
) -> list[Generated]:
    """Sample a continuation of each context.

    Args:
        model: a transformers causal language model, in eval mode.
        contexts: the token ids of each context, at least one each. Rows with the same context read it once.
        seeds: the seed of each row, ints in [0, 2**64), which determine its random numbers.
        sampling: temperature, top-k, top-p and the maximum number of tokens.
        end_ids: the tokens that end a turn.
        batch_rows: the most rows to decode together.
        memory: what the model read in the previous call, with the same weights; afterwards it holds what this call
            read. None reads every context from its beginning.
        remember: whether another call will follow; otherwise the memory is emptied.
        scored: for each row the tokens of its context whose log-probs are wanted too.
        num_ids: ids from this one on are not drawn, since another model that reads the samples has no embedding for
            them; nor are those that the model itself lacks. As with top-k, log-probs are those of the whole
            distribution.

    Raises:
        NonFiniteLogitsError: the model's logits hold nan or inf.
        ValueError: a token of a context has no embedding.
    """
    model = transformers_model(model)
    check_token_ids(model, contexts)
    num_ids = min((count for count in (num_ids, embedding_rows(model)) if count is not None), default=None)
    keys = [noise_keys(seed, sampling.max_new_tokens) for seed in seeds]
    plan = TurnPlan(length_regimes(model), contexts, keys, sampling, frozenset(end_ids), scored, num_ids, model.device)
    carried = carries(model)
    # If the model needs equal lengths, only rows of one length share a forward; else as many as allowed, of similar
    # length.
    price = inf if carried or takes_padding(model) else 0.0
    known = PrefixCache() if memory is None else memory
    read_now: dict[int, list[CachedRow]] = {}
    while tasks := plan.next_tasks(batch_rows, price):
        for number, task in enumerate(tasks):
            if carried:
                later = [ask for other in tasks[number + 1 :] if other.regime == task.regime for ask in other.requests]
                kept = memory is not None and remember
                generated, rows = _decode_carried(model, task, known.of_regime(task.regime), later, kept=kept)
                read_now.setdefault(task.regime, []).extend(rows if kept else [])
            else:
                generated = _decode_padded(model, task)
            plan.add(task, generated)
        known = PrefixCache()  # what continues in another regime is read again
    if memory is not None:
        memory.replace_regimes(read_now)
    return plan.results


def _decode_padded(model: Any, task: Task) -> list[Generated]:
    contexts = [request.context for request in task.requests]
    sampled = generate_padded(model, contexts, task.keys_BT2, task.sampling, task.end_ids, num_ids=task.num_ids)
    return [Generated(tuple(ids), tuple(logprobs)) for ids, logprobs in sampled]


def _decode_carried(
    model: Any, task: Task, memory: PrefixCache, later: Sequence[PrefillRequest], *, kept: bool
) -> tuple[list[Generated], list[CachedRow]]:
    """The result of each row, and the cache rows that hold it, which may be kept.

    ``later`` requests will be looked up in the memory.
    """
    needed = {id(found.row.batch) for request in later if (found := match(request, memory)) is not None}
    release = [rows for rows in memory.batches() if id(rows) not in needed]
    num_new = task.sampling.max_new_tokens
    begun = plan_prefill(dict.fromkeys(task.requests), memory)
    if not kept and _share_nothing(task.requests, begun):
        # Attention to a prefix apart from the rest would be an operation more in each layer, and gain nothing.
        begun = dict.fromkeys(begun, PrefillPlan(None, ()))
    groups = _batches_of(task.requests, begun, num_new, batch_price(model.device))
    in_batches = [{task.requests[row]: begun[task.requests[row]] for row in group} for group in groups]
    was_read = {
        request: each for reads in prefill(model, in_batches, num_new, release) for request, each in reads.items()
    }
    batches = [_forked([was_read[task.requests[row]].row for row in group], num_new) for group in groups]
    order = [row for group in groups for row in group]
    hidden_BH = torch.stack([was_read[task.requests[row]].hidden_H for row in order])
    with for_few_rows(model) if takes_columns(model) else nullcontext():
        sampled = _sample_turn(model, batches, order, hidden_BH, task)
    for reads in was_read.values():
        check_finite(reads.scored or ())
    generated = [
        Generated(tuple(ids), tuple(logprobs), was_read[request].scored)
        for (ids, logprobs), request in zip(sampled, task.requests, strict=True)
    ]
    return generated, [row for rows in batches for row in rows.rows()]


def _share_nothing(requests: Sequence[PrefillRequest], begun: Mapping[PrefillRequest, PrefillPlan]) -> bool:
    """Whether each row is the only one with its prefix, and none was read before."""
    prefixes = [begun[request].prefix for request in requests]
    return len(set(prefixes)) == len(prefixes) and all(plan.match is None for plan in begun.values())


def _batches_of(
    requests: Sequence[PrefillRequest], begun: Mapping[PrefillRequest, PrefillPlan], num_new: int, price: float
) -> list[list[int]]:
    """Rows grouped into batches: those of similar length, and all of a prefix together."""
    prefixes = [begun[request].prefix for request in requests]
    num_rows = Counter(prefixes)
    lengths = [
        num_new + len(request.context) - len(prefix) + PREFIX_PRICE * len(prefix) // num_rows[prefix]
        for request, prefix in zip(requests, prefixes, strict=True)
    ]
    together = [prefix or request.context for request, prefix in zip(requests, prefixes, strict=True)]
    return cheapest_groups(lengths, together, len(requests), price)


def _forked(rows: Sequence[CachedRow], num_new: int) -> CacheBatch:
    """A batch of these rows, which may repeat, from one that is given up, or that one if it holds exactly them."""
    source = rows[0].batch
    if [row.row for row in rows] == list(range(len(source.ids))):
        return source
    num_own = max(len(row.ids) - len(row.prefix) for row in rows)
    prefix_of = [source.prefix_of[row.row] for row in rows]
    forked = CacheBatch([list(row.ids) for row in rows], source.prefixes, prefix_of, num_own + num_new)
    forked.copy(rows, release=[source])
    return forked


def _sample_turn(
    model: Any, batches: Sequence[CacheBatch], order: Sequence[int], hidden_BH: torch.Tensor, task: Task
) -> list[tuple[list[int], list[float]]]:
    """Sample every row's turn, one forward a token over the rows that continue; returns ids and log-probs.

    On a CPU a row that ends is no longer fed. A GPU would wait whenever the host looked at a token, so the host looks
    after several steps, and what a row has drawn and read after its end is dropped.

    Args:
        model: a model that takes carried rows.
        batches: rows that have read their contexts.
        order: which row of the task is at each place of the batches.
        hidden_BH: the body's output at the end of the contexts, in that order.
        task: the rows with their noise keys and sampling settings.
    """
    results: list[tuple[list[int], list[float]]] = [([], []) for _ in task.requests]
    active = list(order)
    at_once = steps_at_once(model.device)
    for step in range(0, task.sampling.max_new_tokens, at_once):
        drawn = _sample_steps(model, batches, hidden_BH, task, task.keys_BT2[active, step : step + at_once])
        for row, (tokens, logprobs) in zip(active, drawn, strict=True):
            results[row][0].extend(tokens)
            results[row][1].extend(logprobs)
        ended = [tokens[-1] in task.end_ids for tokens, _ in drawn]
        if all(ended) or step + at_once >= task.sampling.max_new_tokens:
            break
        staying = _end(batches, ended)
        active = [active[place] for place in staying]
        hidden_BH = feed(model, batches, [[drawn[place][0][-1]] for place in staying])[:, -1]
    return results


def _sample_steps(
    model: Any, batches: Sequence[CacheBatch], hidden_BH: torch.Tensor, task: Task, keys_BT2: torch.Tensor
) -> list[tuple[list[int], list[float]]]:
    """Draw a token for each key of every active row, up to one that ends its turn; returns ids and log-probs.

    All but the last token of a row are read. The host waits for the device once.
    """
    head = head_of(model)
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []
    for keys_B2 in keys_BT2.unbind(1):
        if drawn:
            hidden_BH = feed(model, batches, drawn[-1][0][:, None])[:, -1]
        drawn.append(draw_on_device(head.logits(hidden_BH), keys_B2, task.sampling, task.num_ids))
    rows = looked_at(drawn, task.end_ids)
    places = ((batch, place) for batch in batches for place in range(batch.num_active))
    for (batch, place), (tokens, _) in zip(places, rows, strict=True):
        batch.replace_last(place, len(drawn) - 1, tokens[:-1])
    return rows


def _end(batches: Sequence[CacheBatch], ended: Sequence[bool]) -> list[int]:
    """Remove active rows that have ended from the batches; returns the old places of those that stay, in order."""
    staying, start = [], 0
    for rows in batches:
        num_active = rows.num_active
        order = rows.end([place for place in range(num_active) if ended[start + place]])
        staying += [start + place for place in order]
        start += num_active
    return staying


def carries(model: Any) -> bool:
    """Whether the model takes caches whose rows are cut, forked and continued in pieces; checked once."""
    otherwise = "every turn reads its whole context again"
    return supports(model, "carried caches", _check_caches, otherwise)


def takes_columns(model: Any) -> bool:
    """Whether the model accepts its linear layers' output in another memory order; checked once.

    DeepSeek-V2 views it as complex numbers, whose parts must be adjacent.
    """
    otherwise = "a step of decoding takes the usual products"
    return supports(model, "states that lie column by column", _check_columns, otherwise)


def _check_columns(model: Any) -> None:
    contexts, _ = check_sequences(model)
    ids_B1 = torch.tensor(contexts[0], device=model.device)[:, None]
    expected = model(input_ids=ids_B1, use_cache=False).logits.float().log_softmax(-1)
    with for_few_rows(model):
        found = model(input_ids=ids_B1, use_cache=False).logits.float().log_softmax(-1)
    assert_same([found], [expected], model.dtype)


def _check_caches(model: Any) -> None:
    """Read contexts packed, continue from parts of them in pieces of different lengths, and compare all log-probs."""
    contexts, continuations = check_sequences(model)
    regimes = length_regimes(model)
    by_regime: dict[int, list[int]] = {}
    for index, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        regime = regimes.regime_of(len(context))
        if regime == regimes.regime_of(
            len(context) + len(continuation)
        ):  # no row continues from one regime into the next
            by_regime.setdefault(regime, []).append(index)
    for rows in by_regime.values():
        _check_rows(model, [contexts[row] for row in rows], [continuations[row] for row in rows])


def _check_rows(model: Any, contexts: Sequence[list[int]], continuations: Sequence[list[int]]) -> None:
    memory = PrefixCache()
    known = {PrefillRequest((*context, ids[0])) for context, ids in zip(contexts, continuations, strict=True)}
    begun = plan_prefill(known, memory)
    in_batches = [{request: begun[request] for request in sorted(known)[at::2]} for at in range(min(2, len(known)))]
    memory.replace([each.row for reads in prefill(model, in_batches, 1) for each in reads.values()])
    wanted = [
        PrefillRequest((*context, *continuation), ScoreRequest(len(context), (*continuation, 0)))
        for context, continuation in zip(contexts, continuations, strict=True)
    ]
    (reads,) = prefill(model, [plan_prefill(wanted, memory)], 1)
    found = [torch.tensor(reads[request].scored, device=model.device) for request in wanted]
    longer = [[*continuation, 0] for continuation in continuations]
    assert_same(found, plain_logprobs(model, contexts, longer), model.dtype)
