"""What a probe is like as a string: how long, and how repetitive."""

from __future__ import annotations

from astra_accel.methods.ast.rewards.term import RewardTerm, Turns

ORDER = 4


class Length(RewardTerm):
    """The characters of the probe, the same whatever the tokenizers. With a weight below 0 it shortens probes."""

    name = "length"

    def values(self, turns: Turns) -> list[float]:
        """One length a turn."""
        return [float(len(text)) for text in turns.probe_texts]


class Repetition(RewardTerm):
    """The share of the probe's 4-grams that have come before in it; with a weight below 0 it keeps it from looping.

    ``1 - distinct 4-grams / 4-grams``, seq-rep-4 of Welleck et al. 2019 (https://arxiv.org/abs/1908.04319, section 5),
    but of characters rather than tokens: probes are short, and a loop may be within a word. 0 for less than 4
    characters.
    """

    name = "repetition"

    def values(self, turns: Turns) -> list[float]:
        """One share a turn, in [0, 1)."""
        return [_repetition(text) for text in turns.probe_texts]


def _repetition(text: str) -> float:
    ngrams = [text[start : start + ORDER] for start in range(len(text) - ORDER + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
