import math
from itertools import pairwise, permutations
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration
from hypothesis import given
from hypothesis import strategies as st

from astra_accel.experience.loader import (
    PAD,
    Example,
    Experience,
    ExperienceLoader,
    MicroBatch,
    balanced_shards,
    contiguous_shards,
    plan_micro_steps,
)
from tests.helpers.plain import reset_accelerate


class Letters:
    """An algorithm of which only the collation is used: an example is a letter, a batch the letters of it."""

    @staticmethod
    def collate_fn(batch):
        return "".join(batch)


class WeighedLetters(Letters):
    def weight(self, step):
        return float("_abcdefghij".index(step))


class OneOfSeveral:
    """As much of an accelerator as a loader uses, for one of several processes, without the others."""

    def __init__(self, num_processes, process_index, split_batches):
        self.num_processes, self.process_index, self.split_batches = num_processes, process_index, split_batches
        self.step, self.gradient_accumulation_steps = 0, 1

    def prepare(self, loader):
        return prepare_data_loader(
            loader,
            num_processes=self.num_processes,
            process_index=self.process_index,
            split_batches=self.split_batches,
            put_on_device=False,
        )


def experience(steps, index=0, trees=None):
    """An experience of one-letter examples, each of a tree of its own unless ``trees`` says otherwise."""
    return Experience(index, [], list(steps), list(trees or range(len(steps))))


def halves(shard):
    """A split in parts of two."""
    return [shard[start : start + 2] for start in range(0, len(shard), 2)]


