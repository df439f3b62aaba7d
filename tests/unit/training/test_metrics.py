"""The figures of an update and of an experience."""

import math
import warnings

import pytest
import torch
from accelerate import Accelerator

from astra_accel import Graph, Node
from astra_accel.experience.loader import Experience
from astra_accel.training import metrics
from astra_accel.training.metrics import Stopwatch, UpdateTally, experience_metrics, speed_figures
from tests.helpers.plain import PlainGraph, PlainNode


@pytest.fixture
def several(monkeypatch):
    """Tallies as if each were of another process: the first one's ``reduce`` sees all of them."""

    def reduce(*tallies):
        parts = [(tally._sums, tally._weights) for tally in tallies]
        monkeypatch.setattr(metrics, "gather_results", lambda accelerator, work: [work(), *parts[1:]])
        return tallies[0].reduce(None, check=lambda: None)

    return reduce


def tally(*steps):
    result = UpdateTally()
    for loss, logs, weight in steps:
        result.add(torch.tensor(loss), logs, weight)
    return result


class TestUpdateTally:
    def test_means_are_weighted_by_loss_weights(self, several):
        one = tally((2.0, {"a": 10.0}, 0.5), (4.0, {"a": 20.0}, 0.25), (8.0, {"a": 0.0}, 0.25))

        assert several(one) == {"loss": 2 * 0.5 + 4 * 0.25 + 8 * 0.25, "a": 10 * 0.5 + 20 * 0.25}

    def test_means_go_over_all_processes(self, several):
        assert several(tally((1.0, {"a": 4}, 0.25)), tally((3.0, {"a": 8}, 0.75))) == {"loss": 2.5, "a": 7}

    def test_a_placeholder_counts_for_nothing_whatever_it_gave(self, several):
        placeholder = tally((math.nan, {"a": math.inf}, 0))

        assert several(placeholder, tally((3.0, {"a": 8.0}, 1.0))) == {"loss": 3, "a": 8}

    def test_what_one_process_alone_tells_is_its_mean(self, several):
        means = several(tally((1.0, {"a": 5.0}, 0.25)), tally((3.0, {"b": 7.0}, 0.75)))

        assert means == {"loss": 2.5, "a": 5, "b": 7}

    def test_names_come_in_the_same_order_on_every_process(self, several):
        assert list(several(tally((1.0, {"a": 1, "b": 2}, 0)), tally((1.0, {"c": 3, "b": 1}, 1)))) == ["loss", *"abc"]

    def test_a_name_without_any_weight_is_nan(self, several):
        assert math.isnan(several(tally((1.0, {"a": 5.0}, 0)), tally((1.0, {}, 1)))["a"])

    def test_a_real_nan_shows(self, several):
        assert math.isnan(several(tally((math.nan, {}, 0.5)), tally((3.0, {}, 0.5)))["loss"])

    def test_numbers_and_tensors_with_a_gradient_count_alike(self, several):
        result = UpdateTally()
        weight = torch.ones((), requires_grad=True)

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result.add(weight * 2, {"tensor": weight * 3, "float": 4.0, "int": 5, "bool": torch.tensor(True)}, 1.0)

        assert several(result) == {"loss": 2, "tensor": 3, "float": 4, "int": 5, "bool": 1}

    def test_what_the_check_raises_is_raised(self):
        def check():
            raise KeyError("held")

        with pytest.raises(KeyError, match="held"):
            tally((1.0, {}, 1)).reduce(Accelerator(cpu=True), check)


class TestSpeed:
    def test_it_is_of_rollout_and_updates_over_all_processes(self):
        seconds = {"rollout": 3.0, "update": 1.0, "evaluate": 96.0}

        assert speed_figures(8, seconds, [0.0, 1.0]) == {"speed/tokens_per_second": 2, "speed/wait_share": 0.125}

    def test_a_step_without_an_update_has_the_rollout_alone(self):
        assert speed_figures(8, {"rollout": 2.0}, [1.0]) == {"speed/tokens_per_second": 4, "speed/wait_share": 0.5}


class TestStopwatch:
    def test_seconds_add_up_by_phase_until_taken(self, monkeypatch):
        times = iter([10.0, 11.5, 20.0, 20.25, 30.0, 33.0])
        monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(times))
        watch = Stopwatch()

        for name in ("rollout", "update", "rollout"):
            with watch.phase(name):
                pass

        assert watch.take() == {"seconds/rollout": 4.5, "seconds/update": 0.25}
        assert watch.take() == {}

    def test_a_phase_that_fails_counts(self):
        watch = Stopwatch()

        with pytest.raises(KeyError), watch.phase("rollout"):
            raise KeyError

        assert watch.take().keys() == {"seconds/rollout"}


class TestExperienceMetrics:
    def test_by_hand(self):
        inner = Node(
            "p", "probe", "response", 3.0, info={"combined_score": 0.5, "probe_tokens": 5, "response_tokens": 7}
        )
        outer = Node("p", "", "response", 1.0, [inner], {"combined_score": 0.0, "naturalness": -2.0, "probe_tokens": 1})
        graphs = [Graph("p", [outer]), Graph("q", [Node("q", "probe", "", 2.0, info={"response_tokens": None})])]

        assert experience_metrics(Experience(0, graphs, ["a", "b"], [0, 0])) == {
            "examples": 2,
            "reward/mean": 2.0,
            "reward/std": pytest.approx(math.sqrt(2 / 3)),
            "reward/max": 3.0,
            "reward/combined_score": 0.25,
            "reward/naturalness": -2.0,
            "tokens": 13,
            "missing_rewards": 0,
            "empty_probes": 1,
            "empty_responses": 1,
        }

    def test_a_missing_reward_is_counted_and_enters_no_mean(self):
        nodes = [
            Node("p", "a", "r", None, info={"reward": None, "combined_score": None, "novelty": 0.5}),
            Node("p", "b", "r", 1.0, info={"reward": 1.0, "combined_score": 0.25, "novelty": 1.0}),
            Node("p", "c", "r", 2.0, info={"reward": 2.0, "combined_score": 0.75, "novelty": 0.0}),
        ]

        figures = experience_metrics(Experience(0, [Graph("p", nodes)], [], []))

        expected = {"reward/mean": 1.5, "reward/std": 0.5, "reward/combined_score": 0.5, "reward/novelty": 0.5}
        assert {name: figures[name] for name in expected} == expected
        assert figures["missing_rewards"] == 1

    def test_nodes_of_other_packages_tell_their_reward(self):
        graph = PlainGraph(0, [PlainNode(0, 1, 2, 4.0)])

        figures = experience_metrics(Experience(0, [graph], [], []))

        assert (figures["reward/mean"], figures["examples"], figures["tokens"]) == (4, 0, 0)

    def test_an_experience_without_nodes_has_no_reward(self):
        figures = experience_metrics(Experience(0, [Graph("p", [])], [], []))

        assert figures == {"examples": 0, "tokens": 0, "missing_rewards": 0, "empty_probes": 0, "empty_responses": 0}
