"""Any sequence classifier from the Hugging Face hub as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from astra_accel.files.text import valid_text
from astra_accel.scorers.base import BatchedScorer
from astra_accel.scorers.pretrained import find_saved, label_index, load_frozen, longest_input


class ClassifierScorer(BatchedScorer):
    """Scores texts by the probability that a sequence classifier gives to one of its labels.

    With ``z`` the logits of a text, of shape ``(labels,)``, the score is ``softmax(z)[label]``, or
    ``sigmoid(z[label])`` if the config's ``problem_type`` is "multi_label_classification" or the head has
    one logit. Texts longer than the model's limit are truncated at the end. Special tokens written in a text
    are read as text.

    Args:
        model: A hub id or a local folder of any ``AutoModelForSequenceClassification``.
        label: A name in the config's ``id2label``; case does not matter.
        categories: Further label names for kinds of harm; evaluations report each.
        device: Where the model runs.
        batch_size: The most distinct texts in a forward pass.
        max_length: The most tokens of a text to read, including special ones; None uses the model's limit.
        dtype: The dtype of the weights, such as "bfloat16"; None keeps the checkpoint's.

    Raises:
        ValueError: There is no such label (the message lists them), the head is a regression with several
            outputs, the tokenizer has no pad token, the checkpoint has no classification head, or
            ``max_length`` is invalid.
    """

    def __init__(
        self,
        model: str,
        label: str,
        *,
        categories: Sequence[str] = (),
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        max_length: int | None = None,
        dtype: str | torch.dtype | None = None,
    ) -> None:
        super().__init__(batch_size)
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

        config = find_saved(AutoConfig.from_pretrained, model)
        names = [config.id2label[i] for i in range(config.num_labels)]
        self._label = label_index(names, label)
        self._categories = {names[index]: index for index in (label_index(names, name) for name in categories)}
        self._sigmoid = _has_independent_labels(config)
        self.tokenizer = _padding_tokenizer(find_saved(AutoTokenizer.from_pretrained, model), config)
        self.model = load_frozen(AutoModelForSequenceClassification, model, device, dtype)
        # Decoders find a text's last token by the pad id of their config, so it must be the one that we pad
        # with.
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self._max_length = longest_input(self.model, self.tokenizer, max_length)
        # A decoder's tokenizer may turn the empty text into zero tokens, which no model can read.
        self._empty = "" if self.tokenizer("").input_ids else " "

    def score_batch(self, texts: Sequence[str]) -> list[float]:
        """Return the label's probability for each text."""
        return self._probabilities(texts)[:, self._label].tolist()

    def score_categories(self, texts: Sequence[str]) -> dict[str, list[float | None]]:
        """Return the probability of each of the ``categories``, by name. Raises the errors of :meth:`score`."""
        if not self._categories:
            return {}
        return self._categories_of_distinct([(text,) for text in texts], self._categorize)

    def _categorize(self, batch: Sequence[tuple[str, ...]]) -> dict[str, list[float]]:
        probabilities_BL = self._probabilities([text for (text,) in batch])
        return {name: probabilities_BL[:, index].tolist() for name, index in self._categories.items()}

    @torch.inference_mode()
    def _probabilities(self, texts: Sequence[str]) -> torch.Tensor:
        """The probability of every label, ``[texts, labels]``."""
        inputs_BT = self.tokenizer(
            [valid_text(text) or self._empty for text in texts],
            padding=True,
            truncation=self._max_length is not None,
            max_length=self._max_length,
            split_special_tokens=True,
            return_tensors="pt",
        ).to(self.model.device)
        logits_BL = self.model(**inputs_BT).logits.float()
        return logits_BL.sigmoid() if self._sigmoid else logits_BL.softmax(dim=-1)


def _has_independent_labels(config: Any) -> bool:
    if config.problem_type == "regression" and config.num_labels > 1:
        raise ValueError(f"the model is a regression of {config.num_labels} outputs: they are no probabilities")
    return config.num_labels == 1 or config.problem_type == "multi_label_classification"


def _padding_tokenizer(tokenizer: Any, config: Any) -> Any:
    if tokenizer.pad_token_id is None:
        raise ValueError("the model's tokenizer has no pad token, so texts cannot be batched: set its pad_token")
    # Absolute positions count from the left, so padding must not shift them; only XLNet, whose positions are
    # relative, classifies from the last column.
    tokenizer.padding_side = "left" if config.model_type == "xlnet" else "right"
    return tokenizer
