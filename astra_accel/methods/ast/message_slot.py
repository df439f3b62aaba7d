"""A message between the pieces of a chat template: its ids there, and those around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple

from astra_accel.methods.ast.text_codec import Ids, TextCodec, num_common


class MessageSlot(NamedTuple):
    """A place in a rendered conversation where a message goes.

    Attributes:
        codec: of the reader.
        left, right: the text around it; ``left`` is None where special tokens in it must not be obeyed.
        before, after: the ids around it that do not depend on the message.
        lead: what a decoder shows between ``before`` and the message: a space that the message's first token holds.
    """

    codec: TextCodec
    left: str | None
    right: str
    before: Ids
    after: Ids
    lead: str

    @classmethod
    def between(
        cls,
        codec: TextCodec,
        left: str,
        right: str,
        words: Sequence[str],
        *,
        before: Ids | None = None,
        lead: str = "",
    ) -> MessageSlot:
        """The place between two texts, found by putting words there.

        Args:
            codec: of the reader.
            left, right: the texts.
            words: no two of them begin or end alike.
            before: the ids that the message comes after; None takes what all words have in common.
            lead: where the words do not show it.
        """
        whole = {word: encode_rendered(codec, left + word + right) for word in words}
        if before is None:
            before = reduce(_common_start, whole.values())
        slot = cls(codec, left, right, before, common_end(whole.values()), lead)
        for word in words:
            ids = slot._middle(whole[word])
            shown = "" if ids is None else codec.continued(ids, skip_special=False)
            if shown.endswith(word):
                return slot._replace(lead=shown.removesuffix(word))
        return slot

    def encode(self, content: str) -> Ids:
        """The ids of a text here, as in the whole if they can be told from it."""
        ids = None
        if self.left is not None and not self.codec.spells_special(content):
            ids = self._middle(encode_rendered(self.codec, self.left + content + self.right))
        return self.codec.encode_continued(self.lead + content) if ids is None else ids

    def heard(self, content: str, sampled: Ids | None, *, own: bool = False) -> Ids:
        """The ids of a text here: those that were sampled if they, or some of them, say it.

        Args:
            content: the text.
            sampled: by whoever said it, in this tokenizer's vocabulary; None where there are none.
            own: whether the reader itself did; the other side's special tokens are not taken.
        """
        if sampled is None or not (own or self.codec.takes(sampled)):
            return self.encode(content)
        shown = self.lead + content
        if self.codec.continued(sampled, skip_special=False) == shown:
            return sampled
        part = self.codec.part_showing(sampled, shown)
        return self.encode(content) if part is None else part

    def stretch(self, content: str, num_left: int) -> Ids | None:
        """All ids from the piece on the left to that on the right, as one text; None if they can't be told.

        Args:
            content: the text between them.
            num_left: tokens of the left piece, at the end of ``before``.
        """
        if self.left is None or self.codec.spells_special(content):
            return None
        whole = encode_rendered(self.codec, self.left + content + self.right)
        start = len(self.before) - num_left
        return whole[start:] if whole[:start] == self.before[:start] and self.codec.can_read(whole) else None

    def _middle(self, whole: Ids) -> Ids | None:
        start, stop = len(self.before), len(whole) - len(self.after)
        fits = start <= stop and whole[:start] == self.before and whole[stop:] == self.after
        return whole[start:stop] if fits else None


def encode_rendered(codec: TextCodec, text: str) -> Ids:
    """The ids of a rendered template, whose special tokens are meant."""
    return tuple(codec.tokenizer(text, add_special_tokens=False).input_ids)


def _common_start(one: Ids, other: Ids) -> Ids:
    return one[: num_common(one, other)]


def common_end(ids: Iterable[Ids]) -> Ids:
    """What all end with."""
    return reduce(_common_start, (each[::-1] for each in ids))[::-1]
