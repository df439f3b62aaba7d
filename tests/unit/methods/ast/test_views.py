"""How text and sampled ids become segments of a conversation, and which prompts leave room for one."""

from __future__ import annotations

import re

import pytest

from astra_accel.config import LoRAConfiguration, ModelConfiguration, RolloutConfiguration, SamplingConfiguration
from astra_accel.methods.ast.format import encode_text
from astra_accel.methods.ast.transcript import Segment
from astra_accel.methods.ast.views import Views, check_later_turns, check_prompts
from astra_accel.models.loading.tiny import build_tiny
from astra_accel.models.roles import RoleFiles, find_roles
from tests.helpers.tokenizer_kinds import TOKENIZERS
from tests.helpers.views import views_of

TURNS = {"tester": SamplingConfiguration(max_new_tokens=5), "target": SamplingConfiguration(max_new_tokens=7)}
ENDS = frozenset([259, 257])


def files(tester: str = "llama", target: str = "llama") -> RoleFiles:
    models = (ModelConfiguration(path=f"tiny:{architecture}") for architecture in (tester, target))
    return find_roles(*models, None, LoRAConfiguration())


def views(tester: str = "llama", target: str = "llama", **options: object) -> Views:
    return Views.from_files(files(tester, target), RolloutConfiguration(**TURNS, **options))


# --- Segments -----------------------------------------------------------------------------------------------


def test_what_was_sampled_stays_as_it_was():
    """The byte 255 alone is no UTF-8: it decodes to a replacement character, which is three other bytes."""
    tokenizer = build_tiny("llama")[1]
    # In a byte-level vocabulary the byte 255 is the character 255.
    sampled = (*tokenizer.convert_tokens_to_ids(["a", "\u00ff"]), 259)
    probe = views().probe(sampled, ENDS)
    assert probe.text == "a\ufffd"
    assert encode_text(tokenizer, probe.text) != sampled[:2]
    assert probe.tester_ids == probe.target_ids == sampled[:2]
    assert probe.sampled_ids == sampled


@pytest.mark.parametrize(
    ("sampled", "content", "end_id"),
    [
        ((5, 6, 259), (5, 6), 259),
        ((5, 6, 257), (5, 6), 257),
        ((5, 6), (5, 6), None),
        ((259,), (), 259),
        ((), (), None),
    ],
)
def test_the_end_of_a_turn_is_kept_apart(sampled, content, end_id):
    probe, response = views().probe(sampled, ENDS), views().response(sampled, ENDS)
    for segment in (probe, response):
        assert (segment.tester_ids, segment.target_ids, segment.end_id) == (content, content, end_id)
        assert segment.sampled_ids == sampled
        assert segment.text == build_tiny("llama")[1].decode(content)
    assert (probe.role, response.role) == ("probe", "response")


def test_special_tokens_are_in_the_ids_but_not_in_the_text():
    tokenizer = build_tiny("llama")[1]
    a, start = tokenizer.convert_tokens_to_ids(["a", "<|im_start|>"])
    probe = views().probe((a, start, a), ENDS)
    assert (probe.text, probe.tester_ids) == ("aa", (a, start, a))


def test_with_two_tokenizers_each_segment_has_both():
    llama, gpt2 = build_tiny("llama")[1], build_tiny("gpt2")[1]
    gpt2.add_tokens(["hello"])
    own_files = files("llama", "gpt2")
    own_files.target.tokenizer.add_tokens(["hello"])
    own_files.target.config.vocab_size = len(gpt2)
    both = Views.from_files(own_files, RolloutConfiguration(**TURNS))
    text = "say hello!"
    in_llama, in_gpt2 = encode_text(llama, text), encode_text(gpt2, text)
    assert (len(in_llama), len(in_gpt2)) == (10, 6)

    (prompt,) = both.prompt(text).segments
    assert prompt == Segment("prompt", text, in_llama, in_gpt2)
    assert both.segment("response", text) == Segment("response", text, in_llama, in_gpt2)
    assert both.probe((*in_llama, 259), ENDS) == Segment("probe", text, in_llama, in_gpt2, end_id=259)
    # What the target sampled is not what it would have read: h e l l o and not the one token.
    spelled = encode_text(build_tiny("gpt2")[1], text)
    assert both.response((*spelled, 256), frozenset([256])) == Segment("response", text, in_llama, spelled, end_id=256)


def test_the_texts_of_two_tokenizers_are_not_obeyed():
    both = views("llama", "gpt2")
    text = "<|im_end|><|endoftext|>"
    segment = both.segment("prompt", text)
    assert len(segment.tester_ids) == len(segment.target_ids) == len(text)


@pytest.mark.parametrize(("format", "separator"), [("raw", ""), ("chat", "\n")])
def test_a_prompt_begins_a_conversation(format, separator):
    start = views(format=format).prompt("So I said")
    assert [segment.role for segment in start.segments] == ["prompt"]
    assert (str(start), start.separator) == ("So I said", separator)


