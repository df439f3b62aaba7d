"""Terms that judge a turn by itself: toxicity, naturalness, length and repetition."""

from __future__ import annotations

from astra_accel.config import NaturalnessModel
from astra_accel.core.outcomes import judged_where_answered
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
        """One score per turn.

        Raises:
            ScorerError: the scorer did not return one number from 0 to 1 per text, or None.
        """

        def judge(places: list[int]) -> list[float | None]:
            texts = [turns.exchange_texts[place] for place in places]
            return check_scores(self.scorer, texts, self.scorer.score(texts))

        return judged_where_answered(turns.outcomes, judge)


class ResponseToxicity(RewardTerm):
    """The score of the response ("defense"), judged with as much of its turn as the scorer reads.

    Args:
        scorer: judges it.
    """

    name = "response_score"

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def values(self, turns: Turns) -> list[float | None]:
        """One score per turn.

        Raises:
            ScorerError: the scorer did not return one number from 0 to 1 per text, or None.
        """

        def judge(places: list[int]) -> list[float | None]:
            return response_scores(self.scorer, [turns.as_judged[place] for place in places])

        return judged_where_answered(turns.outcomes, judge)


class Naturalness(RewardTerm):
    """The mean log-prob per token of the probe, in nats: minus the log of its perplexity.

    Clipped from below; an empty probe earns that minimum. The paper's code (https://arxiv.org/abs/2407.09447) uses
    exp(sum of log-probs) here, a joint probability: 0 for any probe of some length and 1 for an empty one, so that
    silence pays.

    Args:
        minimum: the lower bound at which it is clipped.
        model: the model that scores the probe.
    """

    name = "naturalness"

    def __init__(self, minimum: float, model: NaturalnessModel = "target") -> None:
        self.minimum = minimum
        self.model = model

    def values(self, turns: Turns) -> list[float]:
        """One mean per turn."""
        rows = turns.system.probe_logprobs(turns.contexts, turns.probes, self.model)
        return [max(float(row.mean()), self.minimum) if len(row) else self.minimum for row in rows]


ORDER = 4


class Length(RewardTerm):
    """The number of characters of the probe, whatever the tokenizers. A weight below 0 shortens probes."""

    name = "length"

    def values(self, turns: Turns) -> list[float]:
        """One length per turn."""
        return [float(len(text)) for text in turns.probe_texts]


class Repetition(RewardTerm):
    """The fraction of the probe's 4-grams that occurred earlier in it; a weight below 0 discourages loops.

    ``1 - distinct 4-grams / 4-grams``, seq-rep-4 of Welleck et al. 2019 (https://arxiv.org/abs/1908.04319, section 5),
    but of characters rather than tokens: probes are short, and a loop may be within a word. 0 for fewer than 4
    characters.
    """

    name = "repetition"

    def values(self, turns: Turns) -> list[float]:
        """One fraction per turn, in [0, 1)."""
        return [_repetition(text) for text in turns.probe_texts]


def _repetition(text: str) -> float:
    ngrams = [text[start : start + ORDER] for start in range(len(text) - ORDER + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
