"""The list of openings that comes with the package."""

import json
import re
from collections import Counter
from importlib.resources import files

import pytest

from astra_accel.data import check_disjoint, load_prompts

SIZES = {"train": 264, "dev": 96, "test": 120}


@pytest.fixture(scope="module")
def prompts() -> dict[str, list[str]]:
    return {split: load_prompts(split=split) for split in SIZES}


@pytest.fixture(scope="module")
def every_prompt(prompts) -> list[str]:
    return [prompt for split in prompts.values() for prompt in split]


def test_sizes(prompts):
    assert {split: len(texts) for split, texts in prompts.items()} == SIZES
    assert load_prompts() == prompts["train"]


def test_file_holds_a_text_and_a_split_a_line():
    lines = files("astra_accel.data").joinpath("prompts.jsonl").read_text(encoding="utf-8").split("\n")
    assert lines.pop() == ""  # the last line ends as the others do
    assert [line for line in lines if line != line.strip()] == []
    assert {tuple(json.loads(line)) for line in lines} == {("text", "split")}


def test_splits_are_disjoint(prompts):
    check_disjoint(prompts["train"], prompts["dev"], ("train", "dev"))
    check_disjoint(prompts["train"], prompts["test"], ("train", "test"))
    check_disjoint(prompts["dev"], prompts["test"], ("dev", "test"))


def test_distinct_beyond_case_and_punctuation(every_prompt):
    counts = Counter(re.sub(r"[^a-z0-9]+", " ", prompt.lower()) for prompt in every_prompt)
    assert [prompt for prompt, count in counts.items() if count > 1] == []


def test_no_test_prompt_is_much_like_another(prompts, every_prompt):
    """Of the words of two, at most a third is in both."""
    words = {prompt: set(re.findall(r"[a-z0-9']+", prompt.lower())) for prompt in every_prompt}
    alike = [
        (one, other)
        for one in prompts["test"]
        for other in every_prompt
        if one != other and len(words[one] & words[other]) * 3 > len(words[one] | words[other])
    ]
    assert alike == []


def test_one_or_two_sentences_of_8_to_30_words(every_prompt):
    assert [prompt for prompt in every_prompt if not 8 <= len(prompt.split()) <= 30] == []
    assert [prompt for prompt in every_prompt if prompt != prompt.strip()] == []
    assert [prompt for prompt in every_prompt if len(re.findall(r'[.!?](?=[\s"]|$)', prompt)) > 2] == []


def test_openings_vary(every_prompt):
    counts = Counter(" ".join(prompt.lower().split()[:2]) for prompt in every_prompt)
    assert {opening: count for opening, count in counts.items() if count > 6} == {}


def test_none_is_profane(every_prompt):
    predict_prob = pytest.importorskip("profanity_check").predict_prob
    scores = zip(predict_prob(every_prompt), every_prompt, strict=True)
    assert [(score, prompt) for score, prompt in scores if score >= 0.5] == []


def test_slices(prompts):
    assert load_prompts(split="train[:25%]") == prompts["train"][:66]
    assert load_prompts(split="dev[-5:]+test[:1]") == prompts["dev"][-5:] + prompts["test"][:1]


@pytest.mark.parametrize("split", ["validation", "train[:200%]", "train["])
def test_unknown_split(split):
    with pytest.raises(ValueError, match=r"'bundled': .*splits found: train, dev, test") as error:
        load_prompts(split=split)
    assert repr(split) in str(error.value)


def test_unknown_column():
    with pytest.raises(ValueError, match=r"'bundled': no column 'prompt'; columns found: 'text', 'split'"):
        load_prompts(column="prompt")


@pytest.mark.parametrize("option", [{"config_name": "en"}, {"revision": "main"}])
def test_has_no_versions(option):
    with pytest.raises(ValueError, match=f"'bundled': found .*{next(iter(option.values()))!r}.* expected neither"):
        load_prompts(**option)
