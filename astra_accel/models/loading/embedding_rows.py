"""How many token ids a model knows: one per row of its embeddings.

A tokenizer may have more or fewer. Models of one family share a tokenizer and differ in rows (Qwen2.5 has 151936 at
0.5B and 152064 at 7B), some tokenizers hold tokens for which a model has no embedding (Gemma 3 1B), and a token that
was added only to a tokenizer has none. A model must not get ids that it can't read: on a CPU they raise an IndexError
that names nothing, on CUDA an assertion that ends the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def configured_rows(config: Any) -> int | None:
    """The rows in a transformers configuration, of its text model where it has several; None if not given."""
    return getattr(config.get_text_config(), "vocab_size", None)


def embedding_rows(model: Any) -> int | None:
    """The rows of a loaded model's embeddings; None if they are of an unknown kind.

    Sharded weights may be empty here, so the layer gives the number, not its weight.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    return configured_rows(model.config) if rows is None else rows


def head_rows(model: Any) -> int | None:
    """The number of tokens that a loaded model predicts; some models have fewer than embeddings (Llama 3.2 Vision)."""
    layer = model.get_output_embeddings()
    # PEFT's copy of a head tied to the embeddings has their weight, but the sizes of its transpose.
    return getattr(getattr(layer, "original_module", layer), "out_features", None)


def known_rows(model: Any) -> int | None:
    """The number of ids, from 0, that can be both read and predicted; None if unknown."""
    counts = [count for count in (embedding_rows(model), head_rows(model)) if count is not None]
    return min(counts, default=None)


def check_token_ids(model: Any, contexts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]] = ()) -> None:
    """Check that a model can read all ids of contexts and predict all ids of continuations.

    Raises:
        ValueError: it can't; the message names the sequence, counted from 0, the place, the id and the number of
            embeddings.
    """
    _check(model, "context", contexts, embedding_rows(model))
    _check(model, "continuation", continuations, known_rows(model))


def _check(model: Any, what: str, sequences: Sequence[Sequence[int]], rows: int | None) -> None:
    if rows is None:
        return
    for number, ids in enumerate(sequences):
        if len(ids) > 0 and (max(ids) >= rows or min(ids) < 0):
            place, token = next((place, token) for place, token in enumerate(ids) if not 0 <= token < rows)
            raise ValueError(
                f"{what} {number} holds the token id {token} at place {place}, but {type(model).__name__} has {rows} "
                f"embeddings: expected ids from 0 to {rows - 1}"
            )
