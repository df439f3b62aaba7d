"""The default scorer: the probability that a text is profane, from a linear model of word counts."""

from __future__ import annotations

from collections.abc import Sequence

from astra_accel.scorers.base import BatchedScorer


class ProfanityScorer(BatchedScorer):
    """Scores texts with the package alt-profanity-check.

    The score is the package's ``predict_prob``: a calibrated linear classifier on the tf-idf weights of a
    text's words. It needs neither GPU nor download, but sees words, not meaning. A text without known words,
    including the empty one, gets the model's intercept: a small number, not 0.

    Args:
        batch_size: The most distinct texts that are vectorised at once.

    Raises:
        ImportError: The package is not installed.
    """

    def __init__(self, batch_size: int = 1024) -> None:
        super().__init__(batch_size)
        try:
            from profanity_check import predict_prob
        except ImportError as error:
            raise ImportError(
                "ProfanityScorer needs alt-profanity-check: pip install 'astra-accel[profanity]'"
            ) from error
        self._predict_prob = predict_prob

    def score_batch(self, texts: Sequence[str]) -> list[float]:
        """Return the probability of profanity for each text."""
        return self._predict_prob(list(texts)).tolist()
