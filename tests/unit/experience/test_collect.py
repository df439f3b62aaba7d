import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from astra_accel import DPO, Graph, Node
from astra_accel.config import TrainingConfiguration
from astra_accel.core.seeding import derive_seed
from astra_accel.distributed.accelerator import make_accelerator
from astra_accel.errors import NonFiniteError
from astra_accel.experience.collect import EPISODE_STREAM, Harness
from tests.helpers.plain import build_plain


class Named:
    """An algorithm whose examples are the names of the nodes."""

    @staticmethod
    def collate_fn(batch):
        return tuple(batch)

    def flatten(self, graph):
        return [node.probe for node in graph.children]

    def step(self, batch):
        return torch.tensor(float(len(batch))), {"batch": batch}


class SeedSampler:
    """Graphs that tell their seed: as many nodes as its last digit."""

    def __init__(self):
        self.seeds = []

    def rollout(self, seed):
        self.seeds.append(seed)
        return Graph(seed, [Node("c", f"{seed}/{index}", "r", 0.0) for index in range(seed % 3)])


def expected_seeds(run_seed, index, count):
    return [derive_seed(run_seed, EPISODE_STREAM, index, episode) for episode in range(count)]


class TestCollect:
    def test_episodes_and_examples_come_in_order(self):
        sampler = SeedSampler()

        experience = Harness(sampler, Named(), 6).collect(2)

        assert experience.index == 2
        assert [graph.context for graph in experience.graphs] == sampler.seeds
        assert experience.steps == [f"{seed}/{node}" for seed in sampler.seeds for node in range(seed % 3)]
        assert 0 < len(experience.steps) < 12

    def test_an_example_knows_its_tree(self):
        sampler = SeedSampler()

        experience = Harness(sampler, Named(), 6).collect(2)

        assert [sampler.seeds[tree] for tree in experience.trees] == [
            int(step.split("/")[0]) for step in experience.steps
        ]
        assert len(set(experience.trees)) < len(experience.trees)

    def test_an_episode_has_its_seed_from_run_experience_and_number(self):
        sampler = SeedSampler()
        for run_seed in (0, 1):
            for index in (0, 1):
                Harness(sampler, Named(), 5, seed=run_seed).collect(index)

        assert sampler.seeds == [
            seed for run_seed in (0, 1) for index in (0, 1) for seed in expected_seeds(run_seed, index, 5)
        ]
        assert len(set(sampler.seeds)) == 20

    def test_more_episodes_begin_with_the_same_ones(self):
        few, many = SeedSampler(), SeedSampler()
        Harness(few, Named(), 3).collect(0)
        Harness(many, Named(), 8).collect(0)

        assert many.seeds[:3] == few.seeds

    def test_the_system_is_told_of_every_experience(self):
        """Once it is there; evaluations are none."""
        told = []
        sampler = SeedSampler()
        sampler.eval_rollout = sampler.rollout
        sampler.system = SimpleNamespace(observe=lambda graphs, index: told.append((index, list(graphs))))
        harness = Harness(sampler, Named(), 3)

        experiences = [harness.collect(index) for index in (5, 6)]
        harness.evaluate([1, 2])

        assert told == [(5, experiences[0].graphs), (6, experiences[1].graphs)]

    def test_a_node_without_a_reward_gives_no_example_and_its_neighbours_do(self):
        """``a`` has none, so its siblings are two; the turns behind it are siblings still."""
        behind = [Node("ca", probe, "r", reward) for probe, reward in (("d", 0.0), ("e", 1.0))]
        nodes = [Node("c", "a", "r", None, behind), Node("c", "b", "r", 5.0), Node("c", "c", "r", 4.0)]
        graph = Graph("c", nodes)

        experience = Harness(
            SimpleNamespace(rollout=lambda seed: graph), SimpleNamespace(flatten=DPO(None).flatten), 2
        ).collect(0)

        pairs = [(step.prefix, step.suffix_pos, step.suffix_neg) for step in experience.steps]
        assert pairs == [("c", "b", "c"), ("ca", "e", "d")] * 2
        assert experience.trees == [0, 0, 1, 1]
        assert experience.graphs == [graph, graph]

    def test_a_reward_that_is_no_number_is_an_error(self):
        sampler = SimpleNamespace(rollout=lambda seed: Graph("c", [Node("c", "a", "r", float("nan"))]))

        with pytest.raises(ValueError, match=r"the reward of the probe 'a' at \(0,\) is nan"):
            Harness(sampler, Named(), 2).collect(0)

    def test_a_sampler_that_rolls_out_many_gets_all_seeds_at_once(self):
        calls = []

        def rollout_many(seeds):
            calls.append(list(seeds))
            return [Graph(seed, []) for seed in seeds]

        experience = Harness(SimpleNamespace(rollout_many=rollout_many), Named(), 4).collect(0)

        assert calls == [expected_seeds(0, 0, 4)]
        assert [graph.context for graph in experience.graphs] == calls[0]

    def test_episodes_of_one_prompt_share_its_seed_alone(self):
        calls = []

        def rollout_many(seeds, prompt_seeds):
            calls.append((list(seeds), list(prompt_seeds)))
            return [Graph(seed, []) for seed in seeds]

        sampler = SimpleNamespace(rollout_many=rollout_many, episodes_per_prompt=3)
        Harness(sampler, Named(), 6).collect(0)

        first, *_, fourth, _, _ = seeds = expected_seeds(0, 0, 6)
        assert calls == [(seeds, [first] * 3 + [fourth] * 3)]

    def test_a_prompt_that_not_all_episodes_of_an_experience_share_is_an_error(self):
        sampler = SimpleNamespace(rollout_many=None, episodes_per_prompt=4)

        with pytest.raises(ValueError, match="num_episodes_per_experience is 6, but the sampler's episodes_per_prompt"):
            Harness(sampler, Named(), 6).collect(0)

    @pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
    def test_what_models_say_is_computed_in_the_precision_of_updates(self, mixed_precision):
        class Recording(Named):
            def precompute(self, steps):
                self.products = torch.ones(2, 2) @ torch.ones(2, 2)
                return steps

        algorithm = Recording()
        accelerator = make_accelerator(TrainingConfiguration(mixed_precision=mixed_precision))
        Harness(SeedSampler(), algorithm, 2, accelerator=accelerator).collect(0)

        assert algorithm.products.dtype == {"no": torch.float32, "bf16": torch.bfloat16}[mixed_precision]

    def test_a_wrong_number_of_graphs_is_an_error(self):
        sampler = SimpleNamespace(rollout_many=lambda seeds: [Graph(seed, []) for seed in seeds][1:])

        with pytest.raises(ValueError, match="returned 3 results for 4 items"):
            Harness(sampler, Named(), 4).collect(0)

    def test_what_a_model_computes_is_finite_or_an_error_that_says_when(self):
        def overflowing(seeds):
            raise FloatingPointError("the tester's logits are not finite")

        sampler = SimpleNamespace(rollout_many=overflowing, eval_rollout_many=overflowing)
        harness = Harness(sampler, Named(), 4)
        with pytest.raises(NonFiniteError, match=r"^training step 4: the tester's logits are not finite"):
            harness.collect(3)
        with pytest.raises(NonFiniteError, match=r"^evaluation: the tester's logits are not finite"):
            harness.evaluate([1])

    def test_nothing_is_recorded_for_gradients(self):
        enabled = []

        class Recording(SeedSampler):
            def rollout(self, seed):
                enabled.append(torch.is_grad_enabled())
                return super().rollout(seed)

            eval_rollout = rollout

        harness = Harness(Recording(), Named(), 2)
        harness.collect(0)
        harness.evaluate([1])

        assert enabled == [False] * 3

    def test_the_same_on_an_accelerator_of_one_process(self):
        sampler, algorithm = build_plain()
        alone = Harness(sampler, algorithm, 8).collect(3)

        accelerator = make_accelerator(TrainingConfiguration())
        together = Harness(sampler, algorithm, 8, accelerator=accelerator).collect(3)

        assert together == alone


