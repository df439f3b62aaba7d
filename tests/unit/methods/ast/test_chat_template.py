"""A conversation in the formats of models in use: what is read is what ``apply_chat_template`` gives.

The oracle is the tokenizer's own ``apply_chat_template`` on the whole conversation, tokenised as one text.
"""

from __future__ import annotations

import itertools
import logging
from dataclasses import replace
from typing import Any

import pytest

from astra_accel.methods.ast.chat_template import ChatTemplate
from astra_accel.methods.ast.format import ChatFormat
from astra_accel.methods.ast.transcript import Segment, Transcript
from astra_accel.methods.ast.views import View
from tests.helpers import templates
from tests.helpers.tokenizer_kinds import TOKENIZERS
from tests.helpers.views import views_of

MODELS = {
    "Llama 2": ("llama2", templates.LLAMA2),
    "Llama 2, legacy": ("llama legacy", templates.LLAMA2),
    "Llama 2, not legacy": ("llama", templates.LLAMA2),
    "Llama 2, slow": ("slow", templates.LLAMA2),
    "Mistral v1": ("llama2", templates.MISTRAL1),
    "Mistral v1, no space": ("llama2", templates.MISTRAL1_GLUED),
    "Mistral v3": ("mistral3", templates.MISTRAL3),
    "Mistral v3 in bytes": ("llama3", templates.MISTRAL3),
    "Mistral tekken": ("llama3", templates.TEKKEN),
    "Zephyr": ("llama2", templates.ZEPHYR),
    "Phi 3": ("phi3", templates.PHI3),
    "Gemma": ("gemma", templates.GEMMA),
    "Vicuna": ("llama2", templates.VICUNA),
    "Vicuna, not legacy": ("llama", templates.VICUNA),
    "Vicuna in bytes": ("gpt2", templates.VICUNA),
    "Llama 3": ("llama3", templates.LLAMA3),
    "Qwen": ("llama3", templates.CHATML),
    "plain text": ("llama2", templates.PLAIN),
}
SAID = ["So I said", "Hello there", "Well, fine.", "Why? 12", "You are stupid.", "bye"]
TAKES_SYSTEM = ("Llama 2", "Llama 2, legacy", "Llama 2, not legacy", "Llama 3", "Qwen")


def tokenizer_of(kind: str, template: str) -> Any:
    tokenizer = TOKENIZERS[kind]()
    tokenizer.chat_template = template
    return tokenizer


def messages(texts: list[str], reader: str, instruction: str | None = None) -> list[dict[str, str]]:
    if reader == "target":
        texts = [f"{texts[0]}\n{texts[1]}", *texts[2:]]
    system = [] if instruction is None else [{"role": "system", "content": instruction}]
    return system + [
        {"role": "user" if number % 2 == 0 else "assistant", "content": text} for number, text in enumerate(texts)
    ]


def template_ids(tokenizer: Any, said: list[dict[str, str]]) -> tuple[int, ...]:
    return tuple(tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False))


def template_text(tokenizer: Any, said: list[dict[str, str]]) -> str:
    return tokenizer.apply_chat_template(said, add_generation_prompt=True, tokenize=False)


def own_turn_ids(tokenizer: Any, said: list[dict[str, str]]) -> tuple[int, ...]:
    """What a model samples that answers with the last message just as the tokenizer would write it.

    It is what the template's ids have between those of the conversation before it and those of its own end.
    """
    before, after = (
        template_ids(tokenizer, said[:-1]),
        template_ids(tokenizer, [*said, {"role": "user", "content": "x"}]),
    )
    other = [*said[:-1], {"role": "assistant", "content": "7"}, {"role": "user", "content": "x"}]
    end = 0
    for one, two in zip(reversed(after), reversed(template_ids(tokenizer, other)), strict=False):
        if one != two:
            break
        end += 1
    assert after[: len(before)] == before
    return after[len(before) : len(after) - end]


def conversation(format: ChatFormat, reader: str, texts: list[str], instruction: str | None = None) -> list[Segment]:
    """Texts of another tokenizer's, and what the reader says itself as ``own_turn_ids``."""
    segments: list[Segment] = []
    for number, text in enumerate(texts):
        role = "prompt" if number == 0 else "probe" if number % 2 else "response"
        if number > 0 and role == ("probe" if reader == "tester" else "response"):
            ids = own_turn_ids(format.codec.tokenizer, messages(texts[: number + 1], reader, instruction))
            assert format.said(segments, reader, ids).text == text
        else:
            ids = format.ids(segments, reader, role, text)
        segments.append(Segment(role, text, *((ids, ()) if reader == "tester" else ((), ids))))
    return segments


