"""How long a client waits, and how many requests a minute that comes to."""

from __future__ import annotations

import threading
import time

import pytest

from astra_accel.endpoints import pace
from astra_accel.endpoints.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still unless somebody waits; its last entry is the time."""
    times = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    return times


class Waits(threading.Event):
    """Nobody gives up, and waiting moves the clock."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        self.clock.append(self.clock[-1] + (timeout or 0.0))
        return self.is_set()


def turns(paced: Pace, clock: list[float], number: int, tokens: int = 0) -> list[float]:
    """When requests are sent, one after another, in seconds from now."""
    begun, sent = clock[-1], []
    for _ in range(number):
        assert not paced.wait(Waits(clock))
        sent.append(clock[-1] - begun)
        paced.spent(tokens)
    return sent


def test_without_limits_nobody_waits(clock: list[float]) -> None:
    assert turns(Pace(), clock, 3, tokens=1000) == [0.0, 0.0, 0.0]


def test_requests_are_spaced(clock: list[float]) -> None:
    assert turns(Pace(requests_per_minute=30), clock, 4) == pytest.approx([0.0, 2.0, 4.0, 6.0])


def test_tokens_are_paid_for_after_they_came(clock: list[float]) -> None:
    assert turns(Pace(tokens_per_minute=600), clock, 3, tokens=50) == pytest.approx([0.0, 5.0, 10.0])


def test_a_busy_server_holds_everybody(clock: list[float]) -> None:
    paced = Pace()
    paced.hold(7.0)
    assert turns(paced, clock, 2) == pytest.approx([7.0, 7.0])


def test_who_waits_can_be_told_that_it_is_over() -> None:
    paced, over = Pace(requests_per_minute=1), threading.Event()
    assert not paced.wait(over)
    over.set()
    assert paced.wait(over)


def test_pauses_double_with_jitter_and_have_an_end() -> None:
    assert pace.pause(0, "7") == 7.0
    assert pace.pause(0, "100000") == pace.LONGEST_WAIT
    assert 2.0 <= pace.pause(3, None) <= 4.0
    assert 2.0 <= pace.pause(3, "Wed, 21 Oct 2026 07:28:00 GMT") <= 4.0
    assert pace.pause(40, None) <= pace.LONGEST_WAIT
    assert len({pace.pause(3, None) for _ in range(5)}) > 1
