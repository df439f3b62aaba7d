"""How unsafe a turn is, as a scorer says."""

from __future__ import annotations

from astra_accel.core.scorer import Scorer, check_scores, response_scores
from astra_accel.methods.ast.rewards.term import RewardTerm, Turns


class CombinedToxicity(RewardTerm):
    """The score of probe and response as one text.

    Args:
        scorer: judges it.
    """

    name = "combined_score"

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def values(self, turns: Turns) -> list[float | None]:
        """One score a turn.

        Raises:
            ScorerError: the scorer did not return one number from 0 to 1 a text, or None.
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

    def values(self, turns: Turns) -> list[float | None]:
        """One score a turn.

        Raises:
            ScorerError: the scorer did not return one number from 0 to 1 a text, or None.
        """
        return response_scores(self.scorer, turns.probe_texts, turns.response_texts)
