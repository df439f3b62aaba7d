"""What a chat template writes around messages, and how it changes their texts."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

logger = logging.getLogger(__name__)

Message = dict[str, str]

_THINKING_MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
)
_SPLIT_AT = re.compile(r"""split\(\s*(['"])(.+?)\1""")
_FIELDS = ("reasoning_content", "reasoning", "thinking", "thought")
_MARKS = [f"@@{index}@@" for index in range(5)]


@dataclass(frozen=True)
class Thinking:
    """How a template marks what an assistant thinks before it answers.

    Attributes:
        begin, end: the marks around the thinking.
        begun: whether the prompt for a new message already ends with the first mark.
        dropped: whether the template drops the thinking from earlier messages.
        field: the message field that holds the thinking; None if it is part of the content.
    """

    begin: str
    end: str
    begun: bool
    dropped: bool = True
    field: str | None = None


@dataclass(frozen=True)
class Answer:
    """An assistant's message as later turns see it.

    Attributes:
        text: what the other side gets, without the thinking.
        shown: how the template writes the message in later turns, possibly trimmed.
        thinking: the thinking before it, with its marks.
    """

    text: str
    shown: str
    thinking: str = ""


class ChatTemplate:
    """The pieces of a tokenizer's chat template, as text.

    The template is rendered with placeholders: a conversation is ``head user to_assistant assistant to_user user tail``
    with contents as returned by :meth:`shown_user` and :meth:`answer`.

    Attributes:
        head: the text before the first user message.
        to_assistant, to_user: the text between a message and the next.
        tail: the text after the last user message, up to where the assistant begins.
        thinking: how thinking is marked; None if the template neither drops nor begins it.
        frame: what the template writes between the tail and an answer, if that is more than a space: special tokens
            that the model writes itself, after messages in the same turn that only the model reads (gpt-oss).

    Raises:
        ValueError: there is no chat template, it does not take the messages, or it does not render turn by turn.
    """

    def __init__(self, tokenizer: Any, instruction: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._system = [] if instruction is None else [{"role": "system", "content": instruction}]
        self.head, self.to_assistant, self.to_user, self.tail = _pieces(tokenizer, self._system)
        self.thinking = self._find_thinking()
        self.frame, self._frame_begin = self._find_frame()
        self.shown_user = lru_cache(maxsize=4096)(self._shown_user)
        self.answer = lru_cache(maxsize=4096)(self._answer)
        self._said_unlike = False

    def _shown_user(self, content: str) -> str:
        """Return a user's message as the template writes it."""
        rendered = self._render([_user(_MARKS[0]), _assistant(_MARKS[1]), _user(content)])
        _, found, rest = rendered.partition(_MARKS[1] + self.to_user)
        return self._between(rest, self.tail, content) if found else self._unlike(content)

    def _answer(self, content: str) -> Answer:
        """Return what later turns hold of an assistant's message that was written after the tail.

        If the thinking never ended, it is the whole message: there is no answer.
        """
        if self.frame and self._frame_begin in content:
            thought, framed, answer = content.rpartition(self.frame)
            thinking = thought if framed else content
            return Answer(answer if framed else "", self._shown_assistant(answer if framed else ""), thinking)
        marks = self.thinking
        if marks is None:
            return Answer(content, self._shown_assistant(content))
        thought, ended, answer = content.rpartition(marks.end)
        if ended:
            answer, thinking = answer.strip(), thought + ended
        elif marks.begun or content.lstrip().startswith(marks.begin):
            answer, thinking = "", content
        else:
            return Answer(content, self._shown_assistant(content))
        if not marks.dropped:
            return Answer(answer, self._shown_assistant(content), thinking)
        return Answer(answer, self._shown_answer(answer, thought, content, marks), thinking)

    def _shown_answer(self, answer: str, thought: str, content: str, marks: Thinking) -> str:
        """Return the answer as the template writes it when it gets the thinking in the form that it expects."""
        if not answer:
            return self._shown_assistant("")
        if marks.field is not None:
            inner = thought.partition(marks.begin)[2] or thought
            return self._shown_assistant(answer, {marks.field: inner.strip("\n")})
        shown = self._shown_assistant(content)
        return self._shown_assistant(answer) if marks.end in shown else shown

    def _shown_assistant(self, content: str, fields: Message | None = None) -> str:
        rendered = self._render([_user(_MARKS[0]), _assistant(content, fields), _user(_MARKS[1])])
        _, found, rest = rendered.partition(_MARKS[0] + self.to_assistant)
        return self._between(rest, self.to_user + _MARKS[1] + self.tail, content) if found else self._unlike(content)

    def _between(self, rest: str, end: str, content: str) -> str:
        return rest.removesuffix(end) if rest.endswith(end) else self._unlike(content)

    def _unlike(self, content: str) -> str:
        """Handle a content around which the template writes other pieces: use the usual ones, and warn once."""
        if content.strip() and not self._said_unlike:
            self._said_unlike = True
            logger.warning(
                "The chat template of %s writes something else around %r than around other messages; this is left out.",
                name_of(self._tokenizer),
                content[:80],
            )
        return content

    def _find_thinking(self) -> Thinking | None:
        """Find the thinking marks that make the template drop earlier thinking, or with which it begins an answer."""
        source = str(self._tokenizer.chat_template)
        found = [(_opening_of(match[2]), match[2]) for match in _SPLIT_AT.finditer(source)]
        marks = [pair for pair in dict.fromkeys([*_THINKING_MARKS, *found]) if pair[0] != pair[1]]
        begun = {pair: self.tail.rfind(pair[0]) > self.tail.rfind(pair[1]) for pair in marks}
        for begin, end in marks:
            if self._drops({"content": f"{begin}\n{_MARKS[3]}\n{end}\n\n{_MARKS[4]}"}):
                return Thinking(begin, end, begun[begin, end])
        # The template takes thinking in a field of its own: split it off by the marks that the template puts around it.
        fields = [field for field in _FIELDS if field in source]
        for begin, end in marks:
            for field in fields if begin in source else ():
                if self._drops({"content": _MARKS[4], field: _MARKS[3]}):
                    return Thinking(begin, end, begun[begin, end], field=field)
        return next((Thinking(*pair, True, dropped=False) for pair in marks if begun[pair]), None)

    def _find_frame(self) -> tuple[str, str]:
        """What a model writes before an answer, and the special token that this begins with; two "" if nothing."""
        frame = self.to_assistant.removeprefix(self.tail).lstrip() if self.to_assistant.startswith(self.tail) else ""
        added = self._tokenizer.added_tokens_decoder.values()
        begin = next((token.content for token in added if token.special and frame.startswith(token.content)), None)
        return ("", "") if begin is None else (frame, begin)

    def _drops(self, message: Message) -> bool:
        try:
            rendered = self._render([_user(_MARKS[0]), {"role": "assistant", **message}, _user(_MARKS[1])])
        except Exception:  # A template may reject fields or marks that it does not know.
            return False
        return _MARKS[3] not in rendered and _MARKS[4] in rendered

    def _render(self, messages: Sequence[Message]) -> str:
        return _render(self._tokenizer, [*self._system, *messages])


def _opening_of(end: str) -> str:
    return end.replace("</", "<").replace("[/", "[").replace("END", "START").replace("end", "begin")


def _pieces(tokenizer: Any, system: Sequence[Message]) -> tuple[str, str, str, str]:
    """The text before the first message, from user to assistant, from assistant to user, and at the end."""
    if tokenizer.chat_template is None:
        raise ValueError(f"format 'chat' needs a chat template, and the tokenizer of {name_of(tokenizer)} has none")
    messages = [_user(mark) if index % 2 == 0 else _assistant(mark) for index, mark in enumerate(_MARKS)]
    try:
        long = _render(tokenizer, [*system, *messages])
        short = _render(tokenizer, [*system, *messages[:1]])
    except Exception as error:
        raise ValueError(f"the chat template of {name_of(tokenizer)} does not take these messages: {error}") from error
    pieces = []
    rest = long
    for mark in _MARKS:
        piece, found, rest = rest.partition(mark)
        if not found:
            raise ValueError(f"the chat template of {name_of(tokenizer)} leaves out a message")
        pieces.append(piece)
    head, to_assistant, to_user, again_assistant, again_user = pieces
    if (to_assistant, to_user) != (again_assistant, again_user) or short != head + _MARKS[0] + rest:
        raise ValueError(f"the chat template of {name_of(tokenizer)} changes earlier turns as a conversation grows")
    if system and system[0]["content"].strip() not in head:
        raise ValueError(f"the chat template of {name_of(tokenizer)} leaves out the system message")
    return head, to_assistant, to_user, rest


def _user(content: str) -> Message:
    return {"role": "user", "content": content}


def _assistant(content: str, fields: Message | None = None) -> Message:
    return {"role": "assistant", "content": content, **(fields or {})}


def _render(tokenizer: Any, messages: Sequence[Message]) -> str:
    return tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)


def name_of(tokenizer: Any) -> str:
    """The name of a tokenizer in messages."""
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)
