import pytest
import torch
from transformers import BertConfig, BertModel

from astra_accel.core.scorer import ScorerError
from astra_accel.scorers import ClassifierScorer

LIMIT = 24
# Of many lengths, some longer than the models read, in an order that is not that of their lengths.
TEXTS = [
    "hello you",
    "",
    "good words of the last conversation " * 10,
    "bad",
    "you are bad and you are good, are you?",
    "\u00e9\u4e16\U0001f600",
    "x" * 200,
]


def read(tokenizer, text, limit=LIMIT):
    """A text's ids, worked out without batching, padding or truncation by the tokenizer."""
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.cls_token is None:
        return ids[:limit]
    return [tokenizer.cls_token_id, *ids[: limit - 2], tokenizer.sep_token_id]


@torch.no_grad()
def probabilities(model, ids, multi_label=False):
    logits = model(input_ids=torch.tensor([ids])).logits[0]
    return logits.sigmoid().tolist() if multi_label else logits.softmax(-1).tolist()


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "xlnet"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_batches_score_as_a_plain_forward_of_each_text(make_classifier, architecture, batch_size):
    folder, model, tokenizer = make_classifier(architecture)
    # XLNet reads any length; the empty text is no token to a decoder, and is read as a space.
    limit = 10_000 if architecture == "xlnet" else LIMIT
    texts = [text if tokenizer.cls_token or text else " " for text in TEXTS]
    expected = [probabilities(model, read(tokenizer, text, limit))[1] for text in texts]

    scores = ClassifierScorer(folder, "Toxic", batch_size=batch_size).score(TEXTS)

    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.05


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_categories_are_the_labels_that_were_named(make_classifier, batch_size, problem_type):
    folder, model, tokenizer = make_classifier(problem_type=problem_type)
    multi_label = problem_type is not None
    expected = [probabilities(model, read(tokenizer, text), multi_label) for text in TEXTS]

    scorer = ClassifierScorer(folder, "fine", categories=["RUDE", "Toxic"], batch_size=batch_size)
    found = scorer.score_categories(TEXTS)

    assert list(found) == ["rude", "Toxic"]
    assert found["rude"] == pytest.approx([row[2] for row in expected], abs=1e-5)
    assert found["Toxic"] == pytest.approx([row[1] for row in expected], abs=1e-5)


def test_without_named_categories_there_are_none(make_classifier):
    folder, *_ = make_classifier()
    assert ClassifierScorer(folder, "Toxic").score_categories(TEXTS) == {}
    with pytest.raises(ValueError, match="unknown label 'odd': the model has 'fine', 'Toxic', 'rude'"):
        ClassifierScorer(folder, "Toxic", categories=["odd"])


@pytest.mark.parametrize("label", ["rude", "RUDE"])
@pytest.mark.parametrize("problem_type", [None, "single_label_classification", "multi_label_classification"])
def test_the_problem_type_decides_between_softmax_and_sigmoid(make_classifier, label, problem_type):
    folder, model, tokenizer = make_classifier(problem_type=problem_type)
    ids = read(tokenizer, "you are bad")
    expected = probabilities(model, ids, multi_label=problem_type == "multi_label_classification")[2]
    assert ClassifierScorer(folder, label).score(["you are bad"]) == pytest.approx([expected], abs=1e-6)


def test_one_logit_is_a_sigmoid(make_classifier):
    folder, model, tokenizer = make_classifier(id2label={0: "toxic"}, label2id={"toxic": 0})
    (expected,) = probabilities(model, read(tokenizer, "you are bad"), multi_label=True)
    assert expected != pytest.approx(1, abs=1e-3)  # the softmax of one logit
    assert ClassifierScorer(folder, "toxic").score(["you are bad"]) == pytest.approx([expected], abs=1e-6)


def test_an_unknown_label_lists_the_labels(make_classifier):
    folder, *_ = make_classifier()
    with pytest.raises(ValueError, match="unknown label 'unsafe': the model has 'fine', 'Toxic', 'rude'"):
        ClassifierScorer(folder, "unsafe")


