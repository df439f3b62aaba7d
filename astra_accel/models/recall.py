"""Log-probs that came along with a rollout, to be looked up instead of computed again."""

from __future__ import annotations

from collections.abc import Sequence

Ids = tuple[int, ...]


class Recall:
    """The log-probs that one frozen set of weights gave in the rollouts since :meth:`clear`."""

    def __init__(self) -> None:
        self._said: dict[Ids, dict[Ids, tuple[float, ...]]] = {}

    def keep(self, context: Ids, continuation: Ids, logprobs: tuple[float, ...]) -> None:
        """Take down the log-prob of every token of a continuation."""
        self._said.setdefault(context, {})[continuation] = logprobs

    def find(self, contexts: Sequence[Ids], continuations: Sequence[Ids]) -> list[tuple[float, ...] | None]:
        """The log-probs of each continuation, or of a longer one that begins like it; None where there are none."""
        return [self._find(context, ids) for context, ids in zip(contexts, continuations, strict=True)]

    def clear(self) -> None:
        """Forget everything."""
        self._said.clear()

    def _find(self, context: Ids, continuation: Ids) -> tuple[float, ...] | None:
        said = self._said.get(context, {})
        if continuation in said:
            return said[continuation]
        for ids, logprobs in said.items():
            if ids[: len(continuation)] == continuation:
                return logprobs[: len(continuation)]
        return None