class TestPlanMicroSteps:
    def test_the_example_of_the_docstring(self):
        settings = {"batch_size": 4, "accumulation": 1, "num_processes": 2}
        whole = plan_micro_steps([1] * 5, [0, 1, 2, 3, 4], **settings)
        in_ones = plan_micro_steps(
            [1] * 5, [0, 1, 2, 3, 4], **settings, split=lambda shard: [[index] for index in shard]
        )

        assert whole.micro_steps == [[0, 1, 2, 3], [4, PAD, PAD, PAD]]
        assert whole.is_last == [True, True]
        assert in_ones.micro_steps == [[0, PAD, 2, PAD], [1, PAD, 3, PAD], [4, PAD, PAD, PAD]]
        assert in_ones.is_last == [False, True, True]
        assert whole.loss_weights == in_ones.loss_weights == [1 / 4, 1 / 4, 1 / 4, 1 / 4, 1]

    def test_accumulated_batches_are_one_update(self):
        plan = plan_micro_steps([1] * 5, [4, 3, 2, 1, 0], batch_size=2, accumulation=2, num_processes=1)

        assert plan.micro_steps == [[4, 3], [2, 1], [0, PAD]]
        assert plan.loss_weights == [1, 1 / 4, 1 / 4, 1 / 4, 1 / 4]
        assert plan.is_last == [False, True, True]

    def test_an_update_that_ends_with_the_experience_has_fewer_batches(self):
        plan = plan_micro_steps([1] * 3, [0, 1, 2], batch_size=2, accumulation=8, num_processes=1)

        assert plan.loss_weights == [1 / 3] * 3
        assert plan.is_last == [False, True]

    def test_shares_follow_the_weights(self):
        # As a mean over tokens: an example of 6 tokens counts thrice as much as one of 2 in the same update.
        plan = plan_micro_steps([2, 6, 5, 0], [0, 1, 2, 3], batch_size=2, accumulation=1, num_processes=1)

        assert plan.loss_weights == [2 / 8, 6 / 8, 1, 0]

    def test_an_update_without_weight_has_no_share(self):
        plan = plan_micro_steps([0, 0, 3], [0, 1, 2], batch_size=2, accumulation=1, num_processes=1)

        assert plan.loss_weights == [0, 0, 1]

    def test_examples_are_dealt_out_in_runs(self):
        # Neighbours in the order are of one tree, and whoever has both reads what they share once.
        plan = plan_micro_steps([1] * 7, [6, 5, 4, 3, 2, 1, 0], batch_size=9, accumulation=1, num_processes=3)

        assert plan.micro_steps == [[6, 5, 4, 3, 2, PAD, 1, 0, PAD]]

    def test_a_process_with_fewer_parts_pads_the_rounds_of_the_others(self):
        # Runs of 3, 2 and 2 in parts of two: the first process steps twice, so the others do.
        plan = plan_micro_steps([1] * 7, range(7), batch_size=9, accumulation=1, num_processes=3, split=halves)

        assert plan.micro_steps == [[0, 1, PAD, 3, 4, PAD, 5, 6, PAD], [2, PAD, PAD, PAD, PAD, PAD, PAD, PAD, PAD]]
        assert plan.is_last == [False, True]

    def test_no_example_is_no_round(self):
        assert plan_micro_steps([], [], batch_size=4, accumulation=2, num_processes=2) == ([], [], [])

    @given(data=st.data(), count=st.integers(1, 40), per_rank=st.integers(1, 5), ranks=st.integers(1, 4))
    def test_whatever_the_numbers(self, data, count, per_rank, ranks):
        weights = data.draw(st.lists(st.floats(0.125, 1000), min_size=count, max_size=count))
        order = data.draw(st.permutations(range(count)))
        accumulation = data.draw(st.integers(1, 4))
        split = data.draw(st.sampled_from([halves, lambda shard: [shard]]))
        batch_size = per_rank * ranks
        per_update = batch_size * accumulation

        plan = plan_micro_steps(
            weights, order, batch_size=batch_size, accumulation=accumulation, num_processes=ranks, split=split
        )

        assert all(len(each) == batch_size for each in plan.micro_steps)
        ends = [number for number, ends in enumerate(plan.is_last, start=1) if ends]
        assert len(ends) == math.ceil(count / per_update)
        assert ends[-1] == len(plan.micro_steps)
        for number, (start, end) in enumerate(pairwise([0, *ends])):
            update = [index for each in plan.micro_steps[start:end] for index in each if index != PAD]
            assert sorted(update) == sorted(order[number * per_update : (number + 1) * per_update])
            assert sum(plan.loss_weights[index] for index in update) == pytest.approx(1)
            for index in update:
                assert plan.loss_weights[index] * weights[update[0]] == pytest.approx(
                    plan.loss_weights[update[0]] * weights[index]
                )

    @given(count=st.integers(1, 40), per_rank=st.integers(1, 5), ranks=st.integers(1, 4))
    def test_processes_have_about_equally_many_neighbours_of_a_batch(self, count, per_rank, ranks):
        batch_size = per_rank * ranks

        plan = plan_micro_steps([1] * count, range(count), batch_size=batch_size, accumulation=1, num_processes=ranks)

        for number, each in enumerate(plan.micro_steps):
            rank_shards = [each[start : start + per_rank] for start in range(0, batch_size, per_rank)]
            held = [[index for index in shard if index != PAD] for shard in rank_shards]
            assert max(map(len, held)) - min(map(len, held)) <= 1
            in_order = [index for shard in held for index in shard]
            assert in_order == list(range(count))[number * batch_size : (number + 1) * batch_size]


