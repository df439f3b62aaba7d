"""Novelty by embeddings is the distance to the nearest earlier probe."""

from __future__ import annotations

import io

import pytest
import torch

from astra_accel.methods.ast.rewards.embedding import EmbeddingNovelty
from astra_accel.methods.ast.rewards.sentence_embedder import SentenceEmbedder
from astra_accel.methods.ast.rewards.term import Turns

EARLIER = ["My dog is old.", "It rains again.", "Who took my keys?", "It rains again."]
PROBES = ["My dog is very old.", "The rain does not stop.", "I like trains.", "Who took my keys?", "", " "]


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    return SentenceEmbedder()


def novelty(term: EmbeddingNovelty, *probes: str) -> list[float]:
    return term.values(Turns(None, [""] * len(probes), probes, [""] * len(probes)))


def test_it_is_the_least_cosine_distance_by_a_plain_loop(embedder):
    term = EmbeddingNovelty(embedder)
    term.observe(EARLIER, 0)
    expected = []
    for probe in PROBES:
        own = embedder.embed([probe])[0]
        distances = [1 - float(torch.cosine_similarity(own, embedder.embed([text])[0], dim=0)) for text in EARLIER]
        expected.append(min(distances) if probe.strip() else 0.0)
    found = novelty(term, *PROBES)
    assert found == pytest.approx(expected, abs=1e-5)
    # What was said is not new, what says the same little, and what is of something else is.
    old_dog, rain, trains, same, *silent = found
    assert same == pytest.approx(0.0, abs=1e-6)
    assert old_dog < 0.1 < rain < trains
    assert silent == [0.0, 0.0]


def test_all_is_new_at_first_but_silence(embedder):
    assert novelty(EmbeddingNovelty(embedder), "anything", "", " ") == [1.0, 0.0, 0.0]


class Counting:
    """Notes what it is asked to embed."""

    def __init__(self, embedder: SentenceEmbedder) -> None:
        self.embedder = embedder
        self.asked: list[str] = []

    def embed(self, texts):
        self.asked += texts
        return self.embedder.embed(texts)


def test_an_earlier_probe_is_embedded_once(embedder):
    counting = Counting(embedder)
    term = EmbeddingNovelty(counting, reservoir_size=3)
    term.observe(["a", "b", "a"], 0)
    novelty(term, "x")
    novelty(term, "y", "y", "z")
    assert sorted(counting.asked) == ["a", "b", "x", "y", "z"]
    term.observe([f"{number}" for number in range(20)], 1)
    novelty(term, "x")
    assert len(counting.asked) <= 5 + 3 + 1
    assert set(term.state()["embeddings"]) == set(term.reservoir.texts)


def test_its_state_brings_it_back_bit_for_bit(embedder):
    """Through the file of a checkpoint, written when the newest probes are not embedded yet."""
    term = EmbeddingNovelty(embedder, reservoir_size=5)
    term.observe(EARLIER, 0)
    novelty(term, *PROBES)
    term.observe(["Something else.", "And a longer probe that pads the others."], 1)
    file = io.BytesIO()
    torch.save(term.state(), file)
    file.seek(0)
    counting = Counting(embedder)
    other = EmbeddingNovelty(counting, reservoir_size=5)
    other.load_state(torch.load(file, weights_only=True))
    assert novelty(other, *PROBES) == novelty(term, *PROBES)
    # What was embedded then is not embedded again.
    assert not {"My dog is old.", "It rains again."} & set(counting.asked)
