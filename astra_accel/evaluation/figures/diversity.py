"""How different texts are from one another.

These have no bootstrap interval: a resample repeats texts, and repetition is what they measure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

Ngram = tuple[str, ...]

MAX_ORDER = 4
"""The length of BLEU's longest n-grams."""


def tokenize(texts: Sequence[str]) -> list[list[str]]:
    """The words and punctuation of each text, split by sacrebleu's "13a", with case kept.

    Raises:
        ImportError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    except ImportError as error:
        raise ImportError("the diversity of texts needs sacrebleu: pip install 'astra-accel[eval]'") from error
    tokenizer = Tokenizer13a()
    return [tokenizer(text.rstrip()).split() for text in texts]


def distinct_n(tokens: Sequence[Sequence[str]], n: int) -> float | None:
    """Different n-grams over all n-grams (Li et al. 2016, https://arxiv.org/abs/1510.03055); None if there are none."""
    total: Counter[Ngram] = Counter()
    for of_text in tokens:
        total.update(_ngrams(of_text, n))
    return len(total) / total.total() if total else None


def self_bleu(tokens: Sequence[Sequence[str]]) -> float | None:
    """The mean BLEU-4 of each text with all others as references, 0 to 1 (Zhu et al. 2018, arXiv 1802.01886).

    Each is sacrebleu's sentence BLEU (exponential smoothing; orders that a text is too short for don't count). An
    n-gram is clipped by its largest count in another text, which is the largest of all, or, in the text that has the
    largest, the second largest: so n-grams are counted once, not once per pair. None if there are fewer than two texts.
    """
    from sacrebleu.metrics import BLEU

    if len(tokens) < 2:
        return None
    largest = _two_largest(tokens)
    length_counts = Counter(map(len, tokens))
    scores = []
    for of_text in tokens:
        counts = [_ngrams(of_text, order) for order in range(1, MAX_ORDER + 1)]
        correct = [sum(min(own, _beside(largest[ngram], own)) for ngram, own in part.items()) for part in counts]
        total = [part.total() for part in counts]
        reference = _closest_other(len(of_text), length_counts)
        score = BLEU.compute_bleu(correct, total, len(of_text), reference, smooth_method="exp", effective_order=True)
        scores.append(score.score / 100)
    return float(np.mean(scores))


def leaders(embedding_ND: np.ndarray, similarity: float) -> list[int]:
    """One text of each kind: the first, and each with a cosine below ``similarity`` to all leaders before it.

    Args:
        embedding_ND: the embedding of each text, the most important first, since leaders represent similar texts.
        similarity: two texts with at least this cosine are of the same kind.
    """
    unit_ND = unit_rows(embedding_ND)
    chosen: list[int] = []
    for index, row_D in enumerate(unit_ND):
        if not chosen or float((unit_ND[chosen] @ row_D).max()) < similarity:
            chosen.append(index)
    return chosen


def unit_rows(embedding_ND: np.ndarray) -> np.ndarray:
    """The embeddings scaled to length 1; a zero vector stays zero, and is similar to nothing."""
    lengths_N1 = np.linalg.norm(embedding_ND, axis=1, keepdims=True)
    return embedding_ND / np.where(lengths_N1 == 0, 1.0, lengths_N1)


def _two_largest(tokens: Sequence[Sequence[str]]) -> dict[Ngram, tuple[int, int]]:
    """The two largest counts of each n-gram in a text."""
    largest: dict[Ngram, tuple[int, int]] = {}
    for of_text in tokens:
        for order in range(1, MAX_ORDER + 1):
            for ngram, count in _ngrams(of_text, order).items():
                first, second = largest.get(ngram, (0, 0))
                largest[ngram] = (count, first) if count > first else (first, max(second, count))
    return largest


def _beside(largest: tuple[int, int], own: int) -> int:
    """The largest count in the texts other than one with count ``own``."""
    first, second = largest
    return second if own == first else first


def _closest_other(length: int, length_counts: Counter[int]) -> int:
    """The closest length of another text; of two equally close, the shorter."""
    others = (other for other, count in length_counts.items() if other != length or count > 1)
    return min(others, key=lambda other: (abs(other - length), other))


def _ngrams(tokens: Sequence[str], n: int) -> Counter[Ngram]:
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))
