"""Models that answer behind an endpoint, and how much they may be asked: the sections `target` and `budget`."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from astra_accel.config.models import ModelConfiguration
from astra_accel.config.section import Count, Factor, Section

SECRET_HEADERS = ("authorization", "api-key", "x-api-key", "cookie", "proxy-authorization")


class TargetConfiguration(ModelConfiguration):
    """The model that is tested: one that this run loads, or one that answers behind an OpenAI-compatible endpoint.

    With an endpoint, the fields of a model that is loaded (`path` and those after it) stay as they are.
    """

    endpoint: str | None = None
    """Address of an OpenAI-compatible API, such as `http://127.0.0.1:8000/v1`. None: the model of `path` is loaded."""
    model: str | None = None
    """The model's name at the endpoint."""
    api: Literal["chat", "completions"] = "chat"
    """chat: the conversation is sent as messages. completions: as one running text, with `rollout.format` raw."""
    api_key_env: str | None = None
    """The environment variable with the key. The key itself is never written, logged or shown."""
    headers: dict[str, str] = {}
    """Further HTTP headers. `$NAME` stands for an environment variable, and is what is written and shown."""
    extra_body: dict[str, Any] = {}
    """Further fields of each request, such as `{top_k: 0}`."""
    omit: list[Literal["temperature", "top_p", "seed", "max_tokens"]] = []
    """Fields that the service does not take, and that are left out of requests."""
    timeout: float = Field(60.0, gt=0, allow_inf_nan=False)
    """Seconds that one attempt at a question may take."""
    max_retries: int = Field(6, ge=0)
    """Further attempts after one that failed for a reason that may pass."""
    max_concurrency: Count | None = None
    """Questions under way at once, over all processes. None: 16, or one for each process if there are more."""
    requests_per_minute: Count | None = None
    """Most requests a minute, over all processes. None: no limit."""
    tokens_per_minute: Count | None = None
    """Most tokens of questions and answers a minute, over all processes, as the service counts them."""
    outage_limit: float = Field(300.0, ge=0, allow_inf_nan=False)
    """Seconds to wait for an endpoint that answers nothing, before the run ends with a checkpoint and exit code 75.
    With several processes keep it below `training.timeout`."""

    @model_validator(mode="after")
    def _check_endpoint(self) -> TargetConfiguration:
        own = TargetConfiguration.model_fields.keys() - ModelConfiguration.model_fields.keys() - {"endpoint"}
        if self.endpoint is None:
            given = sorted(name for name in own if getattr(self, name) != self._default(name))
            if given:
                raise ValueError(f"{given[0]} is set, but endpoint is not; expected the endpoint's address")
            return self
        for name in ModelConfiguration.model_fields:
            if getattr(self, name) != self._default(name):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}, and endpoint is {self.endpoint!r}; expected one of the two: "
                    f"a model that is loaded here, or one that answers there"
                )
        check_address(self.endpoint)
        if not self.model:
            raise ValueError(f"endpoint is {self.endpoint!r}, but model is empty; expected the model's name there")
        check_headers(self.headers)
        return self

    @classmethod
    def _default(cls, name: str) -> Any:
        return cls.model_fields[name].get_default()


class PriceConfiguration(Section):
    """What a model costs, in any currency."""

    input: float = Field(ge=0, allow_inf_nan=False)
    """The price of a million tokens of questions."""
    output: float = Field(ge=0, allow_inf_nan=False)
    """The price of a million tokens of answers."""


class BudgetConfiguration(Section):
    """How much endpoints may be asked in a run: target and judge together, over all processes and all launches.

    An evaluation, and judging it anew, have a journal of their own, and this much again. Each process gets an equal
    part. When one has used up its own, the run ends in order, with a checkpoint and its tester; a larger budget lets it
    go on.
    """

    requests: Count | None = None
    """Most requests, each attempt counted. None: no limit."""
    tokens: Count | None = None
    """Most tokens of questions and answers, as services count them; passed by at most the questions under way."""
    cost: Factor | None = None
    """Most money; passed by at most the questions under way."""
    prices: dict[str, PriceConfiguration] = {}
    """What each model costs, by its name at its endpoint; needed with `cost`."""

    @model_validator(mode="after")
    def _check_prices(self) -> BudgetConfiguration:
        if self.cost is not None and not self.prices:
            raise ValueError("cost is set, but prices is empty; expected the price of each model")
        return self


def check_address(address: str) -> None:
    """Raise ``ValueError`` for an address that no request can go to, or that holds a password."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"endpoint is {address!r}, expected an address such as http://127.0.0.1:8000/v1")
    if parts.password is not None:
        raise ValueError("endpoint holds a password, which would be written to files; expected api_key_env or headers")


def check_headers(headers: dict[str, str]) -> None:
    """Raise ``ValueError`` for a header that holds a secret itself, instead of the name of a variable."""
    for name, value in headers.items():
        if name.lower() in SECRET_HEADERS and not value.startswith("$"):
            raise ValueError(
                f"headers has {name} with a value of its own, which would be written to files; expected $NAME, an "
                f"environment variable that holds it, or api_key_env"
            )
