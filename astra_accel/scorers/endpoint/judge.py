"""An LLM as judge, behind an endpoint, by a rubric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from astra_accel.core.prompt import Goal
from astra_accel.endpoints.answers import Answer, Messages, Question
from astra_accel.endpoints.client import EndpointClient
from astra_accel.endpoints.endpoint import Endpoint
from astra_accel.endpoints.journal import Journal
from astra_accel.scorers.rubric.judge import RubricJudge


class JudgeScorer(RubricJudge):
    """Scores texts and exchanges by a chat model behind an OpenAI-compatible endpoint.

    The rubric says what to judge. ``toxicity`` is a rating from 0 to 10; ``harmful`` and ``refusal`` are yes or no;
    ``strongreject`` has the scales of https://arxiv.org/abs/2402.10260; ``harmbench`` asks whether a response shows the
    behavior that is its conversation's goal (https://arxiv.org/abs/2402.04249). A YAML file has an ``instruction``, a
    ``scale`` and, if you like, the templates ``text`` and ``exchange``. A rubric that needs the goal judges no text
    alone, so the reward's ``combined_weight`` must be 0.

    What is judged is fenced with a word that depends on the text and can't be guessed from it, and the verdict has to
    repeat that word. So a verdict that was planted in a response is not taken for the judge's. A response may still
    persuade the judge: compare it with other scorers.

    Questions have temperature 0. An answer without a readable verdict is asked for once more; a judge that then has
    none, refuses, is filtered or does not answer leaves the score missing, which is neither safe nor unsafe. If the
    endpoint answers nothing, the run waits for it, and ends after ``outage_limit``.

    Each turn is judged twice, once as an exchange and once as one text, for the reward's two scores; by a rubric that
    needs the goal once.

    Args:
        endpoint: The address, such as http://127.0.0.1:8000/v1.
        model: The model's name there.
        rubric: ``toxicity``, ``harmful``, ``refusal``, ``strongreject``, ``harmbench``, or a YAML file.
        api_key_env: The environment variable that holds the key, if one is needed.
        max_tokens: The longest answer.
        batch_size: The most distinct texts that are asked about in one go.
        headers: Further HTTP headers; ``$NAME`` stands for an environment variable.
        extra_body: Further fields of each request.
        omit: Fields that the service does not take: some of temperature, seed, max_tokens.
        timeout: Seconds that one attempt at a question may take.
        max_retries: Further attempts after one that failed for a reason that may pass.
        max_concurrency: Questions under way at once, over all processes. None: as for a target.
        requests_per_minute: Most requests a minute, over all processes.
        tokens_per_minute: Most tokens of questions and answers a minute, over all processes.
        outage_limit: Seconds to wait for an endpoint that answers nothing.

    Raises:
        ImportError: The package openai is not installed.
        ValueError: The address, the rubric, a number or the key's variable is wrong; the message names it.
        EndpointError: The endpoint does not answer a first short question.
    """

    def __init__(
        self,
        endpoint: str,
        model: str,
        rubric: str = "harmful",
        *,
        api_key_env: str | None = None,
        max_tokens: int = 512,
        batch_size: int = 1024,
        headers: Mapping[str, str] | None = None,
        extra_body: Mapping[str, Any] | None = None,
        omit: Sequence[str] = (),
        timeout: float = 60.0,
        max_retries: int = 6,
        max_concurrency: int | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        outage_limit: float = 300.0,
    ) -> None:
        super().__init__(rubric, batch_size)
        self.max_tokens = max_tokens
        where = Endpoint(
            endpoint,
            model,
            api_key_env,
            headers=dict(headers or {}),
            extra_body=dict(extra_body or {}),
            omit=omit,
            timeout=timeout,
            max_retries=max_retries,
            max_concurrency=max_concurrency,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            outage_limit=outage_limit,
        )
        self._client = EndpointClient(where, "judge")
        self._client.check()

    def keep_journal(self, journal: Journal) -> None:
        """Ask nothing that the journal has an answer to, and write down what is asked."""
        self._client.keep_journal(journal)

    def ask(self, questions: Sequence[Messages], goals: Sequence[Goal | None]) -> list[Answer]:
        """The answers of the endpoint's model, at temperature 0. The journal has the goals."""
        sampling = {"max_tokens": self.max_tokens, "temperature": 0.0, "seed": 0}
        asked = zip(questions, goals, strict=True)
        return self._client.ask([Question(messages, sampling, goal=goal) for messages, goal in asked])
