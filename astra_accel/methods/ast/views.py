"""What tester and target read of a conversation, given their tokenizers and context limits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from astra_accel.config import RolloutConfiguration
from astra_accel.core.prompt import Goal, Prompt, goal_of, tells_goal
from astra_accel.methods.ast.format import ANY_TOKEN, ChatFormat, Format, RawFormat
from astra_accel.methods.ast.readable import EVERY_ROW, Rows
from astra_accel.methods.ast.text_codec import Ids
from astra_accel.methods.ast.transcript import Reader, Segment, SegmentRole, Transcript
from astra_accel.models.decoding.prefill import ScoreRequest
from astra_accel.models.loading.model_files import ModelFiles
from astra_accel.models.roles import RoleFiles

logger = logging.getLogger(__name__)

UNLIMITED = 2**31
_NOTHING_YET = Segment("probe", "", (), ())


class View:
    """A conversation as one of the models reads it, cut to what fits its context.

    Args:
        format: renders the conversation.
        reader: the model whose ids and perspective are used.
        limit: the most tokens of context and new text together.
        of_goal: renders a conversation with a goal, where the instruction states it; None renders all the same way.
    """

    def __init__(
        self, format: Format, reader: Reader, limit: int, of_goal: Callable[[Goal], Format] | None = None
    ) -> None:
        self.format = format
        self.reader = reader
        self.limit = limit
        self._of_goal = of_goal
        self._said_dropping = False

    def format_for(self, goal: Goal | None) -> Format:
        """What renders a conversation with a goal, or without one."""
        return self.format if goal is None or self._of_goal is None else self._of_goal(goal)

    def own_turn(self, transcript: Transcript, num_new: int) -> Ids:
        """The ids before the reader's own next turn of up to ``num_new`` tokens.

        Whole units are dropped from the beginning until it fits.

        Raises:
            ValueError: not even the newest unit fits.
        """
        return self._fit(transcript, num_new, ended=True)

    def other_turn(self, transcript: Transcript, num_new: int) -> Ids:
        """The ids before the other side's next turn, as the reader reads them."""
        return self._fit(transcript + _NOTHING_YET, num_new, ended=False)

    def _fit(self, transcript: Transcript, num_new: int, ended: bool) -> Ids:
        format = self.format_for(transcript.goal)
        units = format.units(transcript.segments, self.reader)
        for dropped in range(len(units)):
            ids = format.join(units[dropped:], ended=ended)
            if len(ids) + num_new <= self.limit:
                if dropped and not self._said_dropping:
                    self._said_dropping = True
                    logger.info(
                        "The %s's context of %d tokens is full: the oldest turns of long conversations are dropped.",
                        self.reader,
                        self.limit,
                    )
                return ids
        raise ValueError(
            f"the {self.reader}'s context holds {self.limit} tokens, but the newest part of the conversation takes "
            f"{len(ids)} and {num_new} are to follow: {str(transcript)[-80:]!r}"
        )


