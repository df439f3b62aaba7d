"""A replay from outside: what it gives back, tells, writes and refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from astra_accel.algorithms import ALGORITHMS, build_algorithm
from astra_accel.config import ReplayConfiguration
from astra_accel.core.algorithm import Algorithm, ReplayEntry
from astra_accel.errors import ConfigurationError
from astra_accel.experience.collect import Harness
from astra_accel.experience.off_policy import check_replay
from astra_accel.experience.replay import Replay
from tests.helpers.plain import PlainStep, build_plain
from tests.helpers.replayed import ReplayedAlgorithm


def replay(seed: int = 0, algorithm=None, **settings) -> Replay:
    system = build_plain()[0].system
    return Replay(ReplayConfiguration(**settings), algorithm or ReplayedAlgorithm(system), seed)


def steps(*margins: float) -> list[PlainStep]:
    return [PlainStep(place, place + 1, 0, margin) for place, margin in enumerate(margins)]


@pytest.mark.parametrize(("share", "numbers"), [(0.25, [0, 2, 2]), (0.5, [0, 6, 6]), (0.8, [0, 6, 12])])
def test_a_share_of_what_is_trained_on_is_drawn_as_far_as_there_is(share, numbers):
    """6 new ones and x of the replay, x / (6 + x) = share: 2, 6, 24."""
    here = replay(share=share)
    assert [len(here.exchange(index, steps(*range(6)))[0]) for index in range(3)] == numbers


def test_nothing_new_draws_nothing():
    here = replay()
    here.exchange(0, steps(1.0, 2.0))
    drawn, figures = here.exchange(1, [])
    assert (drawn, figures["replay/drawn"], len(here)) == ([], 0, 2)


def test_what_is_drawn_follows_from_seed_and_training_step():
    def drawn(seed: int) -> list:
        here = replay(seed, share=0.5, priority="uniform")
        here.exchange(0, steps(*range(20)))
        return [here.exchange(index, steps(5.0, 6.0, 7.0))[0] for index in (1, 2, 3)]

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert len({str(examples) for examples in drawn(0)}) == 3


def test_new_ones_are_drawn_from_the_next_experience_on():
    here = replay(share=0.9)
    assert here.exchange(0, steps(1.0))[0] == []
    assert here.exchange(1, steps(2.0))[0] == steps(1.0)


def test_it_is_bounded():
    here = replay(size=5)
    for index in range(20):
        _, figures = here.exchange(index, steps(*range(4)))
        assert len(here) == figures["replay/size"] <= 5
    # Each experience had a 3 and a 2, of which the newest are kept.
    assert [step.margin for step in here.steps] == [3.0] * 5


def test_the_figures_by_hand():
    """Texts ``in 0 say 1``, ``in 1 say 2`` and once more: each shares ``in`` and ``say``, the second also its ``1``.

    ``in 0 say 1`` of ``in 1 say 2``: in, say, 1 of 4 words; ``in 1 say 2`` of ``in 0 say 1``: in, 1, say of 4. Scores
    are half the margins; a success has 0.5 or more.
    """
    here = replay()
    here.exchange(0, [PlainStep(0, 1, 0, 0.5)])
    _, figures = here.exchange(3, [PlainStep(1, 2, 0, 1.5)])
    assert figures == {
        "replay/drawn": 1,
        "replay/size": 2.0,
        "replay/age": 1.5,
        "replay/value": 1.0,
        "replay/success": 0.5,
        "replay/overlap": 0.75,
    }
    assert replay().exchange(0, [])[1] == {"replay/drawn": 0, "replay/size": 0.0}


def test_it_goes_on_from_what_it_wrote():
    whole, again = replay(size=6), replay(size=6)
    for index in range(3):
        whole.exchange(index, steps(0.1 + 0.2, 1 / 3, index, 1e-300))
    again.load(whole.dump())
    assert again.dump() == whole.dump()
    assert [again.exchange(index, steps(2.0, 3.0)) for index in (3, 4)] == [
        whole.exchange(index, steps(2.0, 3.0)) for index in (3, 4)
    ]


def test_what_a_smaller_one_can_not_hold_is_left_out():
    large, small = replay(size=6), replay(size=2)
    large.exchange(0, steps(*range(6)))
    small.load(large.dump())
    assert [step.margin for step in small.steps] == [4, 5]


def test_a_file_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="expected the format 1"):
        replay().load('{"format": 2}\n')
    step = {"class": "DPOStep", "fields": {}}
    with pytest.raises(ValueError, match="found an object of class DPOStep, expected one of PlainStep"):
        replay().load('{"format": 1}\n' + json.dumps({"collected": 0, "step": step}))


@dataclass(frozen=True)
class Unknown:
    margin: float
    state: int = 0
    better: int = 0


def test_what_no_checkpoint_could_hold_is_told_at_once():
    with pytest.raises(ConfigurationError, match=r"an example holds a .*test_replay\.Unknown.*step_types"):
        replay().exchange(0, [Unknown(1.0)])


class _WithoutFluency(ReplayedAlgorithm):
    def replay_entry(self, step):
        return ReplayEntry(step.margin, ()) if step.margin else None


def test_a_floor_needs_somebody_who_tells_the_fluency():
    with pytest.raises(ConfigurationError, match=r"min_fluency is -5\.0, but _WithoutFluency gives no log-probs"):
        replay(algorithm=_WithoutFluency(None), min_fluency=-5).exchange(0, steps(1.0))


def test_an_algorithm_may_keep_an_example_out():
    here = replay(algorithm=_WithoutFluency(None))
    here.exchange(0, steps(0.0, 1.0))
    assert [step.margin for step in here.steps] == [1.0]


@pytest.mark.parametrize("name", ["grpo", "rloo", "ppo"])
def test_an_on_policy_algorithm_is_refused_with_the_reason(name):
    with pytest.raises(ConfigurationError, match=rf"(?i){name} learns on-policy: its loss assumes .* \(dpo, ipo"):
        check_replay(build_algorithm(name, None))


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in ("grpo", "rloo", "ppo")])
def test_the_others_are_taken(name):
    check_replay(build_algorithm(name, None))


def test_an_algorithm_has_to_say_so_and_to_tell_what_examples_earned():
    class Silent(Algorithm):
        off_policy = True

        def flatten(self, graph):
            return []

        collate_fn = staticmethod(list)

        def step(self, batch):
            return None, {}

    with pytest.raises(ConfigurationError, match="PlainAlgorithm learns on-policy"):
        check_replay(build_plain()[1])
    with pytest.raises(ConfigurationError, match="Silent does not tell what its examples earned"):
        check_replay(Silent(None))


def test_an_experience_has_its_own_examples_and_those_of_earlier_ones():
    sampler, _ = build_plain()
    algorithm = ReplayedAlgorithm(sampler.system)
    alone = [Harness(sampler, algorithm, 6).collect(index) for index in range(2)]
    here = Replay(ReplayConfiguration(share=0.4), algorithm)
    harness = Harness(sampler, algorithm, 6, replay=here)
    first, second = harness.collect(0), harness.collect(1)

    assert (first.steps, first.trees) == (alone[0].steps, alone[0].trees)
    num_new = len(alone[1].steps)
    assert second.steps[:num_new] == alone[1].steps
    assert len(second.steps) - num_new == round(num_new * 2 / 3) == second.figures["replay/drawn"]
    assert all(step in alone[0].steps for step in second.steps[num_new:])
    # A tree of its own for each that is drawn.
    assert second.trees[:num_new] == alone[1].trees
    assert len(set(second.trees[num_new:]) - set(alone[1].trees)) == len(second.steps) - num_new


def test_an_example_is_drawn_so_many_times_at_most_also_behind_a_checkpoint():
    """Two examples, two draws each: 1 an experience (share 0.5 of one new one), whose own returns none beats."""
    settings = {"share": 0.5, "priority": "uniform", "max_draws": 2}
    here = replay(**settings)
    here.exchange(0, [PlainStep(0, 1, 0, 1.0), PlainStep(2, 3, 0, 1.0)])
    drawn = []
    for index in range(1, 9):
        if index == 3:
            text = here.dump()
            here = replay(**settings)
            here.load(text)
        drawn += [step.margin for step in here.exchange(index, [PlainStep(4, 5, 0, -1.0)])[0]]
    # Of the first two 4 draws in all; of the later ones some are drawn in their place.
    assert drawn.count(1.0) <= 4
    assert len(drawn) == 8


def test_what_was_drawn_often_enough_stays_to_be_compared_with():
    here = replay(share=0.5, max_draws=1, max_overlap=0.5)
    once = [PlainStep(0, 1, 0, 1.0)]
    here.exchange(0, once)
    assert here.exchange(1, once)[0] == once  # drawn, and the new one is the same probe, of which the newer is kept
    assert len(here) == 1


def test_a_checkpoint_from_before_draws_were_counted_loads():
    here = replay()
    here.exchange(0, steps(1.0, 2.0))
    text = here.dump().replace('"draws": 0, ', "")
    again = replay()
    again.load(text)
    assert again.dump() == here.dump()


def test_it_begins_with_what_another_run_has_kept():
    """Of age 1 in the first experience, whose examples are drawn from it."""
    theirs, ours = replay(size=4), replay(size=3, share=0.5)
    theirs.exchange(7, steps(1.0, 2.0, 3.0, 4.0))
    ours.begin_with(ours.adopted(theirs.dump()))
    assert [step.margin for step in ours.steps] == [2.0, 3.0, 4.0]
    drawn, figures = ours.exchange(0, steps(0.5, 0.6))
    assert len(drawn) == 2
    assert {step.margin for step in drawn} <= {2.0, 3.0, 4.0}
    assert figures["replay/age"] == 1


def test_an_algorithm_makes_its_own_examples_of_those_that_it_adopts():
    @dataclass(frozen=True)
    class Foreign:
        margins: tuple[float, ...]

    class Theirs(ReplayedAlgorithm):
        step_types = (Foreign,)

        def replay_entry(self, step):
            return ReplayEntry(max(step.margins), ("x",))

    class Adopting(ReplayedAlgorithm):
        adopted_types = (Foreign,)

        def adopt(self, step):
            return steps(*step.margins)

    theirs = replay(algorithm=Theirs(build_plain()[0].system))
    theirs.exchange(0, [Foreign((1.0, 2.0)), Foreign((3.0,))])
    ours = replay(algorithm=Adopting(build_plain()[0].system))
    assert [step.margin for step in ours.adopted(theirs.dump())] == [1.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="object of class Foreign, expected one of PlainStep"):
        replay().adopted(theirs.dump())
    # A checkpoint of its own run never has them.
    with pytest.raises(ValueError, match="object of class Foreign"):
        ours.load(theirs.dump())
