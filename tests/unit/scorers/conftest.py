from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

CORPUS = ["safe unsafe User Agent hello you are bad good words of the last conversation\n\n" * 3]
LIMIT = 24
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
# The default range of 0.02 gives all texts nearly the same score, and a test of equality would say little.
WIDE = {"initializer_range": 0.5}


def byte_bpe(specials):
    """A byte-level BPE tokenizer with the special tokens first: no text is unknown to it.

    As Llama 3's, it keeps newlines together, and with the punctuation before them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+\n*|\s*\n+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def _encoder_tokenizer():
    backend = byte_bpe(["[CLS]", "[PAD]", "[SEP]"])
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, cls_token="[CLS]", pad_token="[PAD]", sep_token="[SEP]")


def _decoder_tokenizer(**kwargs):
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_bpe(["<eos>", "<pad>"]),
        eos_token="<eos>",
        model_input_names=["input_ids", "attention_mask"],
        **kwargs,
    )


def _bert(tokenizer, head):
    return BertForSequenceClassification(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=LIMIT, pad_token_id=1, **SMALL, **WIDE, **head)
    )


def _roberta(tokenizer, head):
    positions = LIMIT + 1 + tokenizer.pad_token_id
    return RobertaForSequenceClassification(
        RobertaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=positions,
            type_vocab_size=2,
            **SMALL,
            **WIDE,
            **head,
        )
    )


def _gpt2(tokenizer, head):
    return GPT2ForSequenceClassification(
        GPT2Config(vocab_size=len(tokenizer), n_positions=LIMIT, n_embd=32, n_layer=2, n_head=2, **WIDE, **head)
    )


def _xlnet(tokenizer, head):
    return XLNetForSequenceClassification(
        XLNetConfig(vocab_size=len(tokenizer), d_model=32, n_layer=2, n_head=2, d_inner=32, **WIDE, **head)
    )


ARCHITECTURES = {
    "bert": (_bert, _encoder_tokenizer),
    "roberta": (_roberta, _encoder_tokenizer),
    # Saved with the padding side that would shift GPT-2's absolute positions.
    "gpt2": (_gpt2, lambda: _decoder_tokenizer(pad_token="<pad>", padding_side="left")),
    "gpt2 without pad token": (_gpt2, _decoder_tokenizer),
    "xlnet": (_xlnet, lambda: _decoder_tokenizer(pad_token="<pad>")),
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Models this small lose more to threads that wait for each other on a busy machine than they gain."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def make_classifier(tmp_path):
    """Saves a tiny random classifier and its tokenizer; returns the folder, the model and the tokenizer."""

    def make(architecture="bert", **head):
        head = {
            "id2label": {0: "fine", 1: "Toxic", 2: "rude"},
            "label2id": {"fine": 0, "Toxic": 1, "rude": 2},
        } | head
        build, build_tokenizer = ARCHITECTURES[architecture]
        torch.manual_seed(0)
        tokenizer = build_tokenizer()
        model = build(tokenizer, head).eval()
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        return str(tmp_path), model, tokenizer

    return make


GUARD_SPECIALS = ["<|begin|>", "<|header|>", "<|end_header|>", "<|eot|>"]
GUARD_CATEGORIES = (
    "<BEGIN UNSAFE CONTENT CATEGORIES>\n\nS1: Violent Crimes. \nThat is: (1) hello, (2) bad words.\n"
    "S2: Non-Violent Crimes.\n"
    "S10: Hate.\n<END UNSAFE CONTENT CATEGORIES>\n\n"
)
GUARD_TEMPLATE = (
    "<|begin|><|header|>user<|end_header|>\n\nIs the last message of the conversation safe?\n\n"
    "{% for message in messages %}"
    "{{ 'User' if message['role'] == 'user' else 'Agent' }}: {{ message['content'] | trim }}\n\n"
    "{% endfor %}"
    "Judge the last of {{ messages | length }}.<|eot|><|header|>assistant<|end_header|>"
)


@pytest.fixture(scope="session")
def make_guard(tmp_path_factory):
    """Saves a tiny random Llama with a chat template; returns the folder, the model and the tokenizer."""

    def make(template=GUARD_TEMPLATE, backend=None, post_processor=None, categories=False):
        if categories:
            template = template.replace("\n\nIs the", f"\n\n{GUARD_CATEGORIES}Is the")
        folder: Path = tmp_path_factory.mktemp("guard")
        torch.manual_seed(0)
        backend = backend or byte_bpe(GUARD_SPECIALS)
        if post_processor is not None:
            backend.post_processor = post_processor
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template)
        tokenizer.add_special_tokens({"additional_special_tokens": GUARD_SPECIALS})
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=512, **SMALL, **WIDE)
        model = LlamaForCausalLM(config).eval()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder), model, tokenizer

    return make