@dataclass(frozen=True)
class Views:
    """Both sides' views of conversations, and how text and sampled ids become segments of them."""

    tester: View
    target: View
    tester_tokenizer: Any
    target_tokenizer: Any
    shared_tokenizer: bool
    tester_rows: Rows = EVERY_ROW
    target_rows: Rows = EVERY_ROW

    @classmethod
    def from_files(cls, files: RoleFiles, rollout: RolloutConfiguration) -> Views:
        """Build the views of a configuration.

        Raises:
            ValueError: ``context_limit`` exceeds a model's limit, a chat template can't be used, or it or an
                instruction holds a token that its reader has no embedding for.
        """
        shared = files.shared_tokenizer
        # The baseline reads the same ids as the tester.
        tester_rows = Rows.fewest({"tester": files.tester, "baseline": files.baseline})
        target_rows = Rows.fewest({"target": files.target})
        tester_format = _format(files.tester, rollout, rollout.tester_instruction, shared, tester_rows)
        # An endpoint gets its instruction as a message, whatever the tester's template does with one.
        target_instruction = rollout.target_instruction if files.endpoint is None else None
        target_format = _format(files.target, rollout, target_instruction, shared, target_rows)
        views = cls(
            View(tester_format, "tester", _limit(files.tester, rollout), _by_goal(files, rollout, shared, tester_rows)),
            View(target_format, "target", _limit(files.target, rollout)),
            files.tester.tokenizer,
            files.target.tokenizer,
            shared,
            tester_rows,
            target_rows,
        )
        _check_frame(views.tester, files.tester, rollout.tester_instruction, tester_rows)
        _check_frame(views.target, files.target, target_instruction, target_rows)
        return views

    def with_end_ids(self, files: RoleFiles) -> RoleFiles:
        """Add the token with which chat templates end a turn to the models' end-of-turn tokens.

        Differences from what the models are used to are logged.
        """
        tester = replace(files.tester, end_ids=files.tester.end_ids | self.tester.format.end_ids)
        target = replace(files.target, end_ids=files.target.end_ids | self.target.format.end_ids)
        notes: dict[str, None] = {}
        for model, view in ((files.tester, self.tester), (files.target, self.target)):
            notes |= dict.fromkeys([*view.format.notes(), *_notes_on_ends(model, view.format)])
        for note in notes:
            logger.warning("%s", note)
        return replace(files, tester=tester, target=target)

    def prompt(self, prompt: str | Prompt) -> Transcript:
        """Start a conversation with a prompt."""
        nothing = Transcript((), self.tester.format.separator, goal_of(prompt))
        return nothing + self.segment("prompt", str(prompt), nothing)

    def segment(self, role: SegmentRole, text: str, state: Transcript | None = None) -> Segment:
        """Make a segment of a text that no model of ours sampled, to follow a conversation (see :meth:`probe`)."""
        before = self._before(role, state)
        tester_ids = self.tester.format_for(goal_of(state)).ids(before, "tester", role, text)
        return Segment(role, text, tester_ids, self.target.format.ids(before, "target", role, text))

    def check_readable(self, start: Transcript, num_new: int) -> None:
        """Raise ``ValueError`` if a prompt, or its goal, holds a token that a model has no embedding for."""
        (prompt,) = start.segments
        self.tester_rows.check("the prompt", prompt.tester_ids, self.tester_tokenizer)
        self.target_rows.check("the prompt", prompt.target_ids, self.target_tokenizer)
        if start.goal is not None:
            self.tester_rows.check("the goal", self.tester.own_turn(start, num_new), self.tester_tokenizer)

    def probe(
        self,
        sampled: Sequence[int],
        end_ids: frozenset[int],
        logprobs: tuple[float, ...] | None = None,
        state: Transcript | None = None,
    ) -> Segment:
        """Make the segment that the tester sampled.

        Args:
            sampled: the sampled tokens.
            end_ids: tokens that end a turn.
            logprobs: the log-probs of the tokens.
            state: the conversation that it follows; None assumes any that ends with a whole word.
        """
        return self._sampled("probe", sampled, end_ids, logprobs, state)

    def response(
        self,
        sampled: Sequence[int],
        end_ids: frozenset[int],
        logprobs: tuple[float, ...] | None = None,
        state: Transcript | None = None,
    ) -> Segment:
        """Make the segment that the target sampled; see :meth:`probe`."""
        return self._sampled("response", sampled, end_ids, logprobs, state)

    def completed(self, segment: Segment, state: Transcript) -> Segment:
        """Complete a sampled segment with the character that it may share with the turn before it.

        A segment that was made without a state lacks it.
        """
        before = state.segments[-1].text[-1:] + segment.text[:1]
        if before != "\ufffd\ufffd" or segment.num_replaced:
            return segment
        writer = self.target if segment.role == "response" else self.tester
        said = writer.format_for(state.goal).said(state.segments, writer.reader, segment.ids(writer.reader))
        return replace(segment, text=said.text, num_replaced=said.num_replaced)

    def content_of(self, probe: Segment) -> slice:
        """The slice of a probe's ids that holds its text: all but those of thinking."""
        ids, said = probe.tester_ids, self.tester.format.kept(probe.tester_ids)
        places = range(len(ids) - len(said), -1, -1) if probe.thinking else ()
        start = next((place for place in places if ids[place : place + len(said)] == said), None)
        return slice(len(ids)) if start is None else slice(start, start + len(said))

    def score_request(self, state: Transcript, context: tuple[int, ...]) -> ScoreRequest:
        """What to score while the target reads a state: the probe at its end, if its context was not cut since.

        If tester and target share their tokens, the end of the probe's turn is scored too: the baseline may be the same
        model, and then need not run.
        """
        *before, probe = state.segments
        start = self.target.other_turn(replace(state, segments=tuple(before)), len(probe.target_ids))
        if not before or context[: len(start) + len(probe.target_ids)] != start + probe.target_ids:
            return ScoreRequest(len(context), ())
        shared = probe.target_ids == probe.tester_ids and self.shared_tokenizer
        shared = shared and self.target_rows.has(probe.sampled_ids)
        return ScoreRequest(len(start), probe.sampled_ids if shared else probe.target_ids)

    def _sampled(
        self,
        role: SegmentRole,
        sampled: Sequence[int],
        end_ids: frozenset[int],
        logprobs: tuple[float, ...] | None,
        state: Transcript | None,
    ) -> Segment:
        ids, end_id = _split_end(sampled, end_ids)
        before = self._before(role, state)
        writer, listener = (self.tester, self.target) if role == "probe" else (self.target, self.tester)
        writes, reads = writer.format_for(goal_of(state)), listener.format_for(goal_of(state))
        said = writes.said(before, writer.reader, ids)
        heard = reads.ids(before, listener.reader, role, said.text, ids if self.shared_tokenizer else None)
        heard = reads.codec.readable(heard)
        tester_ids, target_ids = (ids, heard) if role == "probe" else (heard, ids)
        return Segment(
            role,
            said.text,
            tester_ids,
            target_ids,
            end_id,
            logprobs,
            num_replaced=said.num_replaced,
            thinking=said.thinking,
        )

    def _before(self, role: SegmentRole, state: Transcript | None) -> tuple[Segment, ...]:
        """The segments before a new one."""
        if state is not None:
            return state.segments
        ids = self.tester.format.codec.anchor, self.target.format.codec.anchor
        prompt = Segment("prompt", self.tester.format.codec.decode(ids[0]), *ids)
        return (prompt,) if role == "probe" else (prompt, Segment("probe", prompt.text, *ids))


