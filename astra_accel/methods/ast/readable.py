"""Checks that a model has embeddings for the tokens of the texts that it reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from astra_accel.models.loading.embedding_rows import configured_rows
from astra_accel.models.loading.model_files import ModelFiles


@dataclass(frozen=True)
class Rows:
    """How many ids have an embedding on one side of a conversation.

    Attributes:
        count: ids below this one have an embedding; None if unknown.
        role: the role of the model with the fewest embeddings.
        source: the name of that model.
    """

    count: int | None
    role: str
    source: str

    @classmethod
    def fewest(cls, models: dict[str, ModelFiles]) -> Rows:
        """Return the smallest count among models, by role, that read the same ids."""
        counts = {role: configured_rows(files.config) for role, files in models.items()}
        known = {role: count for role, count in counts.items() if count is not None}
        role = min(known, key=known.__getitem__, default=next(iter(models)))
        return cls(known.get(role), role, models[role].source)

    def has(self, ids: Sequence[int]) -> bool:
        """Whether all ids have an embedding."""
        return self.count is None or max(ids, default=0) < self.count

    def check(self, what: str, ids: Sequence[int], tokenizer: Any) -> None:
        """Raise ``ValueError`` if some text became an id without an embedding."""
        if self.has(ids):
            return
        token = next(index for index in ids if index >= self.count)  # type: ignore[operator]
        raise ValueError(
            f"{what} holds the token {tokenizer.convert_ids_to_tokens(token)!r} (id {token}), which the {self.role} "
            f"({self.source}) can't read: it has {self.count} embeddings, for ids from 0 to {self.count - 1}; "  # type: ignore[operator]
            f"expected a text without that token, or a model whose embeddings were resized when it was added"
        )


EVERY_ROW = Rows(None, "", "")
"""For models that have an embedding for every id."""