class GlobalSampler:
    """Draws from all the global generators, and takes no notice of its seed."""

    def __init__(self):
        self.before = []

    def rollout(self, seed):
        self.before.append(seed)
        return Graph((random.random(), float(np.random.rand()), float(torch.rand(()))), [])

    eval_rollout = rollout


class TestGlobalGenerators:
    """A sampler with ``rollout`` alone is as reproducible as one that uses its seed."""

    @pytest.mark.parametrize("collect", [lambda h: h.collect(0).graphs, lambda h: h.evaluate([3, 4, 5])])
    def test_every_episode_has_numbers_of_its_own_whatever_was_drawn_before(self, collect):
        draws = []
        for disturbance in (1, 2):
            random.seed(disturbance)
            np.random.seed(disturbance)
            torch.manual_seed(disturbance)
            draws.append([graph.context for graph in collect(Harness(GlobalSampler(), Named(), 3))])

        assert draws[0] == draws[1]
        for numbers in zip(*draws[0], strict=True):
            assert len(set(numbers)) == 3

    def test_an_evaluation_rollout_does_not_depend_on_the_others(self):
        harness = Harness(GlobalSampler(), Named(), 3)

        assert harness.evaluate([3, 4, 5])[1:] == harness.evaluate([4, 5])

    def test_the_generators_are_left_as_they_were(self):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        expected = random.random(), float(np.random.rand()), float(torch.rand(()))
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)

        Harness(GlobalSampler(), Named(), 3).collect(0)

        assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == expected

    def test_an_evaluation_starts_from_whatever_the_sampler_takes(self):
        sampler = GlobalSampler()

        Harness(sampler, Named(), 3).evaluate(["a prompt", -1, 2])

        assert sampler.before == ["a prompt", -1, 2]


