"""Novelty in wording: self-BLEU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from astra_accel.methods.ast.rewards.novelty import Novelty

MAX_ORDER = 4


class SelfBLEUNovelty(Novelty):
    """1 minus the BLEU of the probe with all earlier probes in the reservoir as its references.

    Self-BLEU (Zhu et al. 2018, https://arxiv.org/abs/1802.01886) of a probe, a reward for red-teaming in Hong et al.
    2024 (https://arxiv.org/abs/2402.19464). They average over several maximum orders; here it is one BLEU:
    sacrebleu's sentence BLEU, with its tokenizer 13a, up to 4-grams or the probe's length, and exponential smoothing.
    The BLEU equals ``sacrebleu.sentence_bleu(probe, earlier).score / 100``, but the references are counted only once.

    Args:
        reservoir_size: the most earlier probes to compare with.
        seed: determines which earlier probes are kept.
        reservoir_half_life: experiences after which a probe's weight in that choice halves; None never reduces it.

    Raises:
        ImportError: sacrebleu is not installed.
        ValueError: ``reservoir_size`` is below 1, or ``reservoir_half_life`` is not above 0.
    """

    name = "self_bleu_novelty"

    def __init__(self, reservoir_size: int = 256, seed: int = 0, reservoir_half_life: float | None = None) -> None:
        super().__init__(reservoir_size, seed, reservoir_half_life)
        try:
            from sacrebleu.metrics.bleu import BLEU
            from sacrebleu.metrics.helpers import extract_all_word_ngrams
            from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
        except ImportError as error:
            raise ImportError("SelfBLEUNovelty needs sacrebleu: pip install 'astra-accel[novelty]'") from error
        self._score = BLEU.compute_bleu
        self._extract = extract_all_word_ngrams
        self._tokenize = Tokenizer13a()

    def compare_with(self, earlier: Sequence[str]) -> None:
        """Count the references' n-grams: for each n-gram, the maximum count in any one reference."""
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._lengths: set[int] = set()
        for text in earlier:
            ngrams, length = self._ngrams(text)
            for ngram, count in ngrams.items():
                self._counts[ngram] = max(self._counts[ngram], count)
            self._lengths.add(length)

    def novelty(self, probes: Sequence[str]) -> list[float]:
        """1 - BLEU of each probe."""
        return [1 - self._bleu(text) for text in probes]

    def _bleu(self, text: str) -> float:
        ngrams, length = self._ngrams(text)
        if not length:
            return 1.0  # the tokenizer finds no words, though the probe is not blank
        correct, total = [0] * MAX_ORDER, [0] * MAX_ORDER
        for ngram, count in ngrams.items():
            total[len(ngram) - 1] += count
            correct[len(ngram) - 1] += min(count, self._counts[ngram])
        closest = min(self._lengths, key=lambda other: (abs(other - length), other))
        bleu = self._score(correct, total, length, closest, smooth_method="exp", effective_order=True)
        return min(bleu.score / 100, 1.0)  # rounding may exceed 1

    def _ngrams(self, text: str) -> tuple[Counter[tuple[str, ...]], int]:
        return self._extract(self._tokenize(text.rstrip()), 1, MAX_ORDER)
