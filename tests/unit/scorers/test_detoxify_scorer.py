import sys

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertTokenizer

from astra_accel.scorers import DetoxifyScorer

LIMIT = 12
WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "hello",
    "you",
    "are",
    "bad",
    "good",
    "?",
    "[",
    "]",
    "sep",
]
TEXTS = [
    "you are bad",
    "",
    "hello",
    "good " * 40,
    "hello you are good ?",
    "bad bad",
    "you bad you bad you bad",
]


@pytest.fixture
def tiny(tmp_path):
    """The arguments of a tiny random checkpoint, in detoxify's format, and its plain model and tokenizer."""
    torch.manual_seed(0)
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LIMIT,
        num_labels=3,
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config).eval()
    tokenizer.save_pretrained(tmp_path)
    config.save_pretrained(tmp_path)
    architecture = {
        "model_type": str(tmp_path),
        "model_name": "BertForSequenceClassification",
        "tokenizer_name": "BertTokenizer",
        "num_classes": 3,
    }
    trained = {
        "dataset": {"args": {"classes": ["toxic", "insult", "threat"]}},
        "arch": {"args": architecture},
    }
    checkpoint = str(tmp_path / "tiny.ckpt")
    torch.save({"config": trained, "state_dict": model.state_dict()}, checkpoint)
    arguments = {"checkpoint": checkpoint, "huggingface_config_path": str(tmp_path)}
    return arguments, model, AutoTokenizer.from_pretrained(tmp_path)


@torch.no_grad()
def probability(model, tokenizer, text, column):
    ids = [WORDS.index("[CLS]"), *tokenizer(text, add_special_tokens=False).input_ids[: LIMIT - 2]]
    return model(input_ids=torch.tensor([[*ids, WORDS.index("[SEP]")]])).logits.sigmoid()[0, column].item()


@pytest.mark.parametrize("batch_size", [1, 2, 32])
@pytest.mark.parametrize(("label", "column"), [("toxicity", 0), ("threat", 2)])
def test_batches_score_as_a_plain_forward_of_each_text(tiny, label, column, batch_size):
    arguments, model, tokenizer = tiny
    expected = [probability(model, tokenizer, text, column) for text in TEXTS]
    scores = DetoxifyScorer(label=label, batch_size=batch_size, **arguments).score(TEXTS)
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.05


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_categories_are_all_labels_of_a_plain_forward(tiny, batch_size):
    arguments, model, tokenizer = tiny
    texts = [*TEXTS, TEXTS[0]]
    found = DetoxifyScorer(batch_size=batch_size, **arguments).score_categories(texts)
    assert list(found) == ["toxicity", "insult", "threat"]
    for column, scores in enumerate(found.values()):
        assert scores == pytest.approx([probability(model, tokenizer, text, column) for text in texts], abs=1e-5)


def test_one_text_is_a_list_of_one_score(tiny):
    arguments, model, tokenizer = tiny
    expected = [probability(model, tokenizer, "you are bad", 0)]
    assert DetoxifyScorer(**arguments).score(["you are bad"]) == pytest.approx(expected, abs=1e-6)


def test_odd_texts_are_read_as_text(tiny):
    arguments, *_ = tiny
    odd, question, special, spelled = DetoxifyScorer(**arguments).score(
        ["bad \ud800", "bad ?", "bad [SEP] you", "bad [ sep ] you"]
    )
    assert odd == pytest.approx(question, abs=1e-6)
    assert special == pytest.approx(spelled, abs=1e-6)


def test_an_unknown_variant_lists_the_variants_and_loads_nothing(monkeypatch):
    loaded = []
    monkeypatch.setattr("detoxify.detoxify.load_checkpoint", lambda *a, **k: loaded.append(a))
    with pytest.raises(ValueError, match="unknown variant 'tiny': detoxify has 'original', 'unbiased', 'multi"):
        DetoxifyScorer("tiny")
    assert loaded == []


def test_an_unknown_label_lists_the_labels(tiny):
    arguments, *_ = tiny
    with pytest.raises(ValueError, match="unknown label 'obscene': the model has 'toxicity', 'insult', 'threat'"):
        DetoxifyScorer(label="obscene", **arguments)


def test_the_model_is_frozen_and_detoxify_is_told_the_device(tiny):
    arguments, *_ = tiny
    device = torch.device("cpu")
    detoxify = DetoxifyScorer(device=device, **arguments)._detoxify
    assert detoxify.device is device
    model = detoxify.model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "detoxify.detoxify", None)
    with pytest.raises(ImportError, match=r"pip install 'astra-accel\[detoxify\]'"):
        DetoxifyScorer()