class TestOneProcess:
    def loader(self, algorithm=Letters, batch_size=4, accumulation=1, seed=0, **settings):
        self.accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(**settings))
        return ExperienceLoader(self.accelerator, algorithm(), batch_size, accumulation, seed)

    @pytest.mark.parametrize(
        "settings",
        [
            {"split_batches": True},
            {"split_batches": False},
            {"split_batches": True, "even_batches": False},
            {"split_batches": False, "use_seedable_sampler": True, "data_seed": 5},
        ],
        ids=str,
    )
    def test_every_example_comes_once_with_its_share(self, settings):
        shards = list(self.loader(**settings).micro_batches(experience("abcdefghij"), epoch=0))

        assert sorted("".join(shard.batch for shard in shards)) == list("abcdefghij")
        assert [len(shard.batch) for shard in shards] == [4, 4, 2]
        assert [shard.loss_weight for shard in shards] == [1, 1, 1]

    def test_the_shares_of_accumulated_batches_add_up_to_one(self):
        shards = list(self.loader(accumulation=2).micro_batches(experience("abcdefghij"), epoch=0))

        assert [shard.loss_weight for shard in shards] == [1 / 2, 1 / 2, 1]

    def test_the_algorithm_weighs_the_examples(self):
        shards = list(self.loader(WeighedLetters, accumulation=3).micro_batches(experience("abcdefghij"), epoch=0))

        weights = [sum("_abcdefghij".index(letter) for letter in shard.batch) for shard in shards]
        assert [shard.loss_weight for shard in shards] == pytest.approx([weight / 55 for weight in weights])

    def test_the_settings_of_the_accelerator_do_not_change_the_order(self):
        orders = []
        for split_batches in (True, False):
            reset_accelerate()
            loader = self.loader(split_batches=split_batches)
            orders.append([shard.batch for shard in loader.micro_batches(experience("abcdefghij"), epoch=0)])

        assert orders[0] == orders[1]

    def test_seed_experience_and_epoch_give_the_order(self):
        def order(seed=0, index=0, epoch=0):
            reset_accelerate()
            loader = self.loader(seed=seed)
            return "".join(shard.batch for shard in loader.micro_batches(experience("abcdefghij", index), epoch))

        first = order()
        assert order() == first
        torch.manual_seed(5)
        assert order() == first
        others = [order(epoch=1), order(index=1), order(seed=1), first, "abcdefghij"]
        assert len(set(others)) == len(others)

    def test_one_loader_serves_every_experience(self):
        loader = self.loader()

        for steps in ("abcdefghij", "abc", "abcdefg"):
            assert sorted("".join(shard.batch for shard in loader.micro_batches(experience(steps), epoch=0))) == list(
                steps
            )

        assert len(self.accelerator._dataloaders) == 1

    def test_an_update_ends_with_its_last_batch_and_with_the_experience(self):
        loader = self.loader(accumulation=2)

        for _ in range(2):
            shards = list(loader.micro_batches(experience("abcdefghij"), epoch=0))
            assert [shard.is_last for shard in shards] == [False, True, True]


class Words(Letters):
    """An algorithm that counts tokens: an example is a word, each letter of it a token that follows on the others."""

    def __init__(self, token_budget):
        self.system = SimpleNamespace(token_budget=token_budget)
        self.num_counts = 0

    @staticmethod
    def collate_fn(batch):
        return tuple(batch)

    def num_tokens(self, steps):
        self.num_counts += 1
        return len({word[:end] for word in steps for end in range(1, len(word) + 1)})


class TestTrees:
    """How examples of one tree stay together, and within the budget."""

    # Distinct tokens: 4, 4 and 9, of which the first word has 7 and the second 3.
    ONE, OTHER, LARGE = ("aab", "aac"), ("bab", "bac"), ("ccccccc", "cdd")

    def parts(self, steps, trees, algorithm, epoch=0, batch_size=8):
        loader = ExperienceLoader(OneOfSeveral(1, 0, True), algorithm, batch_size, 1, seed=0)
        return [shard.batch for shard in loader.micro_batches(experience(steps, trees=trees), epoch)]

    def test_they_come_in_another_order_each_epoch_with_their_examples_in_theirs(self):
        trees = {"abc": 0, "de": 1, "fghi": 2, "j": 3}
        numbers = [number for letters, number in trees.items() for _ in letters]

        orders = {tuple(self.parts("abcdefghij", numbers, Letters(), epoch, 10)) for epoch in range(100)}

        assert orders == {("".join(order),) for order in permutations(trees)}

    def test_parts_by_hand(self):
        """A budget of 8: two small trees go together; the large one is cut, and what follows joins its end.

        The parts come by their tokens: 8 of two trees, 7 of the long word or of the short one and a tree, 4, 3.
        """
        one, other, (long, short) = self.ONE, self.OTHER, self.LARGE
        expected = {
            ((*one, *other), (long,), (short,)),
            ((*other, *one), (long,), (short,)),
            ((long,), (short, *other), one),
            ((long,), (short, *one), other),
        }

        steps = [*one, *other, *self.LARGE]
        found = {tuple(self.parts(steps, [0, 0, 1, 1, 2, 2], Words(8), epoch)) for epoch in range(50)}

        assert found == expected

    def test_a_run_within_the_budget_is_counted_once(self):
        algorithm = Words(17)

        assert len(self.parts([*self.ONE, *self.OTHER, *self.LARGE], [0, 0, 1, 1, 2, 2], algorithm)) == 1
        assert algorithm.num_counts == 1

    @pytest.mark.parametrize("budget", [None, 1])
    def test_without_a_budget_or_a_count_a_run_stays_whole(self, budget):
        algorithm = Words(budget)
        if budget is not None:
            algorithm.num_tokens = lambda steps: None

        assert len(self.parts([*self.ONE, *self.OTHER], [0, 0, 1, 1], algorithm)) == 1

    @given(
        forest=st.lists(st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4), min_size=1),
        budget=st.integers(1, 20),
    )
    def test_whatever_the_trees(self, forest, budget):
        """No part is over the budget that can be smaller, no tree is cut that fits, no part ends before it must.

        The longest comes first.
        """
        algorithm = Words(budget)
        trees = [tree for tree, words in enumerate(forest) for _ in words]
        steps = [f"{tree}{word}{place}" for tree, words in enumerate(forest) for place, word in enumerate(words)]
        tree_of = dict(zip(steps, trees, strict=True))

        def fits(words):
            return algorithm.num_tokens(words) <= budget

        def tree_with(word):
            return [other for other in steps if tree_of[other] == tree_of[word]]

        (order,) = self.parts(steps, trees, Words(None), batch_size=len(steps))
        parts = self.parts(steps, trees, algorithm, batch_size=len(steps))

        lengths = [algorithm.num_tokens(part) for part in parts]
        assert lengths == sorted(lengths, reverse=True)
        parts.sort(key=lambda part: order.index(part[0]))
        assert sum(parts, ()) == order
        for part, following in pairwise([(), *parts]):
            assert len(following) == 1 or fits(following)
            for word in following:
                assert set(tree_with(word)) <= set(following) or not fits(tree_with(word))
            first = following[0]
            if fits(tree_with(first)):
                assert not part or not fits([*part, *tree_with(first)])
            elif first != tree_with(first)[0]:  # a tree that has to be cut begins with a part of its own
                assert not fits([*part, first])


