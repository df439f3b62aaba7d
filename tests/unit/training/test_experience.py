import pytest
import torch
from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import DataLoaderConfiguration
from hypothesis import given
from hypothesis import strategies as st

from astra_accel.training.experience import PAD, Example, Experience, ExperienceLoader, Shard, plan_batches
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

    def prepare(self, loader):
        return prepare_data_loader(
            loader,
            num_processes=self.num_processes,
            process_index=self.process_index,
            split_batches=self.split_batches,
            put_on_device=False,
        )


def experience(steps, index=0):
    return Experience(index, [], list(steps))


class TestPlanBatches:
    def test_the_example_of_the_docstring(self):
        batches, shares = plan_batches([1] * 5, [0, 1, 2, 3, 4], batch_size=4, accumulation=1, num_processes=2)

        assert batches == [[0, 2, 1, 3], [4, PAD, PAD, PAD]]
        assert shares == [1 / 4, 1 / 4, 1 / 4, 1 / 4, 1]

    def test_accumulated_batches_are_one_update(self):
        batches, shares = plan_batches([1] * 5, [4, 3, 2, 1, 0], batch_size=2, accumulation=2, num_processes=1)

        assert batches == [[4, 3], [2, 1], [0, PAD]]
        assert shares == [1, 1 / 4, 1 / 4, 1 / 4, 1 / 4]

    def test_an_update_that_ends_with_the_experience_has_fewer_batches(self):
        _, shares = plan_batches([1] * 3, [0, 1, 2], batch_size=2, accumulation=8, num_processes=1)

        assert shares == [1 / 3] * 3

    def test_shares_follow_the_weights(self):
        # As a mean over tokens: an example of 6 tokens counts thrice as much as one of 2 in the same update.
        _, shares = plan_batches([2, 6, 5, 0], [0, 1, 2, 3], batch_size=2, accumulation=1, num_processes=1)

        assert shares == [2 / 8, 6 / 8, 1, 0]

    def test_an_update_without_weight_has_no_share(self):
        _, shares = plan_batches([0, 0, 3], [0, 1, 2], batch_size=2, accumulation=1, num_processes=1)

        assert shares == [0, 0, 1]

    def test_examples_are_dealt_out_in_turn(self):
        batches, _ = plan_batches([1] * 4, [3, 2, 1, 0], batch_size=6, accumulation=1, num_processes=3)

        assert batches == [[3, 0, 2, PAD, 1, PAD]]

    def test_no_example_is_no_batch(self):
        assert plan_batches([], [], batch_size=4, accumulation=2, num_processes=2) == ([], [])

    @given(data=st.data(), count=st.integers(1, 40), per_rank=st.integers(1, 5), ranks=st.integers(1, 4))
    def test_whatever_the_numbers(self, data, count, per_rank, ranks):
        weights = data.draw(st.lists(st.floats(0.125, 1000), min_size=count, max_size=count))
        order = data.draw(st.permutations(range(count)))
        accumulation = data.draw(st.integers(1, 4))

        batches, shares = plan_batches(weights, order, per_rank * ranks, accumulation, ranks)

        assert [len(batch) for batch in batches] == [per_rank * ranks] * len(batches)
        assert sorted(index for batch in batches for index in batch if index != PAD) == list(range(count))
        for number, batch in enumerate(batches):
            hands = [batch[start : start + per_rank] for start in range(0, len(batch), per_rank)]
            held = [sum(index != PAD for index in hand) for hand in hands]
            assert max(held) - min(held) <= 1
            full = number < len(batches) - 1
            assert sum(held) == per_rank * ranks if full else sum(held) >= 1
        for start in range(0, len(batches), accumulation):
            update = [index for batch in batches[start : start + accumulation] for index in batch if index != PAD]
            assert sum(shares[index] for index in update) == pytest.approx(1)
            for index in update:
                assert shares[index] * weights[update[0]] == pytest.approx(shares[update[0]] * weights[index])

    @given(count=st.integers(1, 40), batch_size=st.integers(1, 8))
    def test_equal_weights_have_equal_shares(self, count, batch_size):
        batches, shares = plan_batches([3.0] * count, range(count), batch_size, 1, 1)

        for batch in batches:
            held = [index for index in batch if index != PAD]
            assert [shares[index] for index in held] == pytest.approx([1 / len(held)] * len(held))


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
        shards = list(self.loader(**settings).of(experience("abcdefghij"), epoch=0))

        assert sorted("".join(shard.batch for shard in shards)) == list("abcdefghij")
        assert [len(shard.batch) for shard in shards] == [4, 4, 2]
        assert [shard.share for shard in shards] == [1, 1, 1]

    def test_the_shares_of_accumulated_batches_add_up_to_one(self):
        shards = list(self.loader(accumulation=2).of(experience("abcdefghij"), epoch=0))

        assert [shard.share for shard in shards] == [1 / 2, 1 / 2, 1]

    def test_the_algorithm_weighs_the_examples(self):
        shards = list(self.loader(WeighedLetters, accumulation=3).of(experience("abcdefghij"), epoch=0))

        weights = [sum("_abcdefghij".index(letter) for letter in shard.batch) for shard in shards]
        assert [shard.share for shard in shards] == pytest.approx([weight / 55 for weight in weights])

    def test_the_settings_of_the_accelerator_do_not_change_the_order(self):
        orders = []
        for split_batches in (True, False):
            reset_accelerate()
            loader = self.loader(split_batches=split_batches)
            orders.append([shard.batch for shard in loader.of(experience("abcdefghij"), epoch=0)])

        assert orders[0] == orders[1]

    def test_seed_experience_and_epoch_give_the_order(self):
        def order(seed=0, index=0, epoch=0):
            reset_accelerate()
            return "".join(shard.batch for shard in self.loader(seed=seed).of(experience("abcdefghij", index), epoch))

        first = order()
        assert order() == first
        torch.manual_seed(5)
        assert order() == first
        others = [order(epoch=1), order(index=1), order(seed=1), first, "abcdefghij"]
        assert len(set(others)) == len(others)

    def test_one_loader_serves_every_experience(self):
        loader = self.loader()

        for steps in ("abcdefghij", "abc", "abcdefg"):
            assert sorted("".join(shard.batch for shard in loader.of(experience(steps), epoch=0))) == list(steps)

        assert len(self.accelerator._dataloaders) == 1

    def test_gradients_are_synchronised_after_the_last_batch_of_an_experience(self):
        # Accumulation must not go on into the next experience, whose batches other weights sampled.
        loader = self.loader()
        module = torch.nn.Linear(1, 1)
        self.accelerator.gradient_state.plugin_kwargs.update(num_steps=2)

        syncs = []
        for _ in range(2):
            for _ in loader.of(experience("abcdefghij"), epoch=0):
                with self.accelerator.accumulate(module):
                    syncs.append(self.accelerator.sync_gradients)

        assert syncs == [False, True, True] * 2


