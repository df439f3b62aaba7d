"""What tester and target see of a conversation, given their tokenizers and limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from astra_accel.config import RolloutConfiguration
from astra_accel.methods.ast.format import ChatFormat, Format, RawFormat, View, encode_text
from astra_accel.methods.ast.transcript import Segment, SegmentRole, Transcript
from astra_accel.models.files import ModelFiles
from astra_accel.models.roles import RoleFiles

UNLIMITED = 2**31


@dataclass(frozen=True)
class Views:
    """Both sides' views of conversations, and how text and sampled ids become segments of them."""

    tester: View
    target: View
    tester_tokenizer: Any
    target_tokenizer: Any
    shared_tokenizer: bool

    @classmethod
    def of(cls, files: RoleFiles, rollout: RolloutConfiguration) -> Views:
        """The views of a configuration.

        Raises:
            ValueError: ``context_limit`` exceeds a model's, or a chat template does not fit.
        """
        return cls(
            View(_format(files.tester, rollout, rollout.tester_instruction), "tester", _limit(files.tester, rollout)),
            View(_format(files.target, rollout, rollout.target_instruction), "target", _limit(files.target, rollout)),
            files.tester.tokenizer,
            files.target.tokenizer,
            files.shared_tokenizer,
        )

    def prompt(self, text: str) -> Transcript:
        """A conversation that begins with a prompt."""
        return Transcript((self.segment("prompt", text),), self.tester.format.separator)

    def segment(self, role: SegmentRole, text: str) -> Segment:
        """A segment of a text that no model of ours sampled."""
        ids = encode_text(self.tester_tokenizer, text)
        return Segment(role, text, ids, ids if self.shared_tokenizer else encode_text(self.target_tokenizer, text))

    def probe(
        self, sampled: Sequence[int], end_ids: frozenset[int], logprobs: tuple[float, ...] | None = None
    ) -> Segment:
        """The segment that the tester sampled."""
        text, ids, end_id = _split_end(self.tester_tokenizer, sampled, end_ids)
        return Segment("probe", text, ids, self._heard(ids, text, self.target_tokenizer), end_id, logprobs)

    def response(
        self, sampled: Sequence[int], end_ids: frozenset[int], logprobs: tuple[float, ...] | None = None
    ) -> Segment:
        """The segment that the target sampled."""
        text, ids, end_id = _split_end(self.target_tokenizer, sampled, end_ids)
        return Segment("response", text, self._heard(ids, text, self.tester_tokenizer), ids, end_id, logprobs)

    def _heard(self, ids: tuple[int, ...], text: str, listener: Any) -> tuple[int, ...]:
        """What the other side reads of sampled ids: themselves, where it has the same tokenizer.

        A special token is none of them. Nobody who talks to a model can write one, so a tester must not forge turns
        with it: with one inside, the other side gets the text.
        """
        if self.shared_tokenizer and _special_ids(listener).isdisjoint(ids):
            return ids
        return encode_text(listener, text)


def check_prompts(prompts: Sequence[str], views: Views, rollout: RolloutConfiguration, what: str = "prompts") -> None:
    """Find prompts that leave no room for a first turn.

    Raises:
        ValueError: there is no prompt, or one is blank or too long; names its row, counted from 1.
    """
    if len(prompts) == 0:
        raise ValueError(f"{what}: no prompt at all; expected at least one")
    longest_probe = Segment("probe", "", (), (0,) * rollout.tester.max_new_tokens)
    for row, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ValueError(f"{what}, row {row}: found {prompt!r}, expected a text that is not blank")
        start = views.prompt(prompt)
        try:
            views.tester.own_turn(start, rollout.tester.max_new_tokens)
            views.target.other_turn(start, rollout.tester.max_new_tokens + rollout.target.max_new_tokens)
            views.target.own_turn(start + longest_probe, rollout.target.max_new_tokens)
        except ValueError as error:
            raise ValueError(f"{what}, row {row} is too long: {error}") from error


def check_later_turns(views: Views, rollout: RolloutConfiguration) -> None:
    """Find out whether a turn of full length leaves room for the next one, with all older turns dropped.

    Raises:
        ValueError: it does not; says what the context holds and what it would have to.
    """
    longest = (0,) * rollout.tester.max_new_tokens, (0,) * rollout.target.max_new_tokens
    probe, response = Segment("probe", "", longest[0], longest[0]), Segment("response", "", longest[1], longest[1])
    begun = Transcript((Segment("prompt", "", (0,), (0,)), probe, response), views.tester.format.separator)
    try:
        views.tester.own_turn(begun, rollout.tester.max_new_tokens)
        views.target.own_turn(begun + probe, rollout.target.max_new_tokens)
    except ValueError as error:
        raise ValueError(f"rollout.context_limit is too small for turns of this length: {error}") from error


def _special_ids(tokenizer: Any) -> frozenset[int]:
    added = tokenizer.added_tokens_decoder
    return frozenset(tokenizer.all_special_ids) | {index for index, token in added.items() if token.special}


def _split_end(
    tokenizer: Any, sampled: Sequence[int], end_ids: frozenset[int]
) -> tuple[str, tuple[int, ...], int | None]:
    ended = len(sampled) > 0 and sampled[-1] in end_ids
    ids = tuple(sampled[:-1] if ended else sampled)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text, ids, sampled[-1] if ended else None


def _format(files: ModelFiles, rollout: RolloutConfiguration, instruction: str | None) -> Format:
    if rollout.format == "chat":
        return ChatFormat(files.tokenizer, instruction)
    return RawFormat(files.tokenizer)


def _limit(files: ModelFiles, rollout: RolloutConfiguration) -> int:
    limit = UNLIMITED if files.max_length is None else files.max_length
    if rollout.context_limit is not None and rollout.context_limit > limit:
        raise ValueError(
            f"rollout.context_limit is {rollout.context_limit}, but {files.source} takes {limit} tokens at most"
        )
    return rollout.context_limit or limit
