"""The tiny models: real enough to sample from, reproducible, and the same after a save and a reload."""

from __future__ import annotations

import math
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny, save_tiny

TEXTS = [
    "",
    "a",
    "  two spaces,\ttabs\r\nand lines\n\n\n",
    "caf\u00e9 na\u00efve \u0416\u4e2d\u6587 \u0645\u0631\u062d\u0628\u0627",
    "\U0001f600 \U0001f469\u200d\U0001f4bb \U0001f1eb\U0001f1f7",
    "\x00\x07\x1b[0m\x7f\u200b\ufeff",
    "911, 3.14 and 1,000",
    "".join(chr(code) for code in range(256)),
]

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


@pytest.fixture(params=TINY_ARCHITECTURES)
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


def next_token_logprobs(model, tokenizer, text: str) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1].log_softmax(-1)


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trips(architecture, text):
    _, tokenizer = build_tiny(architecture)
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_only_qwen2_normalises_text():
    decomposed = "e\u0301"
    for architecture in TINY_ARCHITECTURES:
        tokenizer = build_tiny(architecture)[1]
        decoded = tokenizer.decode(tokenizer(decomposed, add_special_tokens=False).input_ids)
        expected = unicodedata.normalize("NFC", decomposed) if architecture == "qwen2" else decomposed
        assert decoded == expected, architecture


def test_special_tokens_are_one_id_each(architecture):
    model, tokenizer = build_tiny(architecture)
    for token in tokenizer.all_special_tokens:
        assert len(tokenizer(token, add_special_tokens=False).input_ids) == 1, token
    assert len(tokenizer) == model.config.vocab_size
    for role in ("bos", "eos", "pad"):
        token_id = getattr(tokenizer, f"{role}_token_id")
        assert getattr(model.generation_config, f"{role}_token_id") == token_id
        assert getattr(model.config, f"{role}_token_id") == token_id


def test_roles_of_the_special_tokens():
    llama, gpt2, qwen2 = (build_tiny(name)[1] for name in ("llama", "gpt2", "qwen2"))
    assert (llama.bos_token, llama.eos_token, llama.pad_token) == ("<s>", "<|im_end|>", "<pad>")
    assert llama("a").input_ids[0] == llama.bos_token_id
    assert {gpt2.bos_token, gpt2.eos_token, gpt2.pad_token} == {"<|endoftext|>"}
    assert len(gpt2("a").input_ids) == 1
    assert (qwen2.bos_token, qwen2.eos_token, qwen2.pad_token) == (None, "<|im_end|>", "<|endoftext|>")
    assert len(qwen2("a").input_ids) == 1


def test_chat_templates():
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    turns = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nho<|im_end|>\n"
    prompt = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    for architecture, start in (("llama", "<s>"), ("qwen2", "")):
        tokenizer = build_tiny(architecture)[1]
        assert tokenizer.apply_chat_template(messages, tokenize=False) == start + turns
        rendered = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
        assert rendered == start + prompt
    assert build_tiny("gpt2")[1].chat_template is None


def test_size_and_mode(architecture):
    model, _ = build_tiny(architecture)
    assert 50_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 100_000
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training
    assert model.config.max_position_embeddings == 512
    assert model(torch.zeros(1, 512, dtype=torch.long)).logits.shape == (1, 512, model.config.vocab_size)


def test_distributions_are_peaked_and_depend_on_the_context(architecture):
    model, tokenizer = build_tiny(architecture)
    contexts = ["hello a", "hellx a", "zzzzz a", "and then?"]
    logprobs = torch.stack([next_token_logprobs(model, tokenizer, text) for text in contexts])
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    uniform = math.log(model.config.vocab_size)
    assert (entropies < uniform - 0.5).all()
    assert (entropies > 1.0).all()
    for other in (1, 2, 3):
        divergence = (logprobs[0].exp() * (logprobs[0] - logprobs[other])).sum()
        assert divergence > 0.02, contexts[other]


def test_weights_follow_the_seed(architecture):
    first, again, other = (build_tiny(architecture, seed=seed)[0].state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_weights_do_not_depend_on_the_global_state(architecture):
    torch.manual_seed(1)
    first = build_tiny(architecture)[0].state_dict()
    torch.manual_seed(2)
    torch.rand(10)
    second = build_tiny(architecture)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_global_random_states_are_untouched(architecture):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    build_tiny(architecture, seed=5)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state()[1].tolist() == before[2]


def test_saved_and_reloaded(architecture, tmp_path: Path):
    model, tokenizer = build_tiny(architecture, seed=7)
    folder = save_tiny(tmp_path / "model", architecture, seed=7)
    reloaded = AutoModelForCausalLM.from_pretrained(folder)
    reloaded_tokenizer = AutoTokenizer.from_pretrained(folder)
    for text in [*TEXTS, "<s><|im_start|>user\nhi<|im_end|>\n", "e\u0301"]:
        ids = tokenizer(text).input_ids
        assert reloaded_tokenizer(text).input_ids == ids
        assert reloaded_tokenizer.decode(ids) == tokenizer.decode(ids)
    assert reloaded_tokenizer.chat_template == tokenizer.chat_template
    for role in ("bos", "eos", "pad"):
        assert getattr(reloaded_tokenizer, f"{role}_token") == getattr(tokenizer, f"{role}_token")
        name = f"{role}_token_id"
        assert getattr(reloaded.generation_config, name) == getattr(model.generation_config, name)
    tied = reloaded.get_input_embeddings().weight is reloaded.get_output_embeddings().weight
    assert tied == (architecture != "qwen2")
    batch = torch.tensor([tokenizer("the same logits").input_ids])
    with torch.no_grad():
        assert torch.equal(model(batch).logits, reloaded(batch).logits)


def test_generates_until_a_special_token_or_the_limit(architecture):
    model, tokenizer = build_tiny(architecture)
    prompt = tokenizer(["once upon", "a"], return_tensors="pt", padding=True, padding_side="left")
    torch.manual_seed(0)
    sampled = model.generate(**prompt, max_new_tokens=20, do_sample=True)[:, prompt.input_ids.shape[1] :]
    assert sampled.shape[1] <= 20
    assert len(set(sampled.flatten().tolist())) > 10


def test_overrides_take_either_name():
    for names in ({"hidden_size": 32, "num_attention_heads": 2}, {"n_embd": 32, "n_head": 2}):
        config = build_tiny("gpt2", **names)[0].config
        assert (config.n_embd, config.n_head) == (32, 2)
    model, tokenizer = build_tiny("llama", vocab_size=264, num_hidden_layers=1)
    assert model.get_output_embeddings().weight.shape[0] == 264
    assert len(tokenizer) == 260
    assert len(model.model.layers) == 1


def test_unknown_architecture_is_named():
    with pytest.raises(ValueError, match=r"'bloom', expected one of llama, gpt2, qwen2"):
        build_tiny("bloom")