class TestSeveralProcesses:
    """What each process is given, taken one after the other."""

    def shards(self, steps, num_processes, split_batches, batch_size=4, accumulation=1):
        return [
            list(
                ExperienceLoader(
                    OneOfSeveral(num_processes, rank, split_batches), Letters(), batch_size, accumulation, seed=3
                ).of(experience(steps), epoch=0)
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
            with_examples = [part for part in parts if part.share]
            assert sorted("".join(part.batch for part in with_examples)) == sorted(whole.batch)
            assert sum(part.share for part in parts) == pytest.approx(whole.share)

    @pytest.mark.parametrize("split_batches", [True, False])
    def test_a_process_without_an_example_steps_on_a_placeholder_of_share_0(self, split_batches):
        first, second, third = self.shards("ab", 3, split_batches, batch_size=6)

        assert [shard.share for shard in (*first, *second)] == [1 / 2, 1 / 2]
        assert third == [Shard("a", 0)]

    def test_a_placeholder_does_not_change_what_the_example_counts_elsewhere(self):
        loader = ExperienceLoader(OneOfSeveral(1, 0, True), Letters(), 2, 1, seed=0)
        list(loader.of(experience("a"), epoch=0))

        assert loader._examples.items == [Example("a", 1.0)]
        assert loader._collate([Example(None, 0.0)]) == Shard("a", 0.0)
        assert loader._collate([Example("a", 0.25), Example(None, 0.0), Example("b", 0.5)]) == Shard("ab", 0.75)
