"""Novelty by self-BLEU is sacrebleu's number, and says what it is to be like something."""

from __future__ import annotations

import builtins
import math
import random

import pytest
import sacrebleu

from astra_accel.methods.ast.rewards.self_bleu import SelfBLEUNovelty
from astra_accel.methods.ast.rewards.term import Turns

WORDS = ["I", "you", "never", "said", "it's", "rain,", "again.", "the", "dog", "3.5%", "¿qué?", "dog", "<skipped>"]


def novelty(term: SelfBLEUNovelty, *probes: str) -> list[float]:
    return term.values(Turns(None, [""] * len(probes), probes, [""] * len(probes)))


def observed(*earlier: str, **options: int) -> SelfBLEUNovelty:
    term = SelfBLEUNovelty(**options)
    term.observe(earlier, 0)
    return term


def test_it_is_sacrebleus_sentence_bleu_against_all_earlier_probes():
    """Random sentences of few words, so that n-grams of all orders are shared; also of less than 4 words."""
    generator = random.Random(0)
    sentences = [" ".join(generator.choices(WORDS, k=generator.randint(1, 12))) for _ in range(160)]
    earlier, probes = sentences[:60], [*sentences[60:], "line\nbreaks and tabs\t", "unheard of", "dog"]
    found = novelty(observed(*earlier), *probes)
    expected = [1 - sacrebleu.sentence_bleu(probe, earlier).score / 100 for probe in probes]
    tokenless = [probe.strip() in ("<skipped>",) for probe in probes]
    for value, wanted, no_token in zip(found, expected, tokenless, strict=True):
        assert value == pytest.approx(0.0 if no_token else wanted, abs=1e-12)
    assert len({round(value, 3) for value in found}) > 50


def test_by_hand():
    """``the dog said it`` against ``the dog ate it``: 3 of 4 words and 1 of 3 pairs are shared, none of 2 triples.

    No triple and no quadruple of the 2 and 1 there are, so these count 1/2 and 1/4 (exponential smoothing)::

        BLEU = (3/4 * 1/3 * (1/2)/2 * (1/4)/1) ** (1/4)
    """
    (found,) = novelty(observed("the dog ate it"), "the dog said it")
    assert found == pytest.approx(1 - (3 / 4 * 1 / 3 * 1 / 4 * 1 / 4) ** 0.25)


def test_half_of_an_earlier_probe_is_a_little_new():
    """All words match, but 2 of 4: the brevity penalty exp(1 - 4/2)."""
    assert novelty(observed("a b c d"), "a b") == [pytest.approx(1 - math.exp(-1))]


def test_what_was_said_is_not_new_and_what_was_not_is():
    term = observed("My dog is old.", "It rains again.")
    same, other = novelty(term, "It rains again.", "Completely different words")
    assert same == 0.0
    assert other == 1.0


def test_all_is_new_at_first_but_silence():
    assert novelty(SelfBLEUNovelty(), "anything", "", " \n") == [1.0, 0.0, 0.0]


def test_silence_is_never_new_and_never_remembered():
    term = observed("", "  ", "word")
    assert term.reservoir.texts == ("word",)
    assert novelty(term, "", " \t", "new") == [0.0, 0.0, 1.0]


def test_a_probe_is_judged_alike_in_any_batch():
    term = observed("one two three", "four five six")
    probes = ["one two", "four two six", "one two", "seven"]
    assert novelty(term, *probes) == [value for probe in probes for value in novelty(term, probe)]


def test_the_next_experience_counts():
    term = observed("first probe")
    assert novelty(term, "second one") == [1.0]
    term.observe(["second one"], 1)
    assert novelty(term, "second one") == [0.0]


def test_its_state_brings_it_back():
    term = observed(*map(str, range(40)), reservoir_size=20)
    other = SelfBLEUNovelty(reservoir_size=20)
    other.load_state(term.state())
    probes = list(map(str, range(50)))
    assert novelty(other, *probes) == novelty(term, *probes)
    assert novelty(other, *probes) != novelty(SelfBLEUNovelty(reservoir_size=20), *probes)


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("sacrebleu"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"SelfBLEUNovelty needs sacrebleu: pip install 'astra-accel\[novelty\]'"):
        SelfBLEUNovelty()
