import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from astra_accel import Graph, Node
from astra_accel.config import CurriculumConfiguration, TrainingConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.experience.collect import Harness
from astra_accel.experience.curriculum import Curriculum, check_curriculum, spread_of
from astra_accel.experience.selection import draw_places
from astra_accel.methods.ast.sampler import ASTSampler

WIDE, NARROW, EQUAL = (0.0, 1.0), (0.25, 0.75), (0.5, 0.5)
"""Rewards of two siblings, whose standard deviations are 0.5, 0.25 and 0."""


def tree(rewards, context="once", **info):
    nodes = [Node(context, f"probe {place}", "no", reward, info=dict(info)) for place, reward in enumerate(rewards)]
    return Graph(context, nodes)


def curriculum(**settings):
    return Curriculum(CurriculumConfiguration(**{"share": 0.5, **settings}), seed=3)


class Table:
    """A sampler of prompts 0, 1 and 2, whose siblings' rewards are given."""

    def __init__(self, rewards):
        self.rewards = rewards
        self.begun = []

    def rollout_many(self, seeds, prompt_seeds=None):
        prompts = [seed % 3 for seed in prompt_seeds]
        self.begun.append(prompts)
        return [tree(self.rewards[prompt], f"prompt {prompt}") for prompt in prompts]


class Nothing:
    """An algorithm that makes no examples."""

    def flatten(self, graph):
        return []


class TestSpread:
    def test_the_standard_deviation_among_siblings(self):
        """Of 1, 2 and 6: the mean is 3, the squares are 4, 1 and 9."""
        assert spread_of([tree((1.0, 2.0, 6.0))], "reward") == pytest.approx(math.sqrt(14 / 3), abs=1e-5)

    def test_deeper_groups_count_as_much_as_the_first(self):
        deep = tree(WIDE)
        deep.children[0].children = tree(NARROW).children
        deep.children[1].children = tree(EQUAL).children
        assert spread_of([deep], "reward") == 0.25

    def test_probes_that_open_several_trees_of_a_prompt_are_siblings(self):
        assert spread_of([tree((0.0,)), tree((1.0,))], "reward") == 0.5

    def test_what_is_missing_is_left_out(self):
        assert spread_of([tree((0.0, None, 1.0))], "reward") == 0.5
        assert spread_of([tree((None, 1.0))], "reward") is None

    def test_another_figure(self):
        graph = tree(EQUAL)
        for node, score in zip(graph.children, WIDE, strict=True):
            node.info = {"response_score": score}
        assert spread_of([graph], "response_score") == 0.5


class TestCurriculum:
    def test_a_share_of_the_prompts_is_repeated_once_some_are_known(self):
        found = curriculum()
        assert found.with_repeated(0, [1, 2, 3, 4]) == [1, 2, 3, 4]
        found.observe([1, 2, 3, 4], [tree(WIDE, f"prompt {number}") for number in range(4)])
        seeds = found.with_repeated(1, [5, 6, 7, 8])
        assert seeds[:2] == [5, 6]
        assert len({1, 2, 3, 4} & set(seeds[2:])) == 2

    def test_no_more_are_repeated_than_are_known(self):
        found = curriculum()
        found.observe([1, 2], [tree(WIDE, "a"), tree(EQUAL, "b")])
        assert found.with_repeated(1, [5, 6, 7, 8]) == [5, 6, 7, 1]

    def test_draws_follow_from_the_seed_and_the_training_step(self):
        found = curriculum()
        found.observe(range(50), [tree(WIDE, f"prompt {number}") for number in range(50)])
        draws = [found.with_repeated(index, range(100, 120)) for index in (1, 1, 2)]
        assert draws[0] == draws[1] != draws[2]

    def test_a_prompt_leaves_when_its_probes_no_longer_differ(self):
        found = curriculum()
        found.observe([1], [tree(WIDE)])
        found.observe([1], [tree(EQUAL)])
        assert len(found) == 0

    def test_a_prompt_whose_rewards_are_missing_stays_as_it_was(self):
        found = curriculum()
        found.observe([1], [tree(WIDE)])
        found.observe([1], [tree((None, None))])
        assert found.with_repeated(2, [8, 9]) == [8, 1]

    def test_a_prompt_is_known_once_whatever_seed_chose_it(self):
        found = curriculum()
        found.observe([1, 2], [tree(WIDE, "a"), tree(NARROW, "a")])
        assert len(found) == 1

    def test_goals_with_the_same_opening_are_prompts_of_their_own(self):
        found = curriculum()
        found.observe([1, 2], [tree(WIDE, "", goal="one"), tree(WIDE, "", goal="another")])
        assert len(found) == 2

    def test_a_seed_that_now_chooses_another_prompt_forgets_the_first(self):
        found = curriculum()
        found.observe([1], [tree(WIDE, "before")])
        found.observe([1], [tree(EQUAL, "after")])
        assert len(found) == 0

    def test_the_widest_stay_and_of_equal_ones_the_newest(self):
        found = curriculum(size=2, share=0.9)
        found.observe([1, 2, 3, 4], [tree(rewards, str(n)) for n, rewards in enumerate((NARROW, WIDE, NARROW, NARROW))])
        assert set(found.with_repeated(1, range(10, 30))) >= {2, 4}
        assert len(found) == 2

    def test_the_figures_by_hand(self):
        found = curriculum()
        first = found.observe([1, 2], [tree(WIDE, "a"), tree(EQUAL, "b")])
        assert first == {"curriculum/size": 1, "curriculum/repeated": 0, "curriculum/spread": 0.25}
        second = found.observe([3, 1], [tree(NARROW, "c"), tree(WIDE, "a")])
        assert second == {
            "curriculum/size": 2,
            "curriculum/repeated": 1,
            "curriculum/spread": 0.25,
            "curriculum/repeated_spread": 0.5,
        }

    def test_it_goes_on_from_what_it_wrote(self):
        found, again = curriculum(), curriculum()
        found.observe(range(9), [tree(WIDE, f"prompt {number}") for number in range(9)])
        again.load(found.dump())
        assert again.dump() == found.dump()
        assert again.with_repeated(4, range(10, 20)) == found.with_repeated(4, range(10, 20))

    def test_another_figure_begins_anew(self):
        found, other = curriculum(), curriculum(figure="response_score")
        found.observe([1], [tree(WIDE)])
        other.load(found.dump())
        assert len(other) == 0

    def test_a_file_of_another_version_is_refused(self):
        with pytest.raises(ValueError, match="found the format 9, expected 1"):
            curriculum().load('{"format": 9}')


