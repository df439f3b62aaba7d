"""The slot of a message between the pieces of a chat template: its ids there, and those around it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from typing import NamedTuple

from astra_accel.methods.ast.text_codec import Ids, TextCodec, num_common


class MessageSlot(NamedTuple):
    """A place in a rendered conversation where a message goes.

    Attributes:
        codec: the codec of the reader.
        left, right: the text around the message; ``left`` is None if special tokens in it must not be obeyed.
        before, after: the ids around the message that do not depend on it.
        lead: what a decoder shows between ``before`` and the message, such as a space in the message's first token.
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
        """Find the slot between two texts by putting words there.

        Args:
            codec: the codec of the reader.
            left, right: the texts.
            words: words of which no two begin or end alike.
            before: the ids before the message; None uses those that all words have in common.
            lead: the lead to use if the words do not show it.
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
        """Encode a text here in its context, or by itself if its ids can't be separated from the context."""
        ids = None
        if self.left is not None and not self.codec.spells_special(content):
            ids = self._middle(encode_rendered(self.codec, self.left + content + self.right))
        return self.codec.encode_continued(self.lead + content) if ids is None else ids

    def heard(self, content: str, sampled: Ids | None, *, own: bool = False) -> Ids:
        """Return the ids of a text here: the sampled ones if they, or a part of them, decode to it.

        Args:
            content: the text.
            sampled: the ids that its writer sampled, in this tokenizer's vocabulary; None if there are none.
            own: whether the reader itself wrote it; the other side's special tokens are not used.
        """
        if sampled is None or not (own or self.codec.takes(sampled)):
            return self.encode(content)
        shown = self.lead + content
        if self.codec.continued(sampled, skip_special=False) == shown:
            return sampled
        part = self.codec.part_showing(sampled, shown)
        return self.encode(content) if part is None else part

    def stretch(self, content: str, num_left: int) -> Ids | None:
        """Encode the left piece, a text and the right piece as one text; None if that can't be done.

        Args:
            content: the text between the pieces.
            num_left: the number of tokens of the left piece, at the end of ``before``.
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
    """Encode a rendered template, whose special tokens are to be obeyed."""
    return tuple(codec.tokenizer(text, add_special_tokens=False).input_ids)


def _common_start(one: Ids, other: Ids) -> Ids:
    return one[: num_common(one, other)]


def common_end(ids: Iterable[Ids]) -> Ids:
    """The longest common end of all sequences."""
    return reduce(_common_start, (each[::-1] for each in ids))[::-1]
