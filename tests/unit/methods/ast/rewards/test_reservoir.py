"""A reservoir is a sample that follows from the seed and from what was said where."""

from __future__ import annotations

import io

import pytest
import torch

from astra_accel.methods.ast.rewards.novelty import Reservoir


def filled(size: int, seed: int = 0, rounds: int = 4, each: int = 5) -> Reservoir:
    reservoir = Reservoir(size, seed)
    for place in range(rounds):
        reservoir.add([f"{place}/{text}" for text in range(each)], place)
    return reservoir


def test_it_keeps_everything_until_it_is_full():
    assert sorted(filled(20).texts) == sorted(f"{place}/{text}" for place in range(4) for text in range(5))
    assert len(filled(19).texts) == 19


def test_a_smaller_one_holds_a_part_of_a_larger_one():
    assert filled(7).texts == filled(20).texts[:7]


def test_each_seed_chooses_for_itself():
    assert filled(5).texts == filled(5).texts
    assert filled(5).texts != filled(5, seed=1).texts


def test_every_text_is_as_likely_to_stay_whenever_it_was_added():
    """5 of 20 in 2000 reservoirs: each text stays in 500 on average, with a deviation of about 19."""
    stayed: dict[str, int] = {}
    for seed in range(2000):
        for text in filled(5, seed).texts:
            stayed[text] = stayed.get(text, 0) + 1
    assert len(stayed) == 20
    assert max(abs(count - 500) for count in stayed.values()) < 5 * 19


def test_with_a_half_life_recent_texts_stay_by_their_weight():
    """One of two texts, the later of which weighs 4 times as much: 1600 times of 2000, with a deviation of 18."""
    stayed = 0
    for seed in range(2000):
        reservoir = Reservoir(1, seed, half_life=1.5)
        reservoir.add(["early"], 2)
        reservoir.add(["late"], 5)
        stayed += reservoir.texts == ("late",)
    assert abs(stayed - 1600) < 5 * 18


def test_a_half_life_lasts_for_long_runs():
    reservoir = Reservoir(3, half_life=0.01)
    for place in range(0, 100_000, 999):
        reservoir.add([f"{place}/{text}" for text in range(3)], place)
        assert sorted(reservoir.texts) == [f"{place}/{text}" for text in range(3)]


def test_what_was_said_often_is_in_it_often():
    reservoir = Reservoir(10)
    reservoir.add(["often"] * 90 + ["once"] * 10, 0)
    assert reservoir.texts.count("often") > 5


def test_its_state_brings_it_back_and_it_goes_on_alike():
    """Through the file of a checkpoint; a half character is a text too."""
    reservoir, other = filled(6), Reservoir(6)
    reservoir.add(["\ud800 half"] * 40, 9)
    file = io.BytesIO()
    torch.save(reservoir.state(), file)
    file.seek(0)
    other.load_state(torch.load(file, weights_only=True))
    assert other.texts == reservoir.texts
    assert "\ud800 half" in other.texts
    for each in (reservoir, other):
        each.add(["a", "b", "c", "d"], 10)
    assert other.texts == reservoir.texts


def test_texts_are_another_object_whenever_they_change():
    reservoir = filled(3)
    before = reservoir.texts
    assert reservoir.texts is before
    reservoir.add(["x"] * 50, 7)
    assert reservoir.texts is not before


@pytest.mark.parametrize("size", [0, -1])
def test_it_holds_at_least_one_text(size):
    with pytest.raises(ValueError, match=f"reservoir_size is {size}, expected at least 1"):
        Reservoir(size)


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("nan")])
def test_a_half_life_is_above_0(half_life):
    with pytest.raises(ValueError, match=f"reservoir_half_life is {half_life}, expected a number above 0, or None"):
        Reservoir(1, half_life=half_life)