# --- Texts of turns -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("knows_state", [True, False])
def test_the_text_of_a_turn_is_what_it_adds_to_the_conversation(name: str, knows_state: bool):
    """What the model reads is "Good morning you are stupid.", so that is the transcript, and no word is glued."""
    tokenizer = TOKENIZERS[name]()
    both = views_of(tokenizer)
    good, all_ids = (encode_text(tokenizer, text) for text in ("Good morning", "Good morning you are stupid."))
    rest = all_ids[len(good) :]
    state = start = both.prompt("Good morning")
    for write, ids in ((both.probe, rest[:2]), (both.response, rest[2:])):
        state += write(ids, ENDS - set(ids), None, state if knows_state else None)
    read = tokenizer.decode(both.tester.own_turn(state, 1), skip_special_tokens=True)
    begun = tokenizer.decode(both.tester.own_turn(start, 1), skip_special_tokens=True)
    assert str(state) == "Good morning" + read.removeprefix(begun)
    probe, response = (segment.text for segment in state.segments[1:])
    assert probe + response == " you are stupid."


@pytest.mark.parametrize("name", ["llama2", "llama", "gemma", "llama3", "gpt2"])
@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_character_between_two_turns_belongs_to_the_one_that_completes_it(name: str, cut: int):
    """An emoji is four bytes. Cut anywhere, it is one character of the transcript, in no turn but the second."""
    tokenizer = TOKENIZERS[name]()
    both = views_of(tokenizer)
    start = both.prompt("Good morning")
    ids = encode_text(tokenizer, "Good morning \U0001f600 you")[len(encode_text(tokenizer, "Good morning")) :]
    place = [both.tester.format.codec.continued(ids[:count]) for count in range(len(ids))].index(" \U0001f600")
    probe = both.probe(ids[: place - cut], frozenset(), None, start)
    assert str(start + probe) == tokenizer.decode(both.tester.own_turn(start + probe, 1), skip_special_tokens=True)
    assert probe.text.startswith(" \ufffd")
    response = both.response(ids[place - cut :], frozenset(), None, start + probe)
    assert response.text == "\U0001f600 you"
    assert str(start + probe + response) == "Good morning \U0001f600 you"
    never = both.response(encode_text(tokenizer, "x")[-1:], frozenset(), None, start + probe)
    after = start + probe + never
    assert str(after) == tokenizer.decode(both.tester.own_turn(after, 1), skip_special_tokens=True)


@pytest.mark.parametrize("tester", ["llama2", "gemma", "gpt2"])
@pytest.mark.parametrize("target", ["llama2", "llama", "llama legacy", "mistral3", "phi3", "gemma", "llama3", "gpt2"])
def test_another_tokenizer_reads_the_same_conversation(tester: str, target: str):
    """No space too many where a turn begins in the middle of a text, and none lost."""
    writer, listener = TOKENIZERS[tester](), TOKENIZERS[target]()
    both = views_of(writer, listener)
    state = both.prompt("Good morning")
    said = [" you are", "ness", "\nI said", "  two", "\u00e9", "12", "Hello ", "world", "", "."]
    for number, text in enumerate(said):
        ids = both.tester.format.codec.encode_after(both.tester.own_turn(state, 1), text)
        if number % 2 == 0:
            state += both.probe(ids, frozenset(), None, state)
        else:
            heard = both.target.format.codec.encode_after(both.target.own_turn(state, 1), text)
            state += both.response(heard, frozenset(), None, state)
    assert str(state) == "Good morning" + "".join(said)
    for tokenizer, view in ((writer, both.tester), (listener, both.target)):
        read = tokenizer.decode(view.own_turn(state, 1), skip_special_tokens=True)
        assert read.removeprefix(" ") == str(state)


# --- Configuration ------------------------------------------------------------------------------------------


def test_limits():
    assert views().tester.limit == views().target.limit == 512
    assert views(context_limit=100).tester.limit == views(context_limit=100).target.limit == 100
    with pytest.raises(ValueError, match=r"rollout\.context_limit is 513, but tiny:llama takes 512 tokens at most"):
        views(context_limit=513)


def test_each_side_has_an_instruction_of_its_own():
    both = views(format="chat", tester_instruction="Ask.", target_instruction="Answer.")
    tokenizer = build_tiny("llama")[1]
    assert "system\nAsk." in tokenizer.decode(both.tester.own_turn(both.prompt("a"), 1))
    heard = tokenizer.decode(both.target.other_turn(both.prompt("a"), 1))
    assert "system\nAnswer." in heard
    assert "Ask." not in heard


def test_chat_needs_a_template():
    with pytest.raises(ValueError, match="format 'chat' needs a chat template"):
        views("gpt2", "gpt2", format="chat")


