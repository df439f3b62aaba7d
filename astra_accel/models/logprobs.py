"""Log-probabilities of token sequences; every distinct token of a batch is read once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import checkpoint

from astra_accel.models.decoding.length_regimes import Piece, length_regimes, split_by_regime
from astra_accel.models.decoding.padded_generation import takes_padding
from astra_accel.models.decoding.prefill import packed_hidden
from astra_accel.models.forward.capabilities import (
    UnsupportedModelError,
    assert_same,
    check_sequences,
    plain_logprobs,
    supports,
    transformers_model,
)
from astra_accel.models.forward.flex_attention import tree_layout
from astra_accel.models.forward.head import GivenLogits, Head, head_of, token_logprobs
from astra_accel.models.forward.output_layer import LayerInput, output_layer_of
from astra_accel.models.forward.padded import (
    by_length,
    cheapest_groups,
    forward_hidden,
    forward_logits,
    left_padded,
    positions,
)
from astra_accel.models.forward.prefix_tree import TOKEN_BUDGET, Pack, Tokens, pack_sequences
from astra_accel.models.layers.activation_checkpointing import activation_checkpointing as checkpointed
from astra_accel.models.loading.embedding_rows import check_token_ids


def is_sharded(model: Any) -> bool:
    """Whether processes jointly gather a model's weights, layer by layer as it runs (FSDP2, ZeRO-3).

    They must then all run the same number of forwards, whatever each of them has to read.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules()) or any(
        hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


Packing = Literal["auto", "prefix_tree", "none"]
Switch = Callable[[], AbstractContextManager[None]]
Read = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""Computes what is wanted at scored positions, ``[tokens, ...]``, from the body's output ``[rows, hidden]`` and, for
each token, the row that predicts it and the token itself. ``Head.logprobs`` is one."""

ReadGiven = Callable[[GivenLogits, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The same with the model's own logits of those rows, for models whose head can't be run separately."""

ReadRows = Callable[[Sequence[Tokens], Sequence[Tokens]], Sequence[torch.Tensor]]
"""Computes what is wanted of each continuation, from the contexts and continuations of one batch."""

UNASKED = -1
"""Replaces a sequence's number where a forward runs only because other processes run one."""


def sequence_logprobs(
    model: Any,
    contexts: Sequence[Tokens],
    continuations: Sequence[Tokens],
    *,
    packing: Packing = "auto",
    token_budget: int = TOKEN_BUDGET,
    activation_checkpointing: bool = False,
) -> list[torch.Tensor]:
    """The log-prob of every token of each continuation, given its context and the tokens before it.

    Args:
        model: a transformers causal language model.
        contexts: the token ids of each context, at least one each.
        continuations: the token ids of each continuation, which may be empty.
        packing: ``"prefix_tree"`` reads each distinct prefix once (:mod:`~astra_accel.models.forward.prefix_tree`);
            ``"none"`` reads every sequence, padded; ``"auto"`` packs if a first comparison showed that the model gives
            the same both ways. The values are the same either way, up to rounding.
        token_budget: the most distinct tokens of one packed forward; without packing and gradients, the most tokens of
            one forward, padding included. With gradients, several packs keep only one pack's activations and recompute
            the others' in the backward pass. With gradients and weights sharded over processes there is one forward,
            since all processes must run the same number.
        activation_checkpointing: keep only the layers' inputs for the backward pass, and recompute the rest.

    Returns:
        A float32 vector for each continuation, on the model's device, with gradients if they are on and the model's
        parameters require them.

    Raises:
        ValueError: the lists differ in length, a context is empty, a token has no embedding, or the model can't be
            packed as asked.
    """
    return sequence_readings(
        model,
        contexts,
        continuations,
        None,
        packing=packing,
        token_budget=token_budget,
        activation_checkpointing=activation_checkpointing,
    )


def sequence_readings(
    model: Any,
    contexts: Sequence[Tokens],
    continuations: Sequence[Tokens],
    read: Read | None,
    *,
    read_given: ReadGiven | None = None,
    packing: Packing = "auto",
    token_budget: int = TOKEN_BUDGET,
    activation_checkpointing: bool = False,
) -> list[torch.Tensor]:
    """What ``read`` computes for every token of each continuation (None: its log-prob), ``[tokens, ...]`` each.

    If ``read_given`` is given it is used instead: the model then computes its logits itself, unpacked, and the states
    that they are computed from are passed too. See :func:`sequence_logprobs` for the rest. An empty continuation gives
    an empty vector.
    """
    if len(contexts) != len(continuations):
        raise ValueError(f"{len(contexts)} contexts and {len(continuations)} continuations: expected as many of each")
    for index, context in enumerate(contexts):
        if len(context) == 0:
            raise ValueError(f"context {index} is empty: its continuation's first token has nothing to follow")
    if packing not in ("auto", "prefix_tree", "none"):
        raise ValueError(f"packing is {packing!r}, expected auto, prefix_tree or none")
    results = [torch.zeros(0, device=model.device)] * len(contexts)
    if not any(len(continuation) > 0 for continuation in continuations):
        if not (contexts and torch.is_grad_enabled()):
            return results
        # Processes wait for one another's gradients and layers, so a step that scores nothing must use the weights too.
        (one_token,) = sequence_readings(
            model, contexts[:1], [contexts[0][-1:]], read, read_given=read_given, packing=packing
        )
        return [result + 0 * one_token.sum() for result in results]
    model = transformers_model(model)
    check_token_ids(model, contexts, continuations)
    packed = packing != "none" and read_given is None and can_pack(model, required=packing == "prefix_tree")
    groups = list(split_by_regime(length_regimes(model), contexts, continuations).values())
    if torch.is_grad_enabled() and is_sharded(model):
        token_budget = sum(map(len, contexts)) + sum(map(len, continuations))
        groups = _as_many_for_all(model, groups)
        if not packed and not takes_padding(model):
            raise UnsupportedModelError(
                f"{type(model).__name__} takes no padding, so each process has a forward for every length, and would "
                f"wait for others where they share sharded weights; expected a launch by DDP or ZeRO-2"
            )
    # A pack that is recomputed in the backward pass must keep as little the second time, so the switch is inside.
    switch = partial(checkpointed, model) if activation_checkpointing and torch.is_grad_enabled() else nullcontext
    if packed:
        of_pack = partial(_pack_readings, model, read or head_of(model).logprobs, switch)
        found = _packed(of_pack, groups, token_budget)
    else:
        found = _padded(model, _rows_reader(model, read, read_given, switch), groups, token_budget)
    unasked = found.pop(UNASKED, [])
    for index, pieces in found.items():
        whole = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
        results[index] = whole + 0 * torch.cat(unasked).sum() if unasked else whole
    return results


def pad_logprobs(logprobs: Sequence[torch.Tensor]) -> torch.Tensor:
    """Stack vectors as rows of ``[batch, longest]``, 0 where a row has no token (what the systems return)."""
    return torch.nn.utils.rnn.pad_sequence(list(logprobs), batch_first=True)


def can_pack(model: Any, *, required: bool = False) -> bool:
    """Whether a transformers model gives the same log-probs packed and unpacked; checked once.

    Raises:
        UnsupportedModelError: it does not, and ``required`` is set.
    """
    otherwise = "every sequence is read whole, so shared contexts are read again and again"
    return supports(model, "prefix-tree packing", _check_packing, otherwise, required=required)


def _check_packing(model: Any) -> None:
    contexts, continuations = check_sequences(model)
    groups = list(split_by_regime(length_regimes(model), contexts, continuations).values())
    found = _packed(partial(pack_logprobs, model), groups, TOKEN_BUDGET)
    expected = plain_logprobs(model, contexts, continuations)
    assert_same([torch.cat(found[index]) for index in range(len(contexts))], expected, model.dtype)


def check_readings(model: Any) -> None:
    """Check that a transformers model gives correct log-probs along with the states that values are read from.

    Raises:
        UnsupportedModelError: it does not; the message says what is wrong.
    """
    supports(model, "log-probs and values from one forward", _check_readings, "", required=True)


def _check_readings(model: Any) -> None:
    contexts, continuations = check_sequences(model)
    head = Head.from_model(model)
    reader = _rows_reader(
        model,
        None if head is None else head.logprobs,
        GivenLogits.logprobs if head is None else None,
        nullcontext,
    )
    found: Readings = {}
    for pieces in split_by_regime(length_regimes(model), contexts, continuations).values():
        for piece in pieces:
            found.setdefault(piece.sequence, []).extend(reader([piece.context], [piece.continuation]))
    expected = plain_logprobs(model, contexts, continuations)
    assert_same([torch.cat(found[index]) for index in range(len(contexts))], expected, model.dtype)


Readings = dict[int, list[torch.Tensor]]
"""For each sequence, what was read of its pieces, in order."""


def _as_many_for_all(model: Any, groups: list[list[Piece]]) -> list[list[Piece]]:
    """Groups for the number of forwards that every process runs, whatever lengths it has.

    Raises:
        UnsupportedModelError: that number is unknown.
    """
    count = length_regimes(model).count
    if count is None:
        if len(groups) == 1 and groups[0][0].regime == 0:
            return groups
        raise UnsupportedModelError(
            f"{type(model).__name__} reads every length beyond its limit in another way (dynamic rotary scaling), so "
            f"processes would have to make different numbers of forwards, which sharded weights forbid; expected "
            f"shorter contexts, or a launch by DDP or ZeRO-2"
        )
    first = groups[0][0]
    return [*groups, *[[Piece(UNASKED, first.context[:1], first.continuation[:1], 0)]] * (count - len(groups))]


def _packed(forward: Callable[[Pack], torch.Tensor], groups: Sequence[Sequence[Piece]], token_budget: int) -> Readings:
    """The readings of pieces, one forward a pack; only pieces of one group share a pack."""
    all_packs = [
        (pieces, pack)
        for pieces in groups
        for pack in pack_sequences(
            [piece.context for piece in pieces], [piece.continuation for piece in pieces], token_budget
        )
    ]
    results: Readings = {}
    for number, (pieces, pack) in enumerate(all_packs):
        # The graph of the last pack is kept, since the backward pass begins with it.
        if torch.is_grad_enabled() and number + 1 < len(all_packs):
            edges_E = checkpoint(forward, pack, use_reentrant=False, preserve_rng_state=False)
        else:
            edges_E = forward(pack)
        for index, edges in pack.sequences.items():
            of_piece = edges_E[torch.tensor(edges, device=edges_E.device)]
            results.setdefault(pieces[index].sequence, []).append(of_piece)
    return results


def pack_logprobs(model: Any, pack: Pack) -> torch.Tensor:
    """The log-prob of each edge of a pack, in one forward."""
    return _pack_readings(model, head_of(model).logprobs, nullcontext, pack)


def _pack_readings(model: Any, read: Read, switch: Switch, pack: Pack) -> torch.Tensor:
    """What is read at each edge of a pack, in one forward within the switch."""
    with switch():
        hidden_NH = packed_hidden(model, pack, tree_layout(model, pack))
    rows_E, tokens_E = torch.tensor(pack.edges, device=model.device).unbind(-1)
    return read(hidden_NH[torch.tensor(pack.scored_nodes, device=model.device)], rows_E, tokens_E)


def _padded(
    model: Any,
    forward: ReadRows,
    groups: Sequence[Sequence[Piece]],
    token_budget: int,
) -> Readings:
    """The readings of pieces from padded batches of whole sequences, which share a batch only within their group.

    With gradients a group takes one forward if the model takes padding: with several, all graphs would be kept anyway.
    """
    results: Readings = {}
    for pieces in groups:
        lengths = [len(piece.context) + len(piece.continuation) - 1 for piece in pieces]
        if takes_padding(model):
            max_tokens = None if torch.is_grad_enabled() else token_budget
            batches = list(by_length(lengths, max_rows=len(pieces), max_tokens=max_tokens))
        else:
            batches = cheapest_groups(lengths, range(len(pieces)), max_rows=len(pieces), price=0.0)
        for batch in batches:
            rows = [pieces[index] for index in batch]
            values = forward([row.context for row in rows], [row.continuation for row in rows])
            for row, row_values in zip(rows, values, strict=True):
                results.setdefault(row.sequence, []).append(row_values)
    return results


def _rows_reader(model: Any, read: Read | None, read_given: ReadGiven | None, switch: Switch) -> ReadRows:
    if read_given is not None:
        return partial(_given_readings, model, read_given, switch)
    return partial(_padded_logprobs, model, switch) if read is None else partial(_padded_readings, model, read, switch)


def _padded_logprobs(
    model: Any, switch: Switch, contexts: Sequence[Tokens], continuations: Sequence[Tokens]
) -> list[torch.Tensor]:
    """Run one forward for all rows. Left padding aligns the scored positions at the end, where the head runs."""
    num_scored = max(map(len, continuations))
    inputs = _padded_inputs(model, contexts, continuations)
    with switch():
        logits_BSV = forward_logits(model, num_scored, **inputs)
    tokens_BS, _ = left_padded(continuations, model.device)
    logprobs_BS = token_logprobs(logits_BSV, tokens_BS)
    return [row[num_scored - len(continuation) :] for row, continuation in zip(logprobs_BS, continuations, strict=True)]


def _padded_readings(
    model: Any, read: Read, switch: Switch, contexts: Sequence[Tokens], continuations: Sequence[Tokens]
) -> Sequence[torch.Tensor]:
    """Run one forward of the body for all rows, also left-padded, and read only at the real positions."""
    inputs = _padded_inputs(model, contexts, continuations)
    with switch():
        hidden_BTH = forward_hidden(model, **inputs)
    lengths = list(map(len, continuations))
    rows_R, tokens_R = _rows_and_tokens(model, continuations)
    return read(_predicting(hidden_BTH, lengths), rows_R, tokens_R).split(lengths)


def _given_readings(
    model: Any, read: ReadGiven, switch: Switch, contexts: Sequence[Tokens], continuations: Sequence[Tokens]
) -> Sequence[torch.Tensor]:
    """Run one forward of the whole model, also left-padded, and read its logits and its output layer's input."""
    inputs = _padded_inputs(model, contexts, continuations)
    lengths = list(map(len, continuations))
    got = LayerInput()
    with switch(), got.watched(output_layer_of(model)):
        logits_BSV = forward_logits(model, max(lengths), **inputs)
    if got.states_BTH is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not call its output layer, which values are read from"
        )
    given = GivenLogits(_predicting(logits_BSV, lengths))
    rows_R, tokens_R = _rows_and_tokens(model, continuations)
    return read(given, _predicting(got.states_BTH, lengths), rows_R, tokens_R).split(lengths)


def _predicting(values_BTX: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """The values at the positions that predict each row's tokens, all rows concatenated."""
    return torch.cat([row[-length:] for row, length in zip(values_BTX, lengths, strict=True)])


def _rows_and_tokens(model: Any, continuations: Sequence[Tokens]) -> tuple[torch.Tensor, torch.Tensor]:
    """A row for each token of all continuations, and those tokens, concatenated."""
    tokens_R = torch.tensor([token for continuation in continuations for token in continuation], device=model.device)
    return torch.arange(len(tokens_R), device=model.device), tokens_R


def _padded_inputs(model: Any, contexts: Sequence[Tokens], continuations: Sequence[Tokens]) -> dict[str, Any]:
    # The last token of each is only predicted.
    sequences = [[*context, *continuation[:-1]] for context, continuation in zip(contexts, continuations, strict=True)]
    ids_BT, mask_BT = left_padded(sequences, model.device)
    return {
        "input_ids": ids_BT,
        "attention_mask": mask_BT,
        "position_ids": positions(mask_BT),
        "use_cache": False,
    }
