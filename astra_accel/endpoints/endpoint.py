"""Where a model answers, and what of that is secret."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from astra_accel.config.endpoints import TargetConfiguration, check_address, check_headers
from astra_accel.endpoints.answers import Api
from astra_accel.errors import Interrupted


class EndpointError(Interrupted):
    """An endpoint does not answer, or not in the way that was configured; the message says what it said."""


class OutageError(EndpointError):
    """An endpoint answers nothing at all, for longer than was to be waited; it may be back later."""

    exit_code = 75


CONCURRENCY = 16
"""The questions under way at once where a configuration does not say. Not measured: servers differ too much."""


@dataclass(frozen=True)
class Endpoint:
    """Where a model answers; see :class:`~astra_accel.config.TargetConfiguration` for most fields.

    Attributes:
        url: the base address, ending in ``/v1`` for most servers.
        api: what the server answers to: as for a target, or moderations, which rate a text by categories of harm.

    Raises:
        ValueError: an address without a scheme or host, no model, a number out of range, a limit below the number of
            processes that share it, a secret that is spelled out, or an environment variable that is not set.
    """

    url: str
    model: str
    api_key_env: str | None = None
    api: Api = "chat"
    headers: Mapping[str, str] = field(default_factory=dict)
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    omit: Sequence[str] = ()
    timeout: float = 60.0
    max_retries: int = 6
    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    outage_limit: float = 300.0

    def __post_init__(self) -> None:
        check_address(self.url)
        check_headers(dict(self.headers))
        if not self.model:
            raise ValueError("model is empty, expected the name that the endpoint knows it by")
        if not self.timeout > 0 or self.max_retries < 0 or self.concurrency < 1:
            raise ValueError(
                f"timeout is {self.timeout}, max_retries {self.max_retries}, max_concurrency {self.max_concurrency}; "
                f"expected more than 0, at least 0, and at least 1"
            )
        self._check_shared()
        for what, name in self._variables().items():
            if not os.environ.get(name):
                raise ValueError(f"{what} is {name!r}, but no such environment variable is set")

    @classmethod
    def from_configuration(cls, target: TargetConfiguration) -> Endpoint:
        """The endpoint of a target that has one."""
        shared = {one.name: getattr(target, one.name) for one in fields(cls) if one.name != "url"}
        return cls(url=str(target.endpoint), **shared)

    @property
    def key(self) -> str:
        """The key, or a word that servers without one ignore."""
        return "none" if self.api_key_env is None else os.environ[self.api_key_env]

    @property
    def sent_headers(self) -> dict[str, str]:
        """The headers, with the values of environment variables."""
        return {name: os.environ[value[1:]] if value.startswith("$") else value for name, value in self.headers.items()}

    @property
    def is_here(self) -> bool:
        """Whether it is on this machine."""
        host = urlsplit(self.url).hostname or ""
        return host in ("localhost", "::1") or host.startswith("127.")

    @property
    def concurrency(self) -> int:
        """The most questions under way at once, over all processes."""
        return max(CONCURRENCY, _num_processes()) if self.max_concurrency is None else self.max_concurrency

    def own_part(self, number: int) -> int:
        """The part of a number for the whole run that this process may use, at least 1."""
        return number // _num_processes()

    def without_secrets(self, text: str) -> str:
        """A text in which secrets, which some servers repeat, are stars."""
        for name in self._variables().values():
            text = text.replace(os.environ.get(name) or "\0", "***")
        return text

    def _check_shared(self) -> None:
        """Find a limit for all processes of which some would have nothing."""
        for name in ("max_concurrency", "requests_per_minute", "tokens_per_minute"):
            limit = getattr(self, name)
            if limit is not None and limit < _num_processes():
                raise ValueError(
                    f"{name} is {limit}, but {_num_processes()} processes ask {self} and share it; expected at least "
                    f"{_num_processes()}, or fewer processes"
                )

    def _variables(self) -> dict[str, str]:
        """The environment variables that hold secrets, by where they are named."""
        found = {} if self.api_key_env is None else {"api_key_env": self.api_key_env}
        named = {name: value[1:] for name, value in self.headers.items() if value.startswith("$")}
        return found | {f"headers.{name}": value for name, value in named.items()}

    def __str__(self) -> str:
        return f"{self.url}, model {self.model!r}"


def _num_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))
