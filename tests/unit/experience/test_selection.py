"""What a replay keeps and draws, and how alike texts are: by hand, against a plain loop, by how often it happens."""

from __future__ import annotations

import random

import numpy as np
import pytest

from astra_accel.config import ReplayConfiguration
from astra_accel.experience.selection import NUM_COMPARED, draw, mean_overlap, overlap, select, words_of
from tests.helpers.replayed import kept


def texts(examples) -> list[str]:
    return [str(example.entry.probes[0]) for example in examples]


def configured(**settings) -> ReplayConfiguration:
    return ReplayConfiguration(**{"size": 3, **settings})


OLD = [kept(0.9, "a", collected=0), kept(0.1, "b", collected=1)]
NEW = [kept(0.5, "c", collected=2), kept(0.2, "d", collected=2)]


@pytest.mark.parametrize(
    ("priority", "staying"), [("return", ["a", "c", "d"]), ("recency", ["b", "c", "d"]), ("uniform", ["b", "c", "d"])]
)
def test_of_too_many_the_best_stay_or_the_newest(priority, staying):
    assert texts(select(OLD, NEW, configured(priority=priority))) == staying


def test_of_equal_ones_the_newer_stay():
    old, new = [kept(0.5, "a", collected=0)], [kept(0.5 - 1e-7, "b", collected=1), kept(0.1, "c", collected=1)]
    assert texts(select(old, new, configured(size=1))) == ["b"]
    assert texts(select(new[:1], [kept(0.5, "d", collected=1)], configured(size=1))) == ["d"]


def test_of_two_too_alike_the_better_stays():
    """``you are so rude`` shares 3 of its 4 words with ``you are rude today my friend``, that one 3 of 6."""
    long, short = "you are rude today my friend", "you are so rude"
    limit = configured(max_overlap=0.6)
    assert texts(select([kept(0.9, long)], [kept(0.5, short)], limit)) == [long]
    assert texts(select([kept(0.5, short)], [kept(0.9, long)], limit)) == [long]
    # Of the long one as the worse, only half of the words are shared.
    assert texts(select([kept(0.5, long)], [kept(0.9, short)], limit)) == [long, short]
    assert texts(select([kept(0.9, long)], [kept(0.5, short)], configured())) == [long, short]


def test_the_limit_itself_may_be_shared():
    pair = [kept(0.9, "a b"), kept(0.5, "b c")]
    assert texts(select([], pair, configured(max_overlap=0.5))) == ["a b", "b c"]
    assert texts(select([], pair, configured(max_overlap=0.49))) == ["a b"]
    assert texts(select([], pair, configured(max_overlap=0))) == ["a b"]


def test_what_goes_for_its_likeness_takes_nothing_with_it():
    """c is like b, and b like a, which is the best: so b goes, and c, which is unlike a, stays."""
    chain = [kept(0.9, "w x"), kept(0.5, "x y"), kept(0.1, "y z")]
    assert texts(select([], chain, configured(max_overlap=0.4))) == ["w x", "y z"]


def test_nothing_below_the_floor_of_fluency_is_kept():
    new = [kept(0.9, "a", fluency=-5.1), kept(0.1, "b", fluency=-5.0), kept(0.5, "c", fluency=None)]
    assert texts(select([], new, configured(min_fluency=-5.0))) == ["b"]
    assert texts(select([], new, configured())) == ["a", "b", "c"]


def _by_a_plain_loop(pool, config):
    """The definition, comparing everything with everything, on plain lists of words."""
    pool = [example for example in pool if config.min_fluency is None or example.entry.fluency >= config.min_fluency]
    staying: list = []
    latest_first = pool[::-1]
    for example in sorted(latest_first, key=lambda example: (-round(example.entry.value, 5), -example.collected)):
        words = set(example.entry.probes[0].lower().split())
        shares = [len(words & set(other.entry.probes[0].lower().split())) / len(words) for other in staying]
        if config.max_overlap is None or not any(share > config.max_overlap for share in shares):
            staying.append(example)
    if config.priority != "return":
        staying.sort(key=lambda example: -example.collected)
    return [example for example in pool if any(example is other for other in staying[: config.size])]