def check_prompts(
    prompts: Sequence[str | Prompt], views: Views, rollout: RolloutConfiguration, what: str = "prompts"
) -> None:
    """Check that prompts leave room for a first turn, and hold only tokens that the models have embeddings for.

    Raises:
        ValueError: there is no prompt, or one is blank, too long or unreadable; names its row, counted from 1.
    """
    if len(prompts) == 0:
        raise ValueError(f"{what}: there are none; expected at least one")
    longest_probe = Segment("probe", "", (), (ANY_TOKEN,) * rollout.tester.max_new_tokens)
    for row, prompt in enumerate(prompts, start=1):
        _check_text(prompt, f"{what}, row {row}", rollout)
        start = views.prompt(prompt)
        try:
            views.check_readable(start, 0)
        except ValueError as error:
            raise ValueError(f"{what}, row {row}: {error}") from error
        try:
            views.tester.own_turn(start, rollout.tester.max_new_tokens)
            views.target.other_turn(start, rollout.tester.max_new_tokens + rollout.target.max_new_tokens)
            views.target.own_turn(start + longest_probe, rollout.target.max_new_tokens)
        except ValueError as error:
            raise ValueError(f"{what}, row {row} is too long: {error}") from error


def check_requests(requests: Sequence[str], views: Views, rollout: RolloutConfiguration, what: str) -> None:
    """Check that the target can read texts that it is asked directly, and has room to answer.

    Raises:
        ValueError: it can't; names the row, counted from 1.
    """
    for row, request in enumerate(requests, start=1):
        start = views.prompt(request)
        try:
            views.target_rows.check("the request", start.segments[0].target_ids, views.target_tokenizer)
            views.target.own_turn(start, rollout.target.max_new_tokens)
        except ValueError as error:
            raise ValueError(f"{what}, row {row}: {error}") from error


def _check_text(prompt: Any, where: str, rollout: RolloutConfiguration) -> None:
    """Check that a prompt is a text or a goal, and that it has a goal if the tester's instruction states one."""
    if isinstance(prompt, Prompt):
        if rollout.format == "raw" and not prompt.opening.strip():
            raise ValueError(
                f"{where}: the goal {prompt.goal.text[:80]!r} has no opening, and rollout.format is 'raw', one running "
                f"text that begins with it; expected an opening, or format 'chat'"
            )
        return
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(f"{where}: found {prompt!r}, expected a text that is not blank")
    if tells_goal(rollout.tester_instruction):
        raise ValueError(
            f"{where} has no goal, but rollout.tester_instruction states it; expected a column of goals (goal: NAME)"
        )


