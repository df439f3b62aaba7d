import pytest
import torch
from torch import nn

from astra_accel.distributed.step_module import StepModule
from tests.helpers.plain import build_plain


class Attributes:
    """A system that is no module: the attributes given, and the parameters that it says are to be trained."""

    def __init__(self, trained=None, **attributes):
        vars(self).update(attributes)
        self._trained = trained

    def parameters(self):
        return iter(self._trained())


def linear(size=2):
    return nn.Linear(size, size)


class NoAlgorithm:
    def step(self, batch):
        raise AssertionError


def of(system):
    return StepModule(system, NoAlgorithm())


class TestForward:
    def test_it_is_the_step_of_the_algorithm(self):
        sampler, algorithm = build_plain()
        batch = algorithm.collate_fn(algorithm.flatten(sampler.rollout(0)))

        loss, logs = StepModule(sampler.system, algorithm)(batch)
        expected_loss, expected_logs = algorithm.step(batch)

        assert torch.equal(loss, expected_loss)
        assert logs.keys() == expected_logs.keys()

    def test_its_backward_reaches_the_parameters_of_the_system(self):
        sampler, algorithm = build_plain()
        steps = [step for seed in range(4) for step in algorithm.flatten(sampler.rollout(seed))]

        StepModule(sampler.system, algorithm)(algorithm.collate_fn(steps))[0].backward()

        assert all(parameter.grad.abs().sum() > 0 for parameter in sampler.system.parameters())


class TestDiscovery:
    def names(self, system):
        return [name for name, _ in of(system).named_parameters()]

    def test_modules_of_a_plain_object(self):
        sampler, _ = build_plain()

        assert self.names(sampler.system) == ["policy.weight", "value_head.weight", "value_head.bias"]

    @pytest.mark.parametrize("container", [list, tuple])
    def test_a_list_or_tuple_of_modules(self, container):
        first, second = linear(), linear()
        system = Attributes(lambda: [*first.parameters(), *second.parameters()], heads=container([first, second, 3]))

        assert self.names(system) == ["heads_0.weight", "heads_0.bias", "heads_1.weight", "heads_1.bias"]

    @pytest.mark.parametrize("name", ["heads", "_heads"])
    def test_a_dictionary_of_modules(self, name):
        first, second = linear(), linear()
        heads = {"a": first, "frozen": linear(), "b": second}
        system = Attributes(lambda: [*first.parameters(), *second.parameters()], **{name: heads})

        assert self.names(system) == [f"{name}_a.weight", f"{name}_a.bias", f"{name}_b.weight", f"{name}_b.bias"]

    def test_a_parameter_of_its_own(self):
        scale = nn.Parameter(torch.ones(3))

        assert self.names(Attributes(lambda: [scale], scale=scale, text="x", number=3)) == ["scale"]

    def test_a_module_as_system_without_its_frozen_parts(self):
        class System(nn.Module):
            def __init__(self):
                super().__init__()
                self.target = linear(5).requires_grad_(False)
                self.tester = linear()
                self.scale = nn.Parameter(torch.ones(3))
                self.others = [linear(4)]

            def parameters(self, recurse=True):
                yield from self.tester.parameters()
                yield self.scale
                yield from self.others[0].parameters()

        expected = {"tester.weight", "tester.bias", "scale", "others_0.weight", "others_0.bias"}
        assert set(self.names(System())) == expected

    def test_a_module_as_system_with_the_parameters_of_a_module(self):
        system = nn.Sequential(linear(), linear(3))

        assert self.names(system) == ["0.weight", "0.bias", "1.weight", "1.bias"]

    def test_what_two_attributes_share_is_registered_once(self):
        model = linear()

        assert self.names(Attributes(model.parameters, tester=model, policy=model)) == ["tester.weight", "tester.bias"]

    def test_a_module_comes_whole_where_a_part_of_it_is_trained(self):
        adapted = nn.Sequential(linear(4).requires_grad_(False), linear())
        system = Attributes(adapted.parameters, tester=adapted, target=linear(3).requires_grad_(False))

        assert self.names(system) == ["tester.0.weight", "tester.0.bias", "tester.1.weight", "tester.1.bias"]
        assert list(of(system).trained_state()) == ["tester.1.weight", "tester.1.bias"]

    def test_the_modules_are_the_systems_own(self):
        sampler, algorithm = build_plain()

        assert StepModule(sampler.system, algorithm).policy is sampler.system.policy

    def test_an_algorithm_that_is_a_module_is_not_part_of_it(self):
        class Algorithm(nn.Linear):
            def step(self, batch):
                return self(batch).sum(), {}

        model = linear()
        module = StepModule(Attributes(model.parameters, tester=model), Algorithm(7, 1))

        assert [name for name, _ in module.named_parameters()] == ["tester.weight", "tester.bias"]
        assert module(torch.ones(7))[0].requires_grad


class TestErrors:
    def test_a_parameter_that_no_attribute_owns_is_named(self):
        model, hidden = linear(), nn.Parameter(torch.zeros(4, 3))
        system = Attributes(lambda: [*model.parameters(), hidden], tester=model)

        with pytest.raises(ValueError, match=r"parameter 2 of Attributes.*\(4, 3\), belongs to no attribute") as caught:
            of(system)
        assert "expected it in one of tester" in str(caught.value)

    @pytest.mark.parametrize("parameters", [[], [nn.Parameter(torch.zeros(1), requires_grad=False)]])
    def test_nothing_to_train_is_an_error(self, parameters):
        with pytest.raises(
            ValueError, match=r"Attributes\.parameters\(\) yields no parameter that requires a gradient"
        ):
            of(Attributes(lambda: parameters))

    def test_a_frozen_parameter_needs_no_owner(self):
        model, frozen = linear(), nn.Parameter(torch.zeros(1), requires_grad=False)

        of(Attributes(lambda: [*model.parameters(), frozen], tester=model))


class TestTrainedState:
    def test_it_has_trained_parameters_and_persistent_buffers(self):
        model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
        model[0].weight.requires_grad_(False)
        model[2].register_buffer("kept", torch.arange(3.0))
        model[2].register_buffer("made_again", torch.arange(3.0), persistent=False)

        state = of(Attributes(model.parameters, tester=model)).trained_state()

        assert set(state) == {
            "tester.0.bias",
            "tester.1.weight",
            "tester.1.bias",
            "tester.1.running_mean",
            "tester.1.running_var",
            "tester.1.num_batches_tracked",
            "tester.2.weight",
            "tester.2.bias",
            "tester.2.kept",
        }

    def test_it_is_no_copy(self):
        model = linear()
        state = of(Attributes(model.parameters, tester=model)).trained_state()

        with torch.no_grad():
            state["tester.bias"].fill_(7)

        assert model.bias.tolist() == [7, 7]

    def test_tied_weights_are_held_once(self):
        model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 3, bias=False))
        model[1].weight = model[0].weight

        assert list(of(Attributes(model.parameters, tester=model)).trained_state()) == ["tester.0.weight"]
