"""How unsafe a turn is, as a scorer says."""

from __future__ import annotations

from collections.abc import Sequence

from astra_accel.core.scorer import Scorer, check_scores
from astra_accel.methods.ast.rewards.term import RewardTerm, Turns


class CombinedToxicity(RewardTerm):
    """The score of probe and response as one text.

    Args:
        scorer: judges it.
    """

    name = "combined_score"

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def values(self, turns: Turns) -> list[float]:
        """One score a turn.

        Raises:
            ScorerError: the scorer did not return one finite number a text.
        """
        texts = turns.exchange_texts
        return check_scores(self.scorer, texts, self.scorer.score(texts))


class ResponseToxicity(RewardTerm):
    """The score of the response ("defense"), given its probe where the scorer reads conversations.

    Args:
        scorer: judges it.
    """

    name = "response_score"

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def values(self, turns: Turns) -> list[float]:
        """One score a turn.

        Raises:
            ScorerError: the scorer did not return one finite number a text.
        """
        texts = turns.response_texts
        # Scorers written for the reference have `score` alone.
        exchanges = getattr(self.scorer, "score_exchanges", None)
        scores: Sequence[float] = self.scorer.score(texts) if exchanges is None else exchanges(turns.probe_texts, texts)
        return check_scores(self.scorer, texts, scores)
