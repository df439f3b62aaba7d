"""A conversation is what was said, as text and as ids, and never changes."""

from __future__ import annotations

import dataclasses

import pytest

from astra_accel.methods.ast.transcript import Segment, Transcript, joined_text

PROMPT = Segment("prompt", "So", (1, 2), (11,))
PROBE = Segment("probe", " how", (3, 4), (12, 13, 14), end_id=99)
RESPONSE = Segment("response", " well", (5,), (15, 16), end_id=98)


def test_what_its_writer_sampled():
    """The tester writes probes, in its own vocabulary; the target responses, in its own."""
    assert PROBE.sampled_ids == (3, 4, 99)
    assert RESPONSE.sampled_ids == (15, 16, 98)
    assert dataclasses.replace(PROBE, end_id=None).sampled_ids == (3, 4)
    assert Segment("probe", "", (), (), end_id=0).sampled_ids == (0,)


def test_the_content_in_each_vocabulary_is_without_the_end():
    assert (PROBE.ids("tester"), PROBE.ids("target")) == ((3, 4), (12, 13, 14))
    assert (RESPONSE.ids("tester"), RESPONSE.ids("target")) == ((5,), (15, 16))


@pytest.mark.parametrize(("separator", "text"), [("", "So how well"), ("\n", "So\n how\n well")])
def test_the_text_of_a_conversation(separator, text):
    start = Transcript((PROMPT,), separator)
    longer = start + PROBE + RESPONSE
    assert str(longer) == text
    assert longer.segments == (PROMPT, PROBE, RESPONSE)
    assert start.segments == (PROMPT,)
    assert longer.separator == separator


def test_a_turn_that_completes_a_character_replaces_its_half():
    """Three bytes of four are shown as one U+FFFD, until the last one comes."""
    half = dataclasses.replace(PROBE, text=" so \ufffd")
    whole = dataclasses.replace(RESPONSE, text="\U0001f600!", num_replaced=1)
    assert str(Transcript((PROMPT, half))) == "So so \ufffd"
    assert str(Transcript((PROMPT, half, whole))) == "So so \U0001f600!"
    assert joined_text([half, whole], "") == " so \U0001f600!"
    assert joined_text(["plain", "texts"], "\n") == "plain\ntexts"


def test_equal_conversations_are_equal_and_can_be_keys():
    assert Transcript((PROMPT,)) + PROBE == Transcript((PROMPT, PROBE))
    assert Transcript((PROMPT,)) != Transcript((PROMPT,), "\n")
    assert dataclasses.replace(PROBE, end_id=None) != PROBE
    assert len({Transcript((PROMPT,)) + PROBE, Transcript((PROMPT, PROBE))}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        PROMPT.text = "other"
