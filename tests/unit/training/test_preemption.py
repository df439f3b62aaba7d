import os
import signal
import threading

import pytest

from astra_accel.errors import Preempted
from astra_accel.training import preemption
from astra_accel.training.preemption import SIGNALS, Preemption


@pytest.fixture
def earlier():
    """The signals that came to a handler which was there before."""
    came = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in SIGNALS}
    yield came
    for number, handler in before.items():
        signal.signal(number, handler)


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


class TestWatching:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_a_signal_is_noted_and_nothing_else_happens(self, earlier, number):
        watch = Preemption()

        with watch.watching():
            assert not watch.noted
            signal.raise_signal(number)
            assert watch.noted

        assert earlier == []

    def test_handlers_are_put_back_also_after_an_error(self, earlier):
        before = handlers()

        def fail():
            with Preemption().watching():
                assert not set(handlers()) & set(before)
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        assert handlers() == before
        signal.raise_signal(signal.SIGTERM)
        assert earlier == [signal.SIGTERM]

    @pytest.mark.parametrize("second", SIGNALS)
    def test_a_second_signal_means_what_it_meant_before(self, earlier, monkeypatch, second):
        monkeypatch.setattr(preemption, "REPEATED_WITHIN", -1.0)

        with Preemption().watching():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(second)

        assert earlier == [second]

    def test_one_that_a_launcher_passes_on_as_well_is_no_second_one(self, earlier):
        watch = Preemption()

        with watch.watching():
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

        assert watch.noted
        assert earlier == []

    def test_what_was_noted_is_forgotten_by_the_next_run(self, earlier):
        watch = Preemption()
        with watch.watching():
            signal.raise_signal(signal.SIGUSR1)

        with watch.watching():
            assert not watch.noted

    def test_another_thread_than_the_main_one_leaves_signals_alone(self):
        before, inside = handlers(), []

        def body():
            with Preemption().watching():
                inside.extend(handlers())

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()

        assert inside == before

    def test_a_process_that_is_forked_meanwhile_still_dies_of_a_signal(self):
        with Preemption().watching():
            child = os.fork()
            if child == 0:
                signal.raise_signal(signal.SIGTERM)
                os._exit(0)
            _, status = os.waitpid(child, 0)

        assert os.WIFSIGNALED(status)
        assert os.WTERMSIG(status) == signal.SIGTERM


class TestPreempted:
    def test_uncaught_it_exits_with_its_code(self, tmp_path):
        preempted = Preempted(tmp_path)

        assert isinstance(preempted, SystemExit)
        assert preempted.code == 75
        assert preempted.checkpoint == tmp_path