class TestSeveralProcesses:
    """What each process is given, taken one after the other."""

    def shards(self, steps, num_processes, split_batches, batch_size=4, algorithm=None, trees=None):
        return [
            list(
                ExperienceLoader(
                    OneOfSeveral(num_processes, rank, split_batches), algorithm or Letters(), batch_size, 1, seed=3
                ).micro_batches(experience(steps, trees=trees), epoch=0)
            )
            for rank in range(num_processes)
        ]

    @pytest.mark.parametrize("split_batches", [True, False])
    @pytest.mark.parametrize("count", range(1, 10))
    def test_they_share_the_batches_of_one_process(self, split_batches, count):
        letters = "abcdefghij"[:count]
        (alone,) = self.shards(letters, 1, split_batches)

        ranks = self.shards(letters, 2, split_batches)

        assert len(ranks[0]) == len(ranks[1]) == len(alone)
        for whole, *parts in zip(alone, *ranks, strict=True):
            with_examples = [part for part in parts if part.loss_weight]
            assert "".join(part.batch for part in with_examples) == whole.batch
            assert sum(part.loss_weight for part in parts) == pytest.approx(whole.loss_weight)
            assert {part.is_last for part in parts} == {True}

    @pytest.mark.parametrize("split_batches", [True, False])
    def test_a_process_without_an_example_steps_on_a_placeholder_of_share_0(self, split_batches):
        first, second, third = self.shards("ab", 3, split_batches, batch_size=6)

        assert [shard.loss_weight for shard in (*first, *second)] == [1 / 2, 1 / 2]
        assert third == [MicroBatch("a", 0, True)]

    @pytest.mark.parametrize("split_batches", [True, False])
    def test_one_with_fewer_parts_steps_on_placeholders_until_the_others_are_done(self, split_batches):
        """One process has three examples too large to go together, the other two that make one part."""
        steps = ["aaa", "bbb", "ccc", "da", "db"]

        first, second = self.shards(steps, 2, split_batches, 6, Words(3), trees=[0] * 5)

        assert [(shard.batch, shard.loss_weight) for shard in first] == [((word,), 1 / 5) for word in steps[:3]]
        assert [shard.loss_weight for shard in second] == [2 / 5, 0, 0]
        assert second[0].batch == ("da", "db")
        for shards in (first, second):
            assert [shard.is_last for shard in shards] == [False, False, True]

    def test_a_placeholder_does_not_change_what_the_example_counts_elsewhere(self):
        loader = ExperienceLoader(OneOfSeveral(1, 0, True), Letters(), 2, 1, seed=0)
        list(loader.micro_batches(experience("a"), epoch=0))

        assert loader._examples.items == [Example("a", 1.0)]
        assert loader._collate([Example(None, 0.0)]) == ("a", 0.0)
        assert loader._collate([Example("a", 0.25), Example(None, 0.0), Example("b", 0.5)]) == ("ab", 0.75)


