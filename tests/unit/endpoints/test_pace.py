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
    paced = Pace(requests_per_minute=30)
    paced.hold(7.0)
    first, *later = turns(paced, clock, 3)
    assert 7.0 <= first <= 7.7
    assert later == pytest.approx([9.0, 11.0])


def test_those_who_were_held_do_not_come_back_all_at_once(clock: list[float]) -> None:
    paced, came = Pace(), []
    paced.hold(7.0)
    for _ in range(50):
        waits = Waits(list(clock))  # each has a clock of its own, as they wait at the same time
        paced.wait(waits)
        came.append(waits.clock[-1] - clock[-1])
    assert 7.0 <= min(came) < max(came) <= 7.7
    assert len(set(came)) == 50


def test_who_waits_can_be_told_that_it_is_over() -> None:
    paced, over = Pace(requests_per_minute=1), threading.Event()
    assert not paced.wait(over)
    over.set()
    assert paced.wait(over)


def test_pauses_double_with_jitter_and_have_an_end() -> None:
    assert 2.0 <= pace.pause(3, None) <= 4.0
    assert pace.pause(40, None) <= pace.LONGEST_WAIT
    assert len({pace.pause(3, None) for _ in range(5)}) > 1


@pytest.mark.parametrize(
    ("asked", "shortest", "longest"),
    [
        ("0", 0.0, 0.0),
        ("-3", 0.0, 0.0),
        ("7", 7.0, 7.7),
        ("60", 60.0, 65.0),
        ("100000", 120.0, 125.0),
        # The clock says Wed, 21 Oct 2026 07:28:00 GMT.
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30.0, 33.0),
        ("Wed, 21 Oct 2026 07:28:30 -0000", 30.0, 33.0),
        ("Wed, 21 Oct 2026 09:28:30 +0200", 30.0, 33.0),
        ("Wednesday, 21-Oct-26 07:28:30 GMT", 30.0, 33.0),
        ("Wed, 21 Oct 2026 07:27:00 GMT", 0.0, 0.0),
        ("Thu, 22 Oct 2026 07:28:00 GMT", 120.0, 125.0),
    ],
)
def test_a_server_says_how_long_to_wait_in_seconds_or_by_a_date(
    asked: str, shortest: float, longest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 20,747 days after 1 January 1970, at 7:28.
    monkeypatch.setattr(time, "time", lambda: 20_747 * 86_400.0 + 7 * 3600 + 28 * 60)
    pauses = [pace.pause(3, asked) for _ in range(50)]
    assert shortest <= min(pauses) <= max(pauses) <= longest
    assert len(set(pauses)) == (1 if longest == 0 else 50)


@pytest.mark.parametrize("asked", ["", "soon", "nan", "inf", "Wed, 99 Oct 2026 07:28:00 GMT", "Wed, 21 Oct"])
def test_what_can_not_be_read_counts_as_nothing(asked: str) -> None:
    assert 2.0 <= pace.pause(3, asked) <= 4.0
