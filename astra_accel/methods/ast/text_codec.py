"""Converts between the text and the token ids of a part of a longer text.

Many tokenizers treat the beginning of a text specially: SentencePiece puts a space in front of it, which the decoder
strips again. A turn of a conversation is not the beginning of a text, so it is neither decoded nor encoded alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

from astra_accel.models.forward.prefix_tree import Ids

WINDOW = 16
"""The tokens of the context that a turn is decoded with. A character has at most four bytes, so four would suffice."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def encode_text(tokenizer: Any, text: str) -> Ids:
    """Encode plain text: no special tokens are added, and none that the text spells out are obeyed."""
    return tuple(tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)


def num_common(one: Sequence[Any], other: Sequence[Any]) -> int:
    """The length of the common prefix of two sequences."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


class TextCodec:
    """Decodes and encodes the continuation of a text.

    Args:
        tokenizer: see below.
        num_ids: the number of ids, from 0, that have an embedding in the reading model; None if all have one.

    Attributes:
        tokenizer: a transformers tokenizer.
        special_ids: tokens that text can't produce.
        anchor: a token that shows a whole visible character in any position; what follows it continues a text.
    """

    def __init__(self, tokenizer: Any, num_ids: int | None = None) -> None:
        self.tokenizer = tokenizer
        self._num_ids = num_ids
        self.special_ids = _special_ids(tokenizer)
        self.special_texts = tuple(tokenizer.convert_ids_to_tokens(index) for index in sorted(self.special_ids))
        self.anchor = self._find_anchor()
        self._anchor_texts = tuple(dict.fromkeys([self.decode(self.anchor), "\n", ".", "x", "0", ")"]))

    def encode(self, text: str) -> Ids:
        """Encode a whole text."""
        return encode_text(self.tokenizer, text)

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Decode a whole text."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special, clean_up_tokenization_spaces=False)

    def added(self, context: Sequence[int], ids: Sequence[int]) -> tuple[str, int]:
        """Return what ids add to the text of the context, and how many of its last characters they replace.

        They replace some if they complete a character whose first bytes the context ends with, shown as a replacement
        character (U+FFFD). The completed character then belongs to the added text.
        """
        window = self._window(context)
        before, after = self.decode(window), self.decode((*window, *ids))
        num_kept = num_common(before, after)
        return after[num_kept:], len(before) - num_kept

    def continued(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        """Return what ids add to a text that ends with a whole word."""
        after = self.decode((*self.anchor, *ids), skip_special=skip_special)
        return after.removeprefix(self.decode(self.anchor))

    def encode_after(self, context: Sequence[int], text: str, so_far: str = "") -> Ids:
        """Return the ids that add a text to the one before them, as far as the tokenizer can write it.

        Args:
            context: the ids before the text.
            text: the text to add.
            so_far: the text before it. Decoders strip spaces at its end, and some tokenizers can't write them there;
                such spaces are added along with the text.
        """
        if not text:
            return ()
        shown_so_far = self.decode(self._window(context))
        lost = so_far[len(so_far.rstrip(" ")) + len(shown_so_far) - len(shown_so_far.rstrip(" ")) :]
        found: dict[Ids, int] = {}
        for ids in chain(*(self._continuations(shown_so_far, way) for way in dict.fromkeys([text, lost + text]))):
            shown, num_replaced = self.added(context, ids)
            if (shown, num_replaced) == (lost + text, 0):
                return ids
            found.setdefault(ids, abs(_num_leading_spaces(shown) - _num_leading_spaces(lost + text)))
        # The tokenizer changes texts (lower case, unknown characters): at least don't lose or double spaces.
        return min(found, key=lambda ids: found[ids])

    def encode_continued(self, text: str) -> Ids:
        """Return the ids that add a text to one that ends with a whole word."""
        return self.encode_after(self.anchor, text)

    def can_read(self, ids: Sequence[int]) -> bool:
        """Whether the model has an embedding for all ids."""
        return self._num_ids is None or max(ids, default=0) < self._num_ids

    def takes(self, ids: Sequence[int]) -> bool:
        """Whether ids that the other side sampled may be read as they are: all readable, and none special."""
        return self.can_read(ids) and self.special_ids.isdisjoint(ids)

    def readable(self, ids: Ids) -> Ids:
        """Replace ids without an embedding by other tokens that spell the same text."""
        if self.can_read(ids):
            return ids
        pieces = [(index,) if self.can_read([index]) else self._pieces(index) for index in ids]
        return tuple(chain.from_iterable(pieces))

    def part_showing(self, ids: Ids, text: str) -> Ids | None:
        """Return the part of the ids that decodes to ``text``, a part of theirs; None if tokens straddle its edges."""
        if not text:
            return ()
        whole = self.continued(ids, skip_special=False)
        end = whole.rfind(text) + len(text)
        if end < len(text):
            return None
        stop = _first(len(ids), lambda count: len(self.continued(ids[:count], skip_special=False)) >= end)
        start = stop - _first(
            stop, lambda count: len(self.continued(ids[stop - count : stop], skip_special=False)) >= len(text)
        )
        return ids[start:stop] if self.continued(ids[start:stop], skip_special=False) == text else None

    def spells_special(self, text: str) -> bool:
        """Whether a text spells out a special token."""
        return any(special in text for special in self.special_texts)

    def without_special(self, text: str) -> str:
        """Remove the special tokens that a text spells out."""
        for special in self.special_texts:
            text = text.replace(special, "")
        return text

    def samples(self, count: int = 4) -> list[str]:
        """Find short texts that the tokenizer can write, no two of which begin or end with the same character."""
        found: list[str] = []
        vocabulary = (self.decode([index]).strip() for index in range(len(self.tokenizer)))
        for text in ("x", "Hello", "7", "Why", *islice(vocabulary, 4096)):
            if not text.isalnum() or any(text[0] == other[0] or text[-1] == other[-1] for other in found):
                continue
            if self.decode(self.encode(text)).strip() == text:
                found.append(text)
            if len(found) == count:
                break
        return found

    def _continuations(self, before: str, text: str) -> Iterator[Ids]:
        yield self.encode(text)
        for anchor in (before[-WINDOW:], *self._anchor_texts):
            alone, together = self.encode(anchor), self.encode(anchor + text)
            if alone and together[: len(alone)] == alone:
                yield together[len(alone) :]

    def _pieces(self, index: int) -> Ids:
        """Spell a token's text in other tokens. It was added as a whole, so text cut within it does not contain it."""
        added = self.tokenizer.added_tokens_decoder.get(index)
        text = self.decode([index]) if added is None else added.content
        if len(text) < 2:
            return ()
        return self.readable(self.encode_continued(text[:1])) + self.readable(self.encode_continued(text[1:]))

    def _window(self, context: Sequence[int]) -> Ids:
        """The end of a context that determines how what follows is decoded.

        It holds something visible, since decoders strip spaces at the edges of a text, and the whole of a run of byte
        tokens, since some decoders turn the whole run into replacement characters if it is not valid text.
        """
        window: list[int] = []
        enough = WINDOW
        for index in reversed(context):
            if index in self.special_ids:
                continue
            if len(window) >= enough and not self._is_byte(window[-1]):
                if self.decode(window[::-1]).strip():
                    break
                enough = 2 * len(window)
            window.append(index)
        return tuple(reversed(window))

    def _is_byte(self, index: int) -> bool:
        token = self.tokenizer.convert_ids_to_tokens(index)
        return token is not None and _BYTE_TOKEN.fullmatch(token) is not None

    def _find_anchor(self) -> Ids:
        """Find a token that shows a whole visible character in any position."""
        for index in range(len(self.tokenizer)):
            if index not in self.special_ids and not self._is_byte(index):
                text = self.decode([index])
                if text.isascii() and text.isprintable() and text == text.strip() != "":
                    return (index,)
        return ()


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}


def _num_leading_spaces(text: str) -> int:
    return len(text) - len(text.lstrip(" "))


def _first(most: int, holds: Callable[[int], bool]) -> int:
    """The smallest count up to ``most`` from which on a condition holds."""
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
