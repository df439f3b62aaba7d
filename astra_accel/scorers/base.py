"""What every shipped scorer shares: equal texts are scored once, and texts are scored in batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import TypeVar

from astra_accel.core.scorer import Categories, Scorer, ScorerError, check_scores
from astra_accel.errors import Interrupted

Value = TypeVar("Value")
# An item to score: ``(text,)``, or ``(probe, response)``.
Turns = TypeVar("Turns", bound=tuple[str, ...])


class BatchedScorer(Scorer):
    """Scores distinct texts in batches; a subclass implements :meth:`score_batch`.

    A text that occurs several times in a call is scored once. Distinct texts are batched longest first, so
    that the texts of a batch are of similar length (little padding) and a batch that does not fit in memory
    fails at once.

    Args:
        batch_size: The most texts that :meth:`score_batch` gets.

    Raises:
        ValueError: ``batch_size`` is below 1.
    """

    def __init__(self, batch_size: int) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        self.batch_size = batch_size

    @abstractmethod
    def score_batch(self, texts: Sequence[str]) -> Sequence[float | None]:
        """Return one score per text, in order, for 1 to ``batch_size`` distinct texts; missing ones are None."""

    def score(self, texts: Sequence[str]) -> list[float | None]:
        """Return one score per text, in order.

        Raises:
            TypeError: A text is not a string; the message names its position.
            ScorerError: :meth:`score_batch` raised, or did not return one number from 0 to 1 (or None) per text.
        """
        _check_texts("texts", texts)
        return self._score_distinct(
            [(text,) for text in texts], lambda batch: self.score_batch([text for (text,) in batch])
        )

    def score_exchanges(self, probes: Sequence[str], responses: Sequence[str]) -> Sequence[float | None]:
        """Return one score per response, judged without its probe. Raises the errors of :meth:`score`."""
        _check_texts("probes", probes)
        _check_texts("responses", responses)
        return super().score_exchanges(probes, responses)

    def _score_distinct(
        self, items: Sequence[Turns], score_batch: Callable[[list[Turns]], Sequence[float | None]]
    ) -> list[float | None]:
        return self._in_batches(items, lambda batch: check_scores(self, _judged(batch), score_batch(batch)))

    def _categories_of_distinct(
        self, items: Sequence[Turns], categorize_batch: Callable[[list[Turns]], Categories]
    ) -> dict[str, list[float | None]]:
        """Like :meth:`_score_distinct`, with the scores of a batch by category."""

        def by_item(batch: list[Turns]) -> list[dict[str, float | None]]:
            found = {
                name: check_scores(self, _judged(batch), scores) for name, scores in categorize_batch(batch).items()
            }
            return [{name: scores[row] for name, scores in found.items()} for row in range(len(batch))]

        rows = self._in_batches(items, by_item)
        return {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}

    def _in_batches(self, items: Sequence[Turns], judge: Callable[[list[Turns]], Sequence[Value]]) -> list[Value]:
        """Return the result of ``judge`` for each item; it gets distinct items, longest first."""
        distinct = sorted(dict.fromkeys(items), key=lambda item: sum(map(len, item)), reverse=True)
        found: dict[Turns, Value] = {}
        for start in range(0, len(distinct), self.batch_size):
            batch = distinct[start : start + self.batch_size]
            try:
                values = judge(batch)
            except (ScorerError, Interrupted):
                raise
            except Exception as error:
                name = type(self).__name__
                raise ScorerError(
                    f"{name} failed on {len(batch)} texts, the first {_judged(batch)[0][:80]!r}: {error}"
                ) from error
            found.update(zip(batch, values, strict=True))
        return [found[item] for item in items]


class BatchedExchangeScorer(BatchedScorer):
    """A :class:`BatchedScorer` that judges a response together with its probe.

    A pair that occurs several times in a call is scored once; a subclass also implements
    :meth:`score_exchange_batch`.
    """

    @abstractmethod
    def score_exchange_batch(self, pairs: Sequence[tuple[str, str]]) -> Sequence[float | None]:
        """Return one score per (probe, response) pair, in order, for 1 to ``batch_size`` distinct pairs."""

    def score_exchanges(self, probes: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """Return one score per response, given the probe that it answers.

        Raises:
            ValueError: The numbers of probes and responses differ.
            TypeError: A probe or a response is not a string; the message names its position.
            ScorerError: :meth:`score_exchange_batch` raised, or did not return one number from 0 to 1 (or None) per
                pair.
        """
        _check_texts("probes", probes)
        _check_texts("responses", responses)
        if len(probes) != len(responses):
            raise ValueError(f"{len(probes)} probes and {len(responses)} responses: expected as many of each")
        return self._score_distinct(list(zip(probes, responses, strict=True)), self.score_exchange_batch)


def _judged(batch: Sequence[tuple[str, ...]]) -> list[str]:
    """The texts to judge; for an exchange, the response."""
    return [item[-1] for item in batch]


def _check_texts(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise TypeError(f"{name} is one string, expected a sequence of strings")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{position}] is a {type(text).__name__}, expected a string")
