"""An LLM as judge, in this process, by a rubric."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from astra_accel.core.prompt import Goal
from astra_accel.endpoints.answers import Answer, Messages
from astra_accel.scorers.causal import left_pad
from astra_accel.scorers.pretrained import find_saved, load_frozen, longest_input
from astra_accel.scorers.rubric.judge import RubricJudge

# Marks the place of a message in the rendered template; private-use characters, which no template writes.
_SLOT = "\ue000{}\ue001"
_SLOT_PATTERN = re.compile("\ue000(\\d+)\ue001")
TOO_LONG = "the question and its longest answer do not fit the model"


class LocalJudgeScorer(RubricJudge):
    """Scores texts and exchanges by a chat model that each process loads, by a rubric.

    Rubrics, fences and verdicts are those of ``judge``, which asks a model behind an endpoint instead: one server for
    all processes is quicker where several of them would load a large model each. Answers are greedy.

    Special tokens written in what is judged are read as text. A question that does not fit the model, and an answer
    without a readable verdict after a second try, leave the score missing. A model of few parameters gives hardly any.

    Args:
        model: A hub id or a local folder of a chat model.
        rubric: As for ``judge``: ``toxicity``, ``harmful``, ``refusal``, ``strongreject``, ``harmbench``, or a YAML
            file.
        max_tokens: The longest answer.
        device: Where the model runs.
        batch_size: The most questions that are answered at once.
        dtype: The dtype of the weights; "auto" keeps the checkpoint's.
        max_length: The most tokens of question and answer; None uses the model's limit.

    Raises:
        ValueError: The rubric is wrong, or the tokenizer is not a fast one, or has no chat template that takes a
            system message.
    """

    def __init__(
        self,
        model: str,
        rubric: str = "harmful",
        *,
        max_tokens: int = 256,
        device: str | torch.device = "cpu",
        batch_size: int = 8,
        dtype: str | torch.dtype = "auto",
        max_length: int | None = None,
    ) -> None:
        super().__init__(rubric, batch_size)
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.max_tokens = max_tokens
        self.tokenizer = find_saved(AutoTokenizer.from_pretrained, model)
        if not self.tokenizer.is_fast:
            raise ValueError("LocalJudgeScorer needs a fast tokenizer: a text must not write special tokens")
        if self.tokenizer.chat_template is None:
            raise ValueError(f"the tokenizer of {model} has no chat template; expected a chat model")
        self._specials = [str(token.content) for token in self.tokenizer.added_tokens_decoder.values()]
        self._read([{"role": role, "content": "a"} for role in ("system", "user", "assistant", "user")])
        self.model = load_frozen(AutoModelForCausalLM, model, device, dtype)
        self._max_length = longest_input(self.model, self.tokenizer, max_length)

    def ask(self, questions: Sequence[Messages], goals: Sequence[Goal | None]) -> list[Answer]:  # noqa: ARG002
        """The model's greedy answers."""
        rows = [self._read(messages) for messages in questions]
        fits = [self._max_length is None or len(row) + self.max_tokens <= self._max_length for row in rows]
        answers = iter(self._generate([row for row, fit in zip(rows, fits, strict=True) if fit]))
        return [Answer("answered", next(answers)) if fit else Answer("failed", TOO_LONG) for fit in fits]

    @torch.inference_mode()
    def _generate(self, rows: Sequence[list[int]]) -> list[str]:
        from transformers import GenerationConfig

        if not rows:
            return []
        ids_BT, mask_BT = left_pad(rows)
        ends = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        greedy = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_tokens,
            eos_token_id=ends,
            pad_token_id=ends[0] if isinstance(ends, list) else ends,
        )
        written_BT = self.model.generate(
            input_ids=ids_BT.to(self.model.device),
            attention_mask=mask_BT.to(self.model.device),
            generation_config=greedy,
        )[:, ids_BT.shape[1] :]
        return self.tokenizer.batch_decode(written_BT, skip_special_tokens=True)

    def _read(self, messages: Messages) -> list[int]:
        """The ids of a conversation in the chat template. What messages say is read as text, whatever it spells.

        Raises:
            ValueError: the template does not write each message once and in order.
        """
        slots = [{**message, "content": _SLOT.format(place)} for place, message in enumerate(messages)]
        shown = self.tokenizer.apply_chat_template(slots, tokenize=False, add_generation_prompt=True)
        if _SLOT_PATTERN.findall(shown) != [str(place) for place in range(len(messages))]:
            raise ValueError("the chat template does not write a system message and each turn once and in order")
        texts = [message["content"] for message in messages]
        if not any(special in text for text in texts for special in self._specials):
            return self._encode(_SLOT_PATTERN.sub(lambda slot: texts[int(slot[1])], shown))
        pieces = _SLOT_PATTERN.split(shown)  # alternately of the template, and the number of a message
        of_template, said = pieces[0::2], [texts[int(place)] for place in pieces[1::2]]
        ids = self._encode(of_template[0])
        for text, piece in zip(said, of_template[1:], strict=True):
            ids += self._encode(text, split_special_tokens=True) + self._encode(piece)
        return ids

    def _encode(self, text: str, **options: Any) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False, **options).input_ids