class TestTellingAccelerate:
    def test_gradients_are_synchronised_in_the_last_micro_batch_of_each_update(self):
        accelerator = Accelerator(cpu=True, dataloader_config=DataLoaderConfiguration(split_batches=True))
        loader = ExperienceLoader(accelerator, Words(1), batch_size=2, accumulation=2, seed=0)
        module = accelerator.prepare(torch.nn.Linear(1, 1))
        synchronised, told = [], []
        for micro_batch in loader.micro_batches(experience(["a", "b", "c", "d", "e", "f", "g"]), epoch=0):
            with accelerator.accumulate(module):
                synchronised.append((accelerator.sync_gradients, micro_batch.is_last))
                told.append(accelerator.gradient_accumulation_steps)

        assert [sync for sync, _ in synchronised] == [False, False, False, True, False, False, True]
        assert all(sync == is_last for sync, is_last in synchronised)
        assert told == [4, 4, 4, 4, 3, 3, 3]
        assert accelerator.gradient_accumulation_steps == 1


# --- Shards of a batch -----------------------------------------------------------------------------------------


def costs(tokens):
    return lambda shard: sum(tokens[index] for index in shard)


def test_equal_runs():
    assert contiguous_shards([5, 3, 1, 0, 2], 2) == [[5, 3, 1], [0, 2]]
    assert contiguous_shards([7], 3) == [[7], [], []]


def test_the_costliest_trees_come_first_and_to_the_least_loaded_hand():
    # Trees 0: 90 tokens, 1: 10, 2: 60, 3: 40. Dealt as 90 | 60, then 40 to the 60, then 10 to the 90.
    tokens, trees = [90, 10, 60, 40], [0, 1, 2, 3]
    assert balanced_shards([0, 1, 2, 3], trees, 2, 2, costs(tokens)) == [[0, 1], [2, 3]]
    # In another order the equal runs would be 90 + 60 against 10 + 40.
    assert balanced_shards([0, 2, 1, 3], trees, 2, 2, costs(tokens)) == [[0, 1], [2, 3]]


def test_a_hand_has_no_more_examples_than_there_is_room_for():
    tokens = [9, 1, 1, 1]
    assert sorted(map(len, balanced_shards([0, 1, 2, 3], [0, 1, 2, 3], 2, 2, costs(tokens)))) == [2, 2]
    assert balanced_shards([0, 1, 2, 3], [0, 1, 2, 3], 2, 3, costs(tokens)) == [[0], [1, 2, 3]]


def test_a_large_tree_is_cut_where_that_is_quicker():
    assert balanced_shards([0, 1, 2, 3], [0, 0, 0, 0], 2, 4, costs([5] * 4)) == [[0, 1], [2, 3]]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 100)), min_size=1, max_size=8), st.integers(1, 4), st.data()
)
def test_everything_is_dealt_once_and_never_worse_than_in_equal_runs(sizes, num_shards, data):
    trees = [tree for tree, (count, _) in enumerate(sizes) for _ in range(count)]
    tokens = [cost for count, cost in sizes for _ in range(count)]
    batch = list(range(len(trees)))
    largest = data.draw(st.integers(-(-len(batch) // num_shards), len(batch)))

    rank_shards = balanced_shards(batch, trees, num_shards, largest, costs(tokens))

    assert sorted(index for shard in rank_shards for index in shard) == batch
    assert len(rank_shards) == num_shards
    assert max(map(len, rank_shards)) <= largest
    assert all(shard == sorted(shard) for shard in rank_shards)
    cost = costs(tokens)
    assert max(map(cost, rank_shards)) <= max(map(cost, contiguous_shards(batch, num_shards)))