def test_a_place_is_drawn_in_proportion_to_its_weight():
    """A standard deviation is at most 0.0035."""
    generator = np.random.default_rng(0)
    drawn = Counter(draw_places(np.array([3.0, 1.0, 4.0]), 1, generator.random(3))[0] for _ in range(20_000))
    assert [drawn[place] / 20_000 for place in range(3)] == pytest.approx([3 / 8, 1 / 8, 4 / 8], abs=0.014)


def test_an_experience_repeats_prompts_on_which_siblings_differ():
    sampler = Table({0: EQUAL, 1: WIDE, 2: EQUAL})
    harness = Harness(sampler, Nothing(), 4, curriculum=curriculum())
    first, second = (harness.collect(index) for index in range(2))
    assert set(sampler.begun[0]) == {0, 1, 2}
    assert sampler.begun[1][3] == 1
    assert first.figures["curriculum/repeated"] == 0
    assert second.figures["curriculum/repeated"] == 1


def test_all_episodes_of_a_prompt_repeat_it():
    sampler = Table({0: WIDE, 1: WIDE, 2: WIDE})
    sampler.episodes_per_prompt = 2
    harness = Harness(sampler, Nothing(), 4, curriculum=curriculum())
    before = harness.collect(0)
    harness.collect(1)
    assert sampler.begun[1][2] == sampler.begun[1][3]
    assert f"prompt {sampler.begun[1][2]}" in {graph.context for graph in before.graphs}


def test_a_tree_sampler_takes_seeds_of_prompts():
    assert Curriculum.from_configuration(TrainingConfiguration(), None) is None
    config = TrainingConfiguration(curriculum=CurriculumConfiguration())
    assert Curriculum.from_configuration(config, ASTSampler.__new__(ASTSampler)) is not None


def test_a_sampler_without_seeds_of_prompts_is_refused():
    config = TrainingConfiguration(curriculum=CurriculumConfiguration())
    with pytest.raises(ConfigurationError, match=r"SimpleNamespace has no method rollout_many\(seeds, prompt_seeds\)"):
        Curriculum.from_configuration(config, SimpleNamespace(rollout_many=lambda seeds: []))


def test_a_figure_that_no_turn_has_is_refused_before_and_at_the_first_experience():
    config = CurriculumConfiguration(figure="toxicity")
    check_curriculum(None, ["reward"])
    with pytest.raises(ConfigurationError, match=r"training.curriculum.figure is 'toxicity'.*reward, naturalness"):
        check_curriculum(config, ["reward", "naturalness"])
    with pytest.raises(ConfigurationError, match="expected one of reward, naturalness"):
        Curriculum(config).observe([1], [tree(WIDE, naturalness=-1.0)])
