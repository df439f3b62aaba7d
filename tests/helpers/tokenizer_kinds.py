"""Tokenizers of the kinds that models in use have, small ones: each is built or trained here."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertGenerationTokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerFast,
    T5Tokenizer,
)
from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor

CORPUS = [
    "Good morning, how are you today?",
    "You are stupid. And you know it! Why, hello there.",
    "What is the capital of France? It is Paris, of course.",
    "I said hello to the world: 2 + 2 = 4, and 12345 / 67890.",
    "system user assistant model instruction [INST] [/INST] USER: ASSISTANT: ### Human:",
    "Be brief and be kind to them all, please; the quick brown fox jumps over the lazy dog's bone.",
]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,?!'[]<>/:;=+#|@_-\u00e9"


@cache
def _sentencepiece_model(model_type: str, byte_fallback: bool = True) -> Path:
    """A SentencePiece model of some 500 pieces."""
    folder = Path(tempfile.mkdtemp())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*CORPUS, *LETTERS] * 10),
        model_prefix=str(folder / "spiece"),
        vocab_size=520 if byte_fallback else 200,
        model_type=model_type,
        character_coverage=1.0,
        byte_fallback=byte_fallback,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        num_threads=1,
        minloglevel=2,
        pad_id=-1,
    )
    return folder / "spiece.model"


@cache
def _pieces() -> tuple[dict[str, int], list[Any]]:
    vocabulary, _, merges = SentencePieceExtractor(str(_sentencepiece_model("bpe"))).extract()
    return vocabulary, merges


def llama2() -> PreTrainedTokenizerFast:
    """As the tokenizer.json of Llama 2, Mistral 7B, Zephyr, TinyLlama: a space is put before every piece of text."""
    vocabulary, merges = _pieces()
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _with_bos(backend)


def phi3() -> PreTrainedTokenizerFast:
    """Like Llama 2's, with special tokens that swallow the space after them."""
    tokenizer = llama2()
    specials = [AddedToken(text, rstrip=True, special=True) for text in ("<|user|>", "<|assistant|>", "<|end|>")]
    tokenizer.add_special_tokens({"extra_special_tokens": specials})
    return tokenizer


def mistral3() -> PreTrainedTokenizerFast:
    """Like Llama 2's, with [INST] and [/INST] as special tokens, and a space before the first piece alone."""
    vocabulary, merges = _pieces()
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("[INST]", "[/INST]")])
    return _with_bos(backend)


def _with_bos(backend: Tokenizer) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )


def llama(legacy: bool = False) -> LlamaTokenizer:
    """The class of transformers, which puts a space before the first piece (legacy: before each)."""
    vocabulary, merges = _pieces()
    return LlamaTokenizer(vocab=dict(vocabulary), merges=list(merges), legacy=legacy, pad_token="</s>")


def gemma() -> GemmaTokenizer:
    """The class of transformers: no space is added."""
    vocabulary, merges = _pieces()
    vocabulary = {{"<s>": "<bos>", "</s>": "<eos>"}.get(piece, piece): index for piece, index in vocabulary.items()}
    return GemmaTokenizer(
        vocab=vocabulary,
        merges=list(merges),
        pad_token="<eos>",
        extra_special_tokens=["<start_of_turn>", "<end_of_turn>"],
    )


def t5() -> T5Tokenizer:
    """The class of transformers, on a unigram model: a space before every word, and no bytes."""
    _, scores, _ = SentencePieceExtractor(str(_sentencepiece_model("unigram", False))).extract(True)
    first = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(
        vocab=[*first, *(item for item in scores if item[0] not in ("<unk>", "<s>", "</s>"))], extra_ids=2
    )


def slow() -> BertGenerationTokenizer:
    """Runs SentencePiece itself."""
    return BertGenerationTokenizer(str(_sentencepiece_model("bpe")), pad_token="</s>")


@cache
def _byte_level(pattern: str | None, add_prefix_space: bool = False) -> str:
    backend = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=pattern is None)
    parts = [] if pattern is None else [pre_tokenizers.Split(Regex(pattern), "isolated")]
    backend.pre_tokenizer = pre_tokenizers.Sequence([*parts, level])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=520,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|begin_of_text|>", "<|end_of_text|>"],
        show_progress=False,
    )
    backend.train_from_iterator([*CORPUS, "\n\nHello\n\n"] * 10, trainer)
    return backend.to_str()


GPT4 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def llama3() -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-4's rule, which joins newlines; beginning-of-text; special tokens of Llama 3."""
    backend = Tokenizer.from_str(_byte_level(GPT4))
    marks = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"]
    backend.add_special_tokens([AddedToken(text, special=True) for text in marks])
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("<think>", "</think>")])
    begin = "<|begin_of_text|>"
    backend.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, backend.token_to_id(begin))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=begin, eos_token="<|eot_id|>", pad_token="<|end_of_text|>"
    )


def gpt2(add_prefix_space: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's rule."""
    backend = Tokenizer.from_str(_byte_level(None, add_prefix_space))
    end = "<|end_of_text|>"
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=end, eos_token=end, pad_token=end)


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's: lower case, a space between words, and a decoder that mends the spaces before punctuation."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordPieceTrainer(
        vocab_size=300, special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"], show_progress=False
    )
    backend.train_from_iterator([*CORPUS, *LETTERS] * 10, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", eos_token="[SEP]", cls_token="[CLS]"
    )


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "llama2": llama2,
    "llama": llama,
    "llama legacy": lambda: llama(legacy=True),
    "mistral3": mistral3,
    "phi3": phi3,
    "gemma": gemma,
    "t5": t5,
    "slow": slow,
    "llama3": llama3,
    "gpt2": gpt2,
    "gpt2 with a prefix space": lambda: gpt2(add_prefix_space=True),
    "word piece": word_piece,
}