@pytest.mark.parametrize(
    ("model", "instruction"), [*((m, None) for m in MODELS), *((m, "Be brief.") for m in TAKES_SYSTEM)]
)
def test_what_is_read_are_the_ids_of_the_template(model: str, instruction: str | None):
    """No space is added where a message begins, and tokens that hold some of the template are whole."""
    tokenizer = tokenizer_of(*MODELS[model])
    format = ChatFormat(tokenizer, instruction, hears_ids=False)
    for reader, counts in (("tester", (1, 3, 5)), ("target", (2, 4, 6))):
        segments = conversation(format, reader, SAID, instruction)
        for count in counts:
            read = View(format, reader, 10**6).own_turn(Transcript(tuple(segments[:count])), 1)
            assert read == template_ids(tokenizer, messages(SAID[:count], reader, instruction))
    assert not any("joins it" in note for note in format.notes())


@pytest.mark.parametrize("said", [" bye ", "\n\nyou", "now\n", "\t", " [INST] "])
@pytest.mark.parametrize("model", MODELS)
def test_a_prompt_is_part_of_one_text(model: str, said: str):
    """Also with white space at its edges, which many tokenizers join with what stands beside it."""
    tokenizer = tokenizer_of(*MODELS[model])
    format = ChatFormat(tokenizer)
    if format.codec.spells_special(said):
        said = said.replace("INST", "NEXT")  # The template would obey it.
    prompt = Segment("prompt", said, format.ids((), "tester", "prompt", said), ())
    read = View(format, "tester", 10**6).own_turn(Transcript((prompt,)), 1)
    assert read == template_ids(tokenizer, messages([said], "tester"))


@pytest.mark.parametrize("model", MODELS)
def test_a_longer_conversation_begins_with_what_was_read_and_said(model: str):
    """So that a cache can be carried on, and training asks of the context that was sampled in."""
    format = ChatFormat(tokenizer_of(*MODELS[model]))
    for reader, counts in (("tester", (1, 3, 5)), ("target", (2, 4))):
        segments = conversation(format, reader, SAID)
        view = View(format, reader, 10**6)
        read = [view.own_turn(Transcript(tuple(segments[:count])), 1) for count in counts]
        for count, (shorter, longer) in zip(counts, itertools.pairwise(read), strict=False):
            begun = shorter + segments[count].ids(reader)
            assert longer[: len(begun)] == begun


@pytest.mark.parametrize("model", MODELS)
def test_a_probe_is_heard_where_it_will_stand(model: str):
    """Log-probs that judge it are of the very tokens that the target answers to."""
    format = ChatFormat(tokenizer_of(*MODELS[model]), hears_ids=False)
    view = View(format, "target", 10**6)
    for probe in ("Why? 12", " bye \n", ""):
        segments = conversation(format, "target", [*SAID[:3], probe])
        before = Transcript(tuple(segments[:3]))
        heard = view.other_turn(before, 1) + segments[3].target_ids
        assert view.own_turn(before + segments[3], 1) == heard + format.tail


@pytest.mark.parametrize("model", [name for name in MODELS if name != "Llama 2, slow"])
def test_a_text_that_spells_a_special_token_is_not_obeyed(model: str):
    tokenizer = tokenizer_of(*MODELS[model])
    format = ChatFormat(tokenizer, hears_ids=False)
    specials = format.codec.special_ids
    forged = "".join(tokenizer.all_special_tokens)
    for reader in ("tester", "target"):
        texts = SAID[:3] if reader == "tester" else SAID[:2]
        harmless = View(format, reader, 10**6).own_turn(Transcript(tuple(conversation(format, reader, texts))), 1)
        segments = conversation(format, reader, texts)
        for place in (0, len(texts) - 1):
            ids = format.ids(segments[:place], reader, segments[place].role, forged)
            segments[place] = replace(segments[place], text=forged, tester_ids=ids, target_ids=ids)
        read = View(format, reader, 10**6).own_turn(Transcript(tuple(segments)), 1)
        assert sum(index in specials for index in read) == sum(index in specials for index in harmless)
        assert tokenizer.decode(read).replace(" ", "").count(forged.replace(" ", "")) >= 2


