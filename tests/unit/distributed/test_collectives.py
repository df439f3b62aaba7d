"""The part of ``distributed/collectives.py`` that one process can show."""

import pytest

from astra_accel.config import TrainingConfiguration
from astra_accel.distributed import collectives
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.distributed.collectives import RankError, gather_results, on_main
from astra_accel.errors import Interrupted
from tests.helpers.launches import Pretended


class TestGatherResults:
    def others(self, monkeypatch, *outcomes):
        """Lets the exchange bring what the other processes would have sent."""
        sent = []

        def gather(mine):
            sent.extend(mine)
            return [*mine, *outcomes]

        monkeypatch.setattr(collectives, "gather_object", gather)
        return sent

    def test_everybody_gets_everybodys_result(self, monkeypatch):
        self.others(monkeypatch, (2, None), (3, None))

        assert gather_results(Pretended(num_processes=3), lambda: 1) == [1, 2, 3]

    def test_alone_it_is_ones_own(self):
        assert gather_results(make_accelerator(TrainingConfiguration()), lambda: {"a": 1}) == [{"a": 1}]

    def test_alone_an_error_is_raised_as_it_was(self):
        with pytest.raises(ZeroDivisionError):
            gather_results(make_accelerator(TrainingConfiguration()), lambda: 1 / 0)

    def test_an_error_is_raised_as_it_was_once_the_others_know(self, monkeypatch):
        sent = self.others(monkeypatch)
        error = OSError("disk full")

        def fail():
            raise error

        with pytest.raises(OSError, match="disk full") as caught:
            gather_results(Pretended(num_processes=3), fail)

        assert caught.value is error
        assert sent == [(None, "OSError: disk full")]

    def test_the_error_of_another_process_is_named_with_its_number(self, monkeypatch):
        self.others(monkeypatch, (2, None), (None, "OSError: disk full"))

        with pytest.raises(RankError, match="process 2 failed with OSError: disk full"):
            gather_results(Pretended(num_processes=3), lambda: 1)

    def test_an_interruption_of_one_process_is_that_of_all(self, monkeypatch):
        interruption = Interrupted("the endpoint is gone")
        self.others(monkeypatch, (2, None), (None, interruption))

        with pytest.raises(Interrupted, match="the endpoint is gone"):
            gather_results(Pretended(num_processes=3), lambda: 1)

    def test_an_error_of_one_process_matters_more_than_an_interruption_of_another(self, monkeypatch):
        self.others(monkeypatch, (None, "OSError: disk full"), (None, None))

        def interrupted():
            raise Interrupted("the endpoint is gone")

        with pytest.raises(RankError, match="process 1 failed with OSError: disk full"):
            gather_results(Pretended(num_processes=3), interrupted)

    def test_only_the_main_process_does_what_is_its_business(self, monkeypatch):
        self.others(monkeypatch, (None, None), (None, None))
        done = []

        on_main(Pretended(num_processes=3, is_main_process=False), lambda: done.append("other"))
        on_main(Pretended(num_processes=3, is_main_process=True), lambda: done.append("main"))

        assert done == ["main"]

    def test_what_the_main_process_found_is_the_answer_of_all(self, monkeypatch):
        monkeypatch.setattr(collectives, "gather_object", lambda mine: [("found", None), *mine])

        assert on_main(Pretended(num_processes=3, is_main_process=False), lambda: "own") == "found"

    def test_what_fails_on_the_main_process_fails_on_the_others(self, monkeypatch):
        monkeypatch.setattr(collectives, "gather_object", lambda mine: [(None, "KeyError: 'x'"), *mine])

        with pytest.raises(RankError, match="process 0 failed with KeyError: 'x'"):
            on_main(Pretended(num_processes=3, is_main_process=False), lambda: None)