class TestEvaluate:
    def test_all_at_once_where_the_sampler_can(self):
        calls = []

        def eval_rollout_many(seeds):
            calls.append(list(seeds))
            return [Graph(seed, []) for seed in seeds]

        graphs = Harness(SimpleNamespace(eval_rollout_many=eval_rollout_many), Named(), 2).evaluate(["a", "b", "c"])

        assert calls == [["a", "b", "c"]]
        assert [graph.context for graph in graphs] == ["a", "b", "c"]

    def test_no_seed_is_no_rollout(self):
        sampler = SimpleNamespace(eval_rollout_many=None, eval_rollout=None)

        assert Harness(sampler, Named(), 2).evaluate([]) == []


class TestHooks:
    class Hooked(Named):
        def __init__(self):
            self.calls = []

        def precompute(self, steps):
            self.calls.append(("precompute", list(steps)))
            return [f"{step}+" for step in steps]

        def prepare(self, steps):
            self.calls.append(("prepare", list(steps)))
            return tuple(f"{step}!" for step in reversed(steps))

    def test_precompute_comes_first_and_prepare_has_the_last_word(self):
        algorithm = self.Hooked()
        plain = Harness(SeedSampler(), Named(), 5).collect(0).steps

        experience = Harness(SeedSampler(), algorithm, 5).collect(0)

        assert algorithm.calls == [("precompute", plain), ("prepare", [f"{step}+" for step in plain])]
        assert experience.steps == [f"{step}+!" for step in reversed(plain)]

    def test_precompute_returns_one_example_for_each(self):
        algorithm = self.Hooked()
        algorithm.precompute = lambda steps: steps[1:]

        with pytest.raises(ValueError, match=r"returned \d results for \d items"):
            Harness(SeedSampler(), algorithm, 5).collect(0)

    def test_models_are_asked_about_chosen_examples_alone(self):
        """Every other of all examples is chosen, whatever graph it is of."""
        algorithm, sampler = self.Hooked(), SeedSampler()
        plain = Harness(SeedSampler(), Named(), 6).collect(2)
        asked = []

        def choose(steps):
            asked.append(list(steps))
            return [index % 2 == 0 for index in range(len(steps))]

        algorithm.choose = choose
        experience = Harness(sampler, algorithm, 6).collect(2)

        assert asked == [plain.steps]
        assert len(plain.steps) > 2
        assert algorithm.calls[0] == ("precompute", plain.steps[::2])
        assert algorithm.calls[1] == ("prepare", [f"{step}+" for step in plain.steps[::2]])
        assert experience.trees == plain.trees[::2]

    @pytest.mark.parametrize("answers", [lambda steps: [True], lambda steps: [True] * (len(steps) + 1)])
    def test_another_number_of_answers_is_an_error(self, answers):
        class Choosing(Named):
            def choose(self, steps):
                return answers(steps)

        with pytest.raises(ValueError, match=r"Choosing\.choose returned \d results for \d items"):
            Harness(SeedSampler(), Choosing(), 6).collect(2)

    def test_pairs_that_say_nothing_ask_no_baseline(self):
        """Of two trees one has siblings that earned the same."""
        asked = []

        class System:
            def get_baseline_logprobs(self, contexts, probes):
                asked.append(list(probes))
                return torch.zeros(len(probes), 1)

        trees = iter(Graph("c", [Node("c", "a", "r", 1.0), Node("c", "b", "r", reward)]) for reward in (1.0, 0.0))
        experience = Harness(SimpleNamespace(rollout=lambda seed: next(trees)), DPO(System(), margin=0.5), 2).collect(0)

        assert asked == [["a", "b"]]
        assert experience.trees == [1]

    def test_what_is_not_kept_leaves_the_others_to_their_trees(self):
        """Asked once an example is whole: all nodes but the first of each graph stay."""
        algorithm = Named()
        algorithm.precompute = lambda steps: [f"{step}+" for step in steps]
        algorithm.keep = lambda step: not step.endswith("/0+")
        sampler = SeedSampler()

        experience = Harness(sampler, algorithm, 6).collect(2)

        assert experience.steps == [f"{seed}/1+" for seed in sampler.seeds if seed % 3 == 2]
        assert [sampler.seeds[tree] for tree in experience.trees] == [seed for seed in sampler.seeds if seed % 3 == 2]
        assert experience.steps

    def test_prepare_may_drop_examples(self):
        algorithm = self.Hooked()
        algorithm.prepare = lambda steps: steps[:1]

        experience = Harness(SeedSampler(), algorithm, 5).collect(0)

        assert len(experience.steps) == len(experience.trees) == 1