def test_a_difference_is_told(caplog):
    """A generation prompt that ends with a space, which the template's tokens of later turns join with the answer."""
    template = templates.VICUNA.replace(
        "{% if add_generation_prompt %} ASSISTANT:", "{% if add_generation_prompt %} ASSISTANT: "
    )
    (note,) = ChatFormat(tokenizer_of("llama2", template)).notes()
    assert "in apply_chat_template ['▁" in note


# --- What the template does to messages ---------------------------------------------------------------------


@pytest.mark.parametrize("said", [" Hello there\n", "\n\nHello", "Hello ", "Hello there"])
@pytest.mark.parametrize("model", ["Llama 2", "Gemma", "Llama 3"])
def test_what_the_template_trims_is_trimmed_on_both_sides(model: str, said: str):
    """The text that is scored stays as it was said."""
    tokenizer = tokenizer_of(*MODELS[model])
    views = views_of(tokenizer, format="chat")
    start = views.prompt("So I said")
    sampled = views.tester.format.codec.encode_continued(said)
    probe = views.probe(sampled, frozenset(), None, start)
    assert probe.text.strip() == said.strip()
    assert probe.sampled_ids == sampled
    asked = start + probe
    response = views.response(views.tester.format.codec.encode_continued("Why?"), frozenset(), None, asked)
    decode = tokenizer.decode
    shown = messages(["So I said", said, "Why?"], "tester")
    assert decode(views.tester.own_turn(asked + response, 1)) == decode(template_ids(tokenizer, shown))
    shown = messages(["So I said", probe.text], "target")
    assert decode(views.target.own_turn(asked, 1)) == decode(template_ids(tokenizer, shown))


# --- Thinking -----------------------------------------------------------------------------------------------

THOUGHT = "<think>\nThe user greets.\n</think>\n\nHello there"


@pytest.mark.parametrize("name", ["QWEN3", "QWEN3_SILENT", "DEEPSEEK_R1", "QWEN3_THINKING", "GIVEN_APART"])
def test_earlier_thinking_is_where_the_template_has_it_and_nowhere_else(name: str):
    """The tester's later contexts are the template's; the other side and the scorer get the answer."""
    tokenizer = tokenizer_of("llama3", templates.THINKING[name])
    views = views_of(tokenizer, format="chat")
    begun = views.tester.format.template.thinking.begun
    assert begun == (name in ("DEEPSEEK_R1", "QWEN3_THINKING"))
    said = THOUGHT.removeprefix("<think>\n") if begun else THOUGHT
    start = views.prompt("Hi")
    probe = views.probe(views.tester.format.codec.encode_continued(said), frozenset(), None, start)
    answer = "Fine.\n</think>\nHow are you?" if begun else "How are you?"
    response = views.response(views.tester.format.codec.encode_continued(answer), frozenset(), None, start + probe)

    assert (probe.text, response.text) == ("Hello there", "How are you?")
    assert "The user greets." in probe.thinking
    assert tokenizer.decode(probe.sampled_ids) == said
    field = {"reasoning_content": "The user greets."} if name == "GIVEN_APART" else {}
    earlier = {"role": "assistant", "content": "Hello there" if field else said, **field}
    shown = [{"role": "user", "content": "Hi"}, earlier, {"role": "user", "content": "How are you?"}]
    assert tokenizer.decode(views.tester.own_turn(start + probe + response, 1)) == template_text(tokenizer, shown)
    heard = [{"role": "user", "content": "Hi\nHello there"}]
    assert tokenizer.decode(views.target.own_turn(start + probe, 1)) == template_text(tokenizer, heard)


@pytest.mark.parametrize("name", templates.THINKING)
def test_thinking_that_was_cut_off_is_no_answer(name: str):
    views = views_of(tokenizer_of("llama3", templates.THINKING[name]), format="chat")
    begun = views.tester.format.template.thinking.begun
    start = views.prompt("Hi")
    sampled = views.tester.format.codec.encode_continued("The user gre" if begun else "<think>\nThe user gre")
    probe = views.probe(sampled, frozenset(), None, start)
    assert (probe.text, probe.target_ids, probe.sampled_ids) == ("", (), sampled)
    assert probe.thinking.endswith("The user gre")
    assert views.tester.own_turn(start + probe + views.segment("response", "x", start + probe), 1)


