"""What a chat template writes around messages, and what it makes of their texts."""

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
        begin, end: the marks around it.
        begun: whether the prompt of a new message holds the first mark already.
        dropped: whether the template leaves the thinking out of earlier messages.
        field: the field of a message that takes the thinking; None where it stands in the content.
    """

    begin: str
    end: str
    begun: bool
    dropped: bool = True
    field: str | None = None


@dataclass(frozen=True)
class Answer:
    """An assistant's message as later turns know it.

    Attributes:
        text: what is said to the other side, without the thinking.
        shown: what the template writes of the message in later turns; it may trim it.
        thinking: what was thought before, with its marks.
    """

    text: str
    shown: str
    thinking: str = ""


class ChatTemplate:
    """The pieces of a tokenizer's chat template, as text.

    The template is rendered with placeholders: a conversation is ``head user to_assistant assistant to_user user tail``
    with contents as :meth:`shown_user` and :meth:`answer` have them.

    Attributes:
        head: before the first user message.
        to_assistant, to_user: between a message and the next.
        tail: after the last user message, up to where the assistant begins.
        thinking: None where the template neither drops thinking nor begins it.
        frame: what the template writes between the tail and an answer, where that is more than a space: special tokens
            that the model writes itself, and before them, in the same turn, messages that only it reads (gpt-oss).

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
        """A user's message as the template writes it."""
        rendered = self._render([_user(_MARKS[0]), _assistant(_MARKS[1]), _user(content)])
        _, found, rest = rendered.partition(_MARKS[1] + self.to_user)
        return self._between(rest, self.tail, content) if found else self._unlike(content)

    def _answer(self, content: str) -> Answer:
        """What later turns hold of an assistant's message that was written after the tail.

        Thinking that never ended is all of the message: there is no answer.
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
        """The answer as the template writes it if it is given the thinking as it wants it."""
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
        """A content for which the template writes other pieces: it is put between the usual ones."""
        if content.strip() and not self._said_unlike:
            self._said_unlike = True
            logger.warning(
                "The chat template of %s writes something else around %r than around other messages; this is left out.",
                name_of(self._tokenizer),
                content[:80],
            )
        return content

    def _find_thinking(self) -> Thinking | None:
        """The marks of thinking that make the template leave out what an earlier message thought, or that it begins."""
        source = str(self._tokenizer.chat_template)
        found = [(_opening_of(match[2]), match[2]) for match in _SPLIT_AT.finditer(source)]
        marks = [pair for pair in dict.fromkeys([*_THINKING_MARKS, *found]) if pair[0] != pair[1]]
        begun = {pair: self.tail.rfind(pair[0]) > self.tail.rfind(pair[1]) for pair in marks}
        for begin, end in marks:
            if self._drops({"content": f"{begin}\n{_MARKS[3]}\n{end}\n\n{_MARKS[4]}"}):
                return Thinking(begin, end, begun[begin, end])
        # A template that is given thinking apart: it is split off by the marks that the template writes around it.
        fields = [field for field in _FIELDS if field in source]
        for begin, end in marks:
            for field in fields if begin in source else ():
                if self._drops({"content": _MARKS[4], field: _MARKS[3]}):
                    return Thinking(begin, end, begun[begin, end], field=field)
        return next((Thinking(*pair, True, dropped=False) for pair in marks if begun[pair]), None)

    def _find_frame(self) -> tuple[str, str]:
        """What a model writes before an answer, and the special token that it begins with; twice "" if nothing."""
        frame = self.to_assistant.removeprefix(self.tail).lstrip() if self.to_assistant.startswith(self.tail) else ""
        added = self._tokenizer.added_tokens_decoder.values()
        begin = next((token.content for token in added if token.special and frame.startswith(token.content)), None)
        return ("", "") if begin is None else (frame, begin)

    def _drops(self, message: Message) -> bool:
        try:
            rendered = self._render([_user(_MARKS[0]), {"role": "assistant", **message}, _user(_MARKS[1])])
        except Exception:  # A template may refuse what it does not know.
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
    """What messages call a tokenizer."""
    return repr(tokenizer.name_or_path or type(tokenizer).__name__)