@pytest.mark.parametrize("priority", ["return", "recency", "uniform"])
@pytest.mark.parametrize("max_overlap", [None, 0.0, 0.4, 0.7])
def test_step_by_step_it_keeps_what_a_plain_loop_keeps(priority, max_overlap):
    numbers = random.Random(0)
    config = configured(size=12, priority=priority, max_overlap=max_overlap, min_fluency=-4.0)
    here: list = []
    dropped = 0
    for index in range(30):
        new = [
            kept(
                numbers.choice([0.0, 0.5, 1.0, numbers.random()]),
                " ".join(numbers.choices("abcdefghijklmnop", k=numbers.randint(1, 5))),
                collected=index,
                fluency=numbers.uniform(-5, -1),
            )
            for _ in range(numbers.randint(0, 6))
        ]
        expected = _by_a_plain_loop([*here, *new], config)
        found = select(here, new, config)
        assert [id(example) for example in found] == [id(example) for example in expected]
        assert len(found) <= 12
        # What was brought back from a file, where nothing is new, stays as it is.
        assert select([], found, config) == found
        dropped += len(here) + len(new) - len(found)
        here = found
    assert dropped > 20


THREE = [kept(0.2, "b", collected=4), kept(0.9, "a", collected=2), kept(0.1, "c", collected=3)]
ORDER = {"return": ["a", "b", "c"], "recency": ["b", "c", "a"]}


def drawn_often(examples, number, priority, times=20_000):
    generator = np.random.default_rng(0)
    found: dict[tuple[str, ...], float] = {}
    for _ in range(times):
        names = tuple(texts(draw(examples, number, priority, generator.random(len(examples)))))
        found[names] = found.get(names, 0.0) + 1 / times
    return found


@pytest.mark.parametrize("priority", ORDER)
def test_one_is_drawn_in_proportion_to_one_by_its_rank(priority):
    """1 : 1/2 : 1/3 is 6/11, 3/11, 2/11; a standard deviation is at most 0.0035."""
    first, second, third = ORDER[priority]
    found = drawn_often(THREE, 1, priority)
    assert [found[name,] for name in (first, second, third)] == pytest.approx([6 / 11, 3 / 11, 2 / 11], abs=0.014)


def test_the_second_is_drawn_from_the_rest():
    """The two best together: first the best, then the second of 3/11 + 2/11; or the other way round."""
    found = drawn_often(THREE, 2, "return")
    assert found["b", "a"] == pytest.approx(6 / 11 * 3 / 5 + 3 / 11 * 6 / 8, abs=0.014)


def test_uniform_draws_all_alike():
    found = drawn_often(THREE, 1, "uniform")
    assert list(found.values()) == pytest.approx([1 / 3] * 3, abs=0.014)


def test_equal_ones_have_the_same_rank():
    """Two best of rank 1, the third of rank 3: 3/7, 3/7, 1/7."""
    found = drawn_often([kept(0.5, "a"), kept(0.1, "b"), kept(0.5 + 1e-8, "c")], 1, "return")
    assert [found[name,] for name in "abc"] == pytest.approx([3 / 7, 1 / 7, 3 / 7], abs=0.014)


def test_no_more_are_drawn_than_there_are_and_none_twice():
    assert texts(draw(THREE, 5, "return", np.array([0.5, 0.0, 0.99]))) == ["b", "a", "c"]
    assert draw([], 3, "return", np.array([])) == []


# --- How alike texts are ---------------------------------------------------------------------------------------


def test_words_are_distinct_and_in_lower_case():
    assert words_of(["You are  what\nyou ARE.", "So"]) == {"you", "are", "what", "are.", "so"}


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("you are so rude", "you are rude today my friend", 3 / 4),
        ("you are rude today my friend", "you are so rude", 3 / 6),
        ("a b", "c d", 0.0),
        ("A b", "b a a", 1.0),
        ("", "a", 0.0),
        ("a", "", 0.0),
        ("", " ", 1.0),
    ],
)
def test_the_share_of_one_texts_words_that_the_other_has(one, other, share):
    assert overlap(words_of([one]), words_of([other])) == share


def test_the_mean_is_over_the_most_alike_of_the_others():
    """``a b`` has 1/2 of ``b c d`` and nothing of ``x``; ``b c d`` has 1/3 of ``a b``; ``x`` has nothing of any."""
    texts = [words_of([text]) for text in ("a b", "b c d", "x")]
    assert mean_overlap(texts) == pytest.approx((1 / 2 + 1 / 3 + 0) / 3)


def test_fewer_than_two_texts_are_like_nothing():
    assert mean_overlap([]) is None
    assert mean_overlap([words_of(["a"])]) is None


def test_of_many_texts_some_are_compared():
    """Each text is there three times in a row; at even distances, of every three one is taken, and none is alike."""
    texts = [words_of([f"word{place // 3}"]) for place in range(3 * NUM_COMPARED)]
    assert mean_overlap(texts) == 0.0
    assert mean_overlap(texts[: NUM_COMPARED - 2]) == 1.0
