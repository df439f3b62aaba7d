"""Toxicity from the classifiers of the detoxify package."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from astra_accel.files.text import valid_text
from astra_accel.scorers.base import BatchedScorer
from astra_accel.scorers.pretrained import freeze, label_index, longest_input


class DetoxifyScorer(BatchedScorer):
    """Scores texts with `detoxify <https://github.com/unitaryai/detoxify>`_ (Hanu and Unitary, 2020).

    The score is the sigmoid of one label's logit. The package downloads the variant's weights if they are not
    cached. Texts longer than the model's limit are truncated at the end. Special tokens written in a text are
    read as text.

    Args:
        variant: A model of the package: "original", "unbiased", "multilingual", "original-small" or
            "unbiased-small".
        label: A label of the model, such as "toxicity", "insult" or "threat"; case does not matter.
        device: Where the model runs.
        batch_size: The most distinct texts in a forward pass.
        checkpoint: A detoxify checkpoint file to load in place of the variant's. It is unpickled, so it must
            come from a trusted source.
        huggingface_config_path: A folder with the model's config and tokenizer, for loading offline.

    Raises:
        ImportError: The package is not installed.
        ValueError: There is no such variant (checked before anything is loaded) or label; the message lists
            them.
    """

    def __init__(
        self,
        variant: str = "original",
        label: str = "toxicity",
        *,
        device: str | torch.device = "cpu",
        batch_size: int = 32,
        checkpoint: str | None = None,
        huggingface_config_path: str | None = None,
    ) -> None:
        super().__init__(batch_size)
        try:
            from detoxify.detoxify import MODEL_URLS, Detoxify
        except ImportError as error:
            raise ImportError("DetoxifyScorer needs detoxify: pip install 'astra-accel[detoxify]'") from error
        if variant not in MODEL_URLS:
            raise ValueError(f"unknown variant {variant!r}: detoxify has {', '.join(map(repr, MODEL_URLS))}")
        self._detoxify = Detoxify(
            variant,
            checkpoint=checkpoint,
            device=device,
            huggingface_config_path=huggingface_config_path,
        )
        names = self._detoxify.class_names
        self._label = names[label_index(names, label)]
        freeze(self._detoxify.model, device)
        tokenizer = self._detoxify.tokenizer
        # detoxify truncates at the tokenizer's own limit, which some folders leave unset.
        tokenizer.model_max_length = longest_input(self._detoxify.model, tokenizer) or tokenizer.model_max_length
        tokenizer.split_special_tokens = True

    def score_batch(self, texts: Sequence[str]) -> list[float]:
        """Return the label's probability for each text."""
        return self._predict(texts)[self._label]

    def score_categories(self, texts: Sequence[str]) -> dict[str, list[float | None]]:
        """Return the probability of every label of the model, by name. Raises the errors of :meth:`score`."""
        return self._categories_of_distinct(
            [(text,) for text in texts], lambda batch: self._predict([text for (text,) in batch])
        )

    def _predict(self, texts: Sequence[str]) -> dict[str, list[float]]:
        found = self._detoxify.predict([valid_text(text) for text in texts])
        # detoxify squeezes its output: for one text it is a number, not a list.
        return {label: [scores] if len(texts) == 1 else scores for label, scores in found.items()}