@pytest.mark.parametrize("name", templates.THINKING)
def test_what_a_model_is_told_that_it_said_needs_no_thinking(name: str):
    """A text in place of a sampled turn: where the prompt begins the thinking, it has ended before the text."""
    tokenizer = tokenizer_of("llama3", templates.THINKING[name])
    views = views_of(tokenizer, format="chat")
    start = views.prompt("Hi")
    probe = views.segment("probe", "Hello", start)
    state = start + probe + views.segment("response", "Why?", start + probe)
    for segments, reader in ((["Hi", "Hello", "Why?"], "tester"), (["Hi", "Hello", "Why?", "So."], "target")):
        whole = state if reader == "tester" else state + views.segment("probe", "So.", state)
        read = tokenizer.decode(getattr(views, reader).own_turn(whole, 1))
        said = messages(segments, reader)
        for message in said:
            if name == "DEEPSEEK_R1" and message["role"] == "assistant":
                message["content"] = "</think>\n\n" + message["content"]  # Its template keeps the newlines.
        assert read == template_text(tokenizer, said)


def test_thinking_that_special_tokens_mark():
    """As [THINK] and [/THINK]: they are no text, but the template knows them."""
    tokenizer = tokenizer_of("llama3", templates.QWEN3.replace("<think>", "[THINK]").replace("</think>", "[/THINK]"))
    tokenizer.add_special_tokens({"extra_special_tokens": ["[THINK]", "[/THINK]"]})
    views = views_of(tokenizer, format="chat")
    start = views.prompt("Hi")
    sampled = tuple(tokenizer("[THINK]\nThe user greets.\n[/THINK]\n\nHello", add_special_tokens=False).input_ids)
    probe = views.probe(sampled, frozenset(), None, start)
    assert probe.text == "Hello"
    assert tokenizer.decode(probe.target_ids) == "Hello"
    assert probe.thinking == "[THINK]\nThe user greets.\n[/THINK]"
    after = start + probe + views.segment("response", "Why?", start + probe)
    assert "greets" not in tokenizer.decode(views.tester.own_turn(after, 1))


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hello", "Hello"),
        ("<|channel|>final<|message|>Hello", "Hello"),
        ("<|channel|>analysis<|message|>Hm.", ""),
    ],
)
def test_messages_that_only_the_model_reads_are_no_answer(said: str, answer: str):
    """gpt-oss writes several messages in a turn, so the end of the first is no end of the turn."""
    tokenizer = tokenizer_of("llama3", templates.GPT_OSS)
    marks = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>"]
    tokenizer.add_special_tokens({"extra_special_tokens": marks})
    views = views_of(tokenizer, format="chat")
    assert views.tester.format.end_ids == frozenset()
    start = views.prompt("Hi")
    sampled = tuple(tokenizer(said, add_special_tokens=False).input_ids)
    probe = views.probe(sampled, frozenset(), None, start)
    assert (probe.text, probe.sampled_ids) == (answer, sampled)
    assert ("Hm." in probe.thinking) == ("Hm." in said)
    assert tokenizer.decode(views.target.own_turn(start + probe, 1)) == template_text(
        tokenizer, [{"role": "user", "content": f"Hi\n{answer}"}]
    )
    after = start + probe + views.segment("response", "Why?", start + probe)
    shown = messages(["Hi", answer, "Why?"], "tester")
    assert tokenizer.decode(views.tester.own_turn(after, 1)) == template_text(tokenizer, shown)


@pytest.mark.parametrize(("template", "format"), [(templates.CHATML, "chat"), (templates.QWEN3, "raw")])
def test_thinking_stays_where_no_template_drops_it(template: str, format: str):
    tokenizer = tokenizer_of("llama3", template)
    views = views_of(tokenizer, format=format)
    start = views.prompt("Hi")
    probe = views.probe(views.tester.format.codec.encode_continued(THOUGHT), frozenset(), None, start)
    assert (probe.text, probe.thinking) == (THOUGHT, "")
    assert probe.target_ids == probe.tester_ids
    assert THOUGHT in tokenizer.decode(views.target.own_turn(start + probe, 1))


def test_what_a_template_writes_otherwise_is_told_once(caplog):
    """Here a message that begins with a slash gets another frame."""
    template = templates.CHATML.replace("+ m.content +", "+ ('!' if m.content[:1] == '/' else '') + m.content +", 1)
    template = template.replace("'<|im_end|>\n' }}", "('<|im_end|>\n' if m.content[:1] != '/' else '\n') }}", 1)
    made = ChatTemplate(tokenizer_of("llama3", template))
    with caplog.at_level(logging.WARNING, logger="astra_accel"):
        assert [made.shown_user("/help") for _ in range(3)] == ["/help"] * 3
    assert len([line for line in caplog.messages if "writes something else around '/help'" in line]) == 1
