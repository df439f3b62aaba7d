"""Offensive language from the ONNX model of the hatesonar package."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from astra_accel.files.text import valid_text
from astra_accel.scorers.base import BatchedScorer

LABELS = ("hate_speech", "offensive_language", "neither")


class HateSonarScorer(BatchedScorer):
    """Scores texts with `HateSonar <https://github.com/Hironsan/HateSonar>`_.

    The model is a logistic regression on a text's words, fitted to some 25,000 tweets that people labelled as hate
    speech, offensive language or neither (Davidson et al. 2017, arXiv 1703.04009). The score is the probability that a
    text is not "neither". It needs neither GPU nor download, and sees words, not meaning. A text without known words,
    including the empty one, gets the model's intercepts: 0.32.

    Args:
        batch_size: The most distinct texts that the model gets at once.

    Raises:
        ImportError: The package is not installed.
    """

    def __init__(self, batch_size: int = 1024) -> None:
        super().__init__(batch_size)
        try:
            import onnx
            from hatesonar.api import DEFAULT_MODEL_FILE
            from onnxruntime import InferenceSession, SessionOptions
        except ImportError as error:
            raise ImportError("HateSonarScorer needs hatesonar: pip install 'astra-accel[hatesonar]'") from error
        model = onnx.load(DEFAULT_MODEL_FILE)
        for node in model.graph.node:
            if node.op_type == "StringNormalizer":
                # It lowercases, by default in the locale en_US.UTF-8, which small images lack. The model's words only
                # have ASCII letters, which every locale lowercases alike, and "C" exists everywhere.
                node.attribute.append(onnx.helper.make_attribute("locale", "C"))
        options = SessionOptions()
        # More threads gain nothing on so small a model, and would compete with torch's.
        options.intra_op_num_threads = 1
        self._session = InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def score_batch(self, texts: Sequence[str]) -> list[float]:
        """Return the probability that each text is hateful or offensive."""
        return [1 - neither for *_, neither in self._probabilities(texts)]

    def score_categories(self, texts: Sequence[str]) -> dict[str, list[float | None]]:
        """Return the probabilities of ``hate_speech`` and ``offensive_language``. Raises as :meth:`score` does."""

        def of_batch(batch: list[tuple[str]]) -> dict[str, list[float]]:
            rows = self._probabilities([text for (text,) in batch])
            return {label: [row[column] for row in rows] for column, label in enumerate(LABELS[:-1])}

        return self._categories_of_distinct([(text,) for text in texts], of_batch)

    def _probabilities(self, texts: Sequence[str]) -> list[list[float]]:
        """One row per text, in the order of :data:`LABELS`."""
        read = np.array([valid_text(text) for text in texts], dtype=object)
        _, found = self._session.run(None, {"text": read})
        return [[row[column] for column in range(len(LABELS))] for row in found]
