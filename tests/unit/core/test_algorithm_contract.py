"""What an algorithm is that writes the three required methods alone."""

from __future__ import annotations

import pytest
import torch

from astra_accel.core.algorithm import Algorithm
from astra_accel.core.system import System, ValueFunctionSystem


class LeastAlgorithm(Algorithm):
    def flatten(self, graph):
        return []

    @staticmethod
    def collate_fn(batch):
        return batch

    def step(self, batch):
        return torch.zeros(()), {}


def test_the_optional_methods_change_nothing():
    algorithm = LeastAlgorithm(system="the system")
    steps = [object(), object()]
    assert algorithm.system == "the system"
    assert [algorithm.weight(step) for step in steps] == [1.0, 1.0]
    assert algorithm.num_tokens(steps) is None
    assert algorithm.choose(steps) == [True, True]
    assert algorithm.precompute(steps) == steps
    assert all(algorithm.keep(step) for step in steps)
    assert algorithm.prepare(steps) == steps
    assert algorithm.check_sampler(sampler=object()) is None
    assert algorithm.stop_early({"loss": 1.0}) is False
    assert algorithm.needs_values is False
    assert algorithm.off_policy is False
    assert algorithm.step_types == ()
    assert algorithm.replay_entry(steps[0]) is None


@pytest.mark.parametrize("missing", ["flatten", "collate_fn", "step"])
def test_the_required_methods_are_required(missing):
    methods = {name: value for name, value in vars(LeastAlgorithm).items() if name != missing}
    incomplete = type("Incomplete", (Algorithm,), {name: methods[name] for name in methods if name in REQUIRED})
    with pytest.raises(TypeError, match=missing):
        incomplete(system=None)


REQUIRED = ("flatten", "collate_fn", "step")


@pytest.mark.parametrize(
    ("contract", "methods"),
    [
        (
            System,
            {
                "get_tester_logprobs",
                "get_target_logprobs",
                "get_baseline_logprobs",
                "rollout_prompt_with_tester",
                "rollout_prompt_with_target",
                "advance",
                "reward",
                "parameters",
            },
        ),
        (ValueFunctionSystem, System.__abstractmethods__ | {"value"}),
    ],
)
def test_the_methods_of_a_system(contract, methods):
    assert contract.__abstractmethods__ == methods