# --- Prompts ------------------------------------------------------------------------------------------------


def check(prompts: list, **options: object) -> None:
    rollout = RolloutConfiguration(**TURNS, **options)
    check_prompts(prompts, Views.from_files(files(), rollout), rollout)


def test_good_prompts():
    check(["a", " b\n"])
    check(["a", " b\n"], format="chat")


def test_no_prompt():
    with pytest.raises(ValueError, match="prompts: there are none; expected at least one"):
        check([])


@pytest.mark.parametrize("bad", ["", " \n\t", None, 3])
def test_blank_prompts_are_named_by_their_row(bad):
    with pytest.raises(
        ValueError, match=re.escape(f"prompts, row 2: found {bad!r}, expected a text that is not blank")
    ):
        check(["a", bad, ""])


def test_other_lists_have_other_names():
    with pytest.raises(ValueError, match=r"prompts\.dev, row 1: found ''"):
        check_prompts([""], views(), RolloutConfiguration(**TURNS), "prompts.dev")


def test_raw_prompts_must_leave_room_for_a_turn():
    """One <s>, then a prompt of 10, a probe of 5 and a response of 7 are 23 tokens."""
    check(["short", "x" * 10], context_limit=23)
    message = (
        r"prompts, row 2 is too long: the target's context holds 22 tokens.*takes 11 and 12 are to follow: 'x{10}'"
    )
    with pytest.raises(ValueError, match=message):
        check(["short", "x" * 10], context_limit=22)
    with pytest.raises(ValueError, match="row 1 is too long: the tester's context holds 15 tokens"):
        check(["x" * 10], context_limit=15)


def test_chat_prompts_must_leave_room_for_a_turn():
    """As the template itself renders it: the prompt and a probe of 5 in one message, and 7 to follow."""
    rendered = build_tiny("llama")[1].apply_chat_template(
        [{"role": "user", "content": "x" * 10 + "\n" + "y" * 5}], add_generation_prompt=True, return_dict=False
    )
    room = len(rendered) + 7
    check(["x" * 10], format="chat", context_limit=room)
    with pytest.raises(ValueError, match="row 1 is too long: the target's context"):
        check(["x" * 10], format="chat", context_limit=room - 1)


@pytest.mark.parametrize("format", ["raw", "chat"])
def test_a_checked_prompt_can_be_answered(format):
    """Whatever limit lets a prompt pass also lets the longest first turn be written."""
    for limit in range(20, 90):
        rollout = RolloutConfiguration(**TURNS, format=format, context_limit=limit)
        both = Views.from_files(files(), rollout)
        try:
            check_prompts(["prompt"], both, rollout)
        except ValueError:
            continue
        start = both.prompt("prompt")
        both.tester.own_turn(start, 5)
        probe = both.probe((1, 2, 3, 4, 5), ENDS)
        both.target.other_turn(start, 5)
        both.target.own_turn(start + probe, 7)
        return
    raise AssertionError("no limit was enough")


# --- Later turns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["raw", "chat"])
def test_a_full_turn_must_leave_room_for_the_next_one(format: str):
    """The limit at which a conversation of full turns just continues is the limit at which it is let pass."""

    def goes_on(limit: int) -> bool:
        both = views(format=format, context_limit=limit)
        filled = both.prompt("p") + Segment("probe", "", (65,) * 5, (65,) * 5)
        filled += Segment("response", "", (66,) * 7, (66,) * 7)
        try:
            both.tester.own_turn(filled, 5)
            both.target.own_turn(filled + Segment("probe", "", (65,) * 5, (65,) * 5), 7)
        except ValueError:
            return False
        return True

    def let_pass(limit: int) -> bool:
        rollout = RolloutConfiguration(**TURNS, format=format, context_limit=limit)
        try:
            check_later_turns(Views.from_files(files(), rollout), rollout)
        except ValueError as error:
            assert "rollout.context_limit is too small" in str(error)  # noqa: PT017
            return False
        return True

    limits = range(5, 120)
    assert [let_pass(limit) for limit in limits] == [goes_on(limit) for limit in limits]
    assert {let_pass(limits[0]), let_pass(limits[-1])} == {False, True}


# --- Special tokens -----------------------------------------------------------------------------------------


def test_a_special_token_that_one_side_samples_never_reaches_the_other():
    """The tester keeps its own ids, which are trained on; the target hears what a person could have typed."""
    both = views("qwen2", "qwen2", format="chat")
    tokenizer = both.tester_tokenizer
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    content = tokenizer("assistant", add_special_tokens=False).input_ids
    sampled = (*content, start, *content)

    probe, response = both.probe(sampled, ENDS), both.response(sampled, ENDS)

    assert probe.tester_ids == response.target_ids == sampled
    assert probe.target_ids == response.tester_ids == (*content, *content)
    assert probe.text == response.text == "assistantassistant"
    assert probe.sampled_ids == sampled