def check_later_turns(views: Views, rollout: RolloutConfiguration) -> None:
    """Check that a turn of full length leaves room for the next one, with all older turns dropped.

    Raises:
        ValueError: it does not; the message says how many tokens the context holds and would need to hold.
    """
    longest = (ANY_TOKEN,) * rollout.tester.max_new_tokens, (ANY_TOKEN,) * rollout.target.max_new_tokens
    probe, response = Segment("probe", "", longest[0], longest[0]), Segment("response", "", longest[1], longest[1])
    begun = Transcript(
        (Segment("prompt", "", (ANY_TOKEN,), (ANY_TOKEN,)), probe, response), views.tester.format.separator
    )
    try:
        views.tester.own_turn(begun, rollout.tester.max_new_tokens)
        views.target.own_turn(begun + probe, rollout.target.max_new_tokens)
    except ValueError as error:
        raise ValueError(f"rollout.context_limit is too small for turns of this length: {error}") from error


def _split_end(sampled: Sequence[int], end_ids: frozenset[int]) -> tuple[tuple[int, ...], int | None]:
    ended = len(sampled) > 0 and sampled[-1] in end_ids
    return tuple(sampled[:-1] if ended else sampled), sampled[-1] if ended else None


def _notes_on_ends(files: ModelFiles, format: Format) -> list[str]:
    if not isinstance(format, ChatFormat):
        return []
    ends = ", ".join(files.tokenizer.convert_ids_to_tokens(sorted(files.end_ids))) or "no token"
    if not format.message_ends:
        return [
            f"The chat template of {files.source} ends an answer with plain text, {format.template.to_user[:40]!r}, "
            f"and with no token: turns end with {ends}, or at max_new_tokens."
        ]
    if format.end_ids <= files.end_ids:
        return []
    (end,) = files.tokenizer.convert_ids_to_tokens(list(format.end_ids))
    return [
        f"The chat template of {files.source} ends an answer with {end}, the model with {ends}: turns end with either."
    ]


def _format(
    files: ModelFiles, rollout: RolloutConfiguration, instruction: str | None, shared: bool, rows: Rows
) -> Format:
    if rollout.format == "chat":
        return ChatFormat(files.tokenizer, instruction, hears_ids=shared, num_ids=rows.count)
    return RawFormat(files.tokenizer, rows.count)


def _by_goal(
    files: RoleFiles, rollout: RolloutConfiguration, shared: bool, rows: Rows
) -> Callable[[Goal], Format] | None:
    """What renders the tester's conversations, if its instruction states their goals."""
    instruction = rollout.tester_instruction
    if instruction is None or not tells_goal(instruction):
        return None
    of_instruction = lru_cache(maxsize=None)(lambda text: _format(files.tester, rollout, text, shared, rows))
    return lambda goal: of_instruction(goal.filled_into(instruction))


def _check_frame(view: View, files: ModelFiles, instruction: str | None, rows: Rows) -> None:
    """Refuse tokens without an embedding in what a format puts around every conversation."""
    if instruction is not None and isinstance(view.format, ChatFormat):
        ids = files.tokenizer(instruction, add_special_tokens=False).input_ids
        rows.check(f"rollout.{view.reader}_instruction", ids, files.tokenizer)
    turns: tuple[SegmentRole, ...] = ("prompt", "probe", "response", "probe")
    nothing_said = [Segment(role, "", (), ()) for role in turns[: 3 if view.reader == "tester" else 4]]
    frame = view.format.join(view.format.units(nothing_said, view.reader))
    rows.check(f"what the {view.reader}'s tokenizer or chat template puts around every turn", frame, files.tokenizer)


def _limit(files: ModelFiles, rollout: RolloutConfiguration) -> int:
    limit = UNLIMITED if files.max_length is None else files.max_length
    if rollout.context_limit is not None and rollout.context_limit > limit:
        raise ValueError(
            f"rollout.context_limit is {rollout.context_limit}, but {files.source} takes {limit} tokens at most"
        )
    return rollout.context_limit or limit
