"""What a part of a text says, and how it is written, over the kinds of tokenizers that models in use have.

The oracle is the tokenizer's own ``decode`` of all ids at once.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from astra_accel.methods.ast.text_codec import TextCodec, encode_text
from tests.helpers.tokenizer_kinds import TOKENIZERS

KINDS = {name: build() for name, build in TOKENIZERS.items()}
CODECS = {name: TextCodec(tokenizer) for name, tokenizer in KINDS.items()}


def whole_text(tokenizer: Any, ids: Any) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("name", KINDS)
@given(data=st.data())
@settings(max_examples=25)
def test_texts_of_parts_make_up_the_text_of_the_whole(name: str, data: st.DataObject):
    """Whatever the ids: half characters, runs of bytes, spaces at the edges, special tokens."""
    tokenizer, codec = KINDS[name], CODECS[name]
    few = st.lists(st.integers(0, len(tokenizer) - 1), max_size=5)
    read, text = tuple(encode_text(tokenizer, "Good")), whole_text(tokenizer, encode_text(tokenizer, "Good"))
    for ids in data.draw(st.lists(few, max_size=8)):
        added, num_replaced = codec.added(read, ids)
        text = text[: len(text) - num_replaced] + added
        read += tuple(ids)
        assert text == whole_text(tokenizer, read)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("length", [1, 15, 16, 17, 40])
def test_a_short_end_of_the_context_is_enough(name: str, length: int):
    """A run of spaces, and one of bytes, longer than the window that is usually looked at."""
    tokenizer, codec = KINDS[name], CODECS[name]
    good = encode_text(tokenizer, "Good")
    for repeated in (" ", "\u00ff", "x"):
        read = good + encode_text(tokenizer, repeated)[-1:] * length
        for text in ("you", " are", "\u00e9"):
            ids = encode_text(tokenizer, text)
            added, num_replaced = codec.added(read, ids)
            before = whole_text(tokenizer, read)
            assert before[: len(before) - num_replaced] + added == whole_text(tokenizer, read + ids)


def test_a_long_context_is_not_decoded_again(monkeypatch):
    tokenizer = TOKENIZERS["llama2"]()
    codec = TextCodec(tokenizer)
    longest = []
    decode = tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids, **options: longest.append(len(ids)) or decode(ids, **options))
    codec.added(encode_text(tokenizer, "how are you? " * 500), encode_text(tokenizer, "fine"))
    assert max(longest) < 50


@pytest.mark.parametrize("name", ["llama2", "llama", "llama legacy", "mistral3", "phi3", "gemma", "llama3", "gpt2"])
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\u2581"), min_size=1, max_size=12))
@settings(max_examples=30)
def test_a_text_is_written_so_that_it_reads_the_same(name: str, text: str):
    """No space too many, none lost: the tokenizers that can write any text."""
    tokenizer, codec = KINDS[name], CODECS[name]
    read = encode_text(tokenizer, "Good morning")
    assert whole_text(tokenizer, read + codec.encode_after(read, text)) == whole_text(tokenizer, read) + text


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "said", [[" you", " are", "ness", "."], ["ness", " you"], ["Hello ", "there"], [" two  ", "you"]]
)
def test_no_space_is_lost_between_turns(name: str, said: list[str]):
    """Also for those that can't write all of it: they may put one space for two, and change letters."""
    tokenizer, codec = KINDS[name], CODECS[name]
    read, text = encode_text(tokenizer, "good"), "good"
    for part in said:
        read += codec.encode_after(read, part, text)
        text += part
    assert whole_text(tokenizer, read).lower().split() == text.lower().split()


@pytest.mark.parametrize("name", KINDS)
def test_the_part_that_says_something(name: str):
    codec = CODECS[name]
    ids = codec.encode_continued(" you are here.")
    said = codec.part_showing(ids, codec.continued(ids[2:]))
    assert said == ids[2:]
    assert codec.part_showing(ids, "") == ()
    assert codec.part_showing(ids, "nothing of it") is None