class TestOwnLoop:
    """The reference's way: ``for batch in harness.experience(): loss, logs = harness.step(batch)``."""

    def test_batches_of_one_experience_after_the_other(self):
        harness = Harness(SeedSampler(), Named(), 5, batch_size=2)
        experiences = [harness.collect(index).steps for index in (0, 1)]

        for steps in experiences:
            batches = list(harness.experience())
            assert batches == [tuple(steps[start : start + 2]) for start in range(0, len(steps), 2)]

    def test_a_seed_chooses_the_experience(self):
        harness = Harness(SeedSampler(), Named(), 5)

        assert list(harness.experience(seed=7)) == [(step,) for step in harness.collect(7).steps]
        assert list(harness.experience()) == [(step,) for step in harness.collect(0).steps]

    def test_step_is_the_step_of_the_algorithm(self):
        loss, logs = Harness(SeedSampler(), Named(), 5).step(("a", "b"))

        assert loss == 2
        assert logs == {"batch": ("a", "b")}

    def test_a_loop_of_ones_own_trains(self):
        sampler, algorithm = build_plain()
        harness = Harness(sampler, algorithm, 32, batch_size=8)
        optimizer = torch.optim.Adam(sampler.system.parameters(), lr=0.1)
        held_out = list(harness.experience(seed=100))

        def mean_loss():
            with torch.no_grad():
                return torch.stack([harness.step(batch)[0] for batch in held_out]).mean()

        before = mean_loss()
        for _ in range(5):
            for batch in harness.experience():
                loss, _ = harness.step(batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

        assert mean_loss() < before - 0.1