def test_a_regression_of_several_outputs_is_refused(make_classifier):
    folder, *_ = make_classifier(problem_type="regression")
    with pytest.raises(ValueError, match="regression of 3 outputs"):
        ClassifierScorer(folder, "rude")


def test_max_length_cuts_the_end(make_classifier):
    folder, model, tokenizer = make_classifier()
    text = "you are bad and you are good, are you?"
    expected = probabilities(model, read(tokenizer, text, limit=6))[1]
    assert ClassifierScorer(folder, "toxic", max_length=6).score([text]) == pytest.approx([expected], abs=1e-6)


@pytest.mark.parametrize("max_length", [0, LIMIT + 1])
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_max_length_that_the_model_cannot_read_is_refused(make_classifier, architecture, max_length):
    folder, *_ = make_classifier(architecture)
    with pytest.raises(ValueError, match=f"max_length is {max_length}, expected from 1 to {LIMIT} tokens"):
        ClassifierScorer(folder, "toxic", max_length=max_length)


def test_the_tokenizers_own_limit_counts(make_classifier):
    folder, model, tokenizer = make_classifier()
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(folder)
    expected = probabilities(model, read(tokenizer, TEXTS[2], limit=8))[1]
    assert ClassifierScorer(folder, "toxic").score([TEXTS[2]]) == pytest.approx([expected], abs=1e-6)


def test_a_tokenizer_without_pad_token_is_refused(make_classifier):
    folder, *_ = make_classifier("gpt2 without pad token")
    with pytest.raises(ValueError, match="no pad token"):
        ClassifierScorer(folder, "toxic")


def test_a_checkpoint_without_head_is_refused(make_classifier):
    folder, model, _ = make_classifier()
    BertModel(BertConfig(**model.config.to_dict())).save_pretrained(folder)
    with pytest.raises(ValueError, match=r"no weights for classifier\.bias, classifier\.weight"):
        ClassifierScorer(folder, "toxic")


@pytest.mark.parametrize(("architecture", "special"), [("bert", "[SEP]"), ("roberta", "[PAD]"), ("gpt2", "<pad>")])
def test_special_tokens_in_a_text_are_text(make_classifier, architecture, special):
    folder, _, tokenizer = make_classifier(architecture)
    scorer = ClassifierScorer(folder, "toxic")
    seen = []
    scorer.model.register_forward_pre_hook(
        lambda _, __, inputs: seen.append(inputs["input_ids"][0].tolist()), with_kwargs=True
    )
    scorer.score([f"bad {special}"])
    (ids,) = seen
    specials = 2 if tokenizer.cls_token else 0
    assert sum(i in tokenizer.all_special_ids for i in ids) == specials
    assert special in tokenizer.decode(ids[1:-1] if specials else ids)


def test_a_lone_surrogate_reads_as_a_question_mark(make_classifier):
    folder, *_ = make_classifier()
    odd, question = ClassifierScorer(folder, "toxic").score(["bad \ud800", "bad ?"])
    assert odd == pytest.approx(question, abs=1e-6)


def test_the_model_is_frozen_in_the_dtype_and_on_the_device_asked_for(make_classifier):
    folder, *_ = make_classifier()
    model = ClassifierScorer(folder, "toxic", dtype="bfloat16", device=torch.device("meta")).model
    assert model.dtype == torch.bfloat16
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_half_precision_weights_have_single_precision_probabilities(make_classifier):
    folder, model, tokenizer = make_classifier()
    with torch.no_grad():
        logits = model.bfloat16()(input_ids=torch.tensor([read(tokenizer, "hello you")])).logits
    expected = logits.double().softmax(-1)[0, 1].item()
    scores = ClassifierScorer(folder, "toxic", dtype="bfloat16").score(["hello you"])
    assert scores == pytest.approx([expected], abs=1e-6)


def test_an_error_of_the_model_is_a_scorer_error(make_classifier):
    folder, *_ = make_classifier()
    scorer = ClassifierScorer(folder, "toxic")
    scorer.tokenizer.pad_token = None
    with pytest.raises(ScorerError, match="ClassifierScorer failed on 2 texts, the first 'hello'"):
        scorer.score(["hello", "you"])
