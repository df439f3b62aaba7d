"""Models that are no causal language models: told by their configuration, and by what they say once loaded."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from astra_accel.config import ModelConfiguration
from astra_accel.errors import ConfigurationError
from astra_accel.models.loading.causal_models import not_causal, reads_ahead
from astra_accel.models.loading.model_files import find_model
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny, save_tiny

SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def configuration(kind: str, **values: Any) -> Any:
    """The configuration of a model type."""
    return AutoConfig.for_model(kind, **values)


# --- By the configuration -----------------------------------------------------------------------------------

CAUSAL = (
    "llama",
    "gpt2",
    "qwen2",
    "gpt_neox",
    "opt",
    "mistral",
    "gemma2",
    "gemma3_text",
    "mamba",
    "falcon",
    "bloom",
    "phi3",
)
CAUSAL += ("mixtral", "gpt_oss", "qwen3_moe", "recurrent_gemma", "modernbert-decoder", "deepseek_v3", "llama4_text")
ENCODERS = ("bert", "roberta", "xlm-roberta", "electra", "camembert", "ernie", "rembert", "roformer", "big_bird", "xlm")
ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "pegasus", "marian", "blenderbot", "led", "whisper", "m2m_100")
OTHERS = ("vit", "clip", "wav2vec2", "distilbert", "modernbert", "deberta-v2", "albert", "esm", "hubert", "siglip")


@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_language_models_are_taken(kind):
    assert not_causal(configuration(kind)) is None


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra", "xlm-roberta", "bart", "pegasus"])
def test_what_was_saved_as_a_decoder_is_one(kind):
    assert not_causal(configuration(kind, is_decoder=True, is_encoder_decoder=False)) is None


@pytest.mark.parametrize("kind", ENCODERS)
def test_encoders_are_told(kind):
    assert not_causal(configuration(kind)).startswith(f"an encoder (model_type {kind!r} with is_decoder false)")


@pytest.mark.parametrize("kind", ENCODER_DECODERS)
def test_encoder_decoders_are_told(kind):
    assert not_causal(configuration(kind)).startswith(f"an encoder-decoder (model_type {kind!r})")


@pytest.mark.parametrize("kind", OTHERS)
def test_models_without_a_causal_class_are_told(kind):
    assert not_causal(configuration(kind)).startswith(f"of model_type {kind!r}, for which transformers has no causal")


@pytest.mark.parametrize(
    ("kind", "saved_as"),
    [
        ("llama", "LlamaForSequenceClassification"),
        ("llama", "LlamaForTokenClassification"),
        ("qwen2", "Qwen2ForRewardModel"),
        ("gpt2", "GPT2ForSequenceClassification"),
        ("bert", "BertForMaskedLM"),
        ("distilbert", "DistilBertForMaskedLM"),
        ("vit", "ViTForImageClassification"),
        ("wav2vec2", "Wav2Vec2ForCTC"),
    ],
)
def test_another_head_is_told(kind, saved_as):
    """With tied embeddings a classifier's body loads as a language model without a word."""
    expected = f"saved as {saved_as} (model_type {kind!r}), which was not trained to predict the next token"
    assert not_causal(configuration(kind, architectures=[saved_as])) == expected


@pytest.mark.parametrize(
    ("kind", "saved_as"),
    [
        ("llama", "LlamaForCausalLM"),
        ("gpt2", "GPT2LMHeadModel"),
        ("gpt2", "GPT2DoubleHeadsModel"),
        ("gpt2", "GPT2Model"),  # its head is the embedding
        ("gemma3", "Gemma3ForConditionalGeneration"),
        ("llama", None),
    ],
)
def test_a_language_models_head_is_taken(kind, saved_as):
    assert not_causal(configuration(kind, architectures=None if saved_as is None else [saved_as])) is None


def test_a_body_without_a_head_is_told():
    found = not_causal(configuration("llama", architectures=["LlamaModel"], tie_word_embeddings=False))
    assert found == "saved as LlamaModel (model_type 'llama'), without the head that predicts the next token"


def test_attention_that_was_set_to_go_both_ways_is_told():
    found = not_causal(configuration("gemma3_text", use_bidirectional_attention=True))
    assert found.startswith("an encoder (model_type 'gemma3_text' with use_bidirectional_attention)")


@pytest.mark.slow
def test_only_what_also_fills_masks_is_taken_for_an_encoder():
    """Over every model type of transformers' causal mapping, as its configuration is by default."""
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = configuration(kind)
        except Exception:  # a few have no default
            continue
        encoder = kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
        assert (not_causal(config) is not None) == (encoder or config.is_encoder_decoder), kind


# --- By a folder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("BertLMHeadModel", {"model_type": "bert", **SMALL}),
        ("BertForMaskedLM", {"model_type": "bert", **SMALL}),
        ("LlamaForSequenceClassification", {"model_type": "llama", "tie_word_embeddings": True, **SMALL}),
        (
            "T5ForConditionalGeneration",
            {"model_type": "t5", "d_model": 32, "d_ff": 32, "num_layers": 1, "num_heads": 2},
        ),
    ],
)
def test_the_field_the_kind_and_what_was_expected_are_in_one_line(name, config, tmp_path):
    values = dict(config)
    folder = save_tiny(tmp_path / "model", "llama")
    made = getattr(transformers, name)(configuration(values.pop("model_type"), **values))
    (folder / "model.safetensors").unlink()
    made.save_pretrained(folder)
    with pytest.raises(ConfigurationError) as error:
        find_model(ModelConfiguration(path=str(folder)), "baseline")
    message = str(error.value)
    assert message.startswith(f"baseline.path is {str(folder)!r}, ")
    assert f"model_type {config['model_type']!r}" in message
    assert "expected a causal language model" in message
    assert "\n" not in message


def test_a_path_that_is_something_else_is_told_what_it_is(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "run" / "tester").mkdir(parents=True)
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "trained.safetensors").touch()
    (tmp_path / "model.gguf").touch()
    expected = {
        "adapter": "this is a LoRA adapter: give it as target.adapter",
        "run": f"this is a run: its tester is in {tmp_path / 'run' / 'tester'}",
        "step-000001": "this is a checkpoint of a run",
        "model.gguf": "which is a file; expected the folder of a saved model",
        "nowhere": "and there is no such folder",
    }
    for name, message in expected.items():
        with pytest.raises((FileNotFoundError, NotADirectoryError), match=re.escape(message)) as error:
            find_model(ModelConfiguration(path=str(tmp_path / name)), "target")
        assert str(error.value).startswith("target.path is ")


def test_an_adapter_beside_a_whole_model_is_not_put_on_it_unasked(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ConfigurationError, match="a whole model and an adapter"):
        find_model(ModelConfiguration(path=str(folder)), "tester")


# --- By what it says ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_causal_model_does_not_read_ahead(architecture, dtype):
    assert not reads_ahead(build_tiny(architecture)[0].to(dtype))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("BertLMHeadModel", {"model_type": "bert", **SMALL}),
        ("RobertaForCausalLM", {"model_type": "roberta", **SMALL}),
        ("XLNetLMHeadModel", {"model_type": "xlnet", "vocab_size": 300, "d_model": 32, "n_layer": 1, "n_head": 2}),
        ("BertGenerationDecoder", {"model_type": "bert-generation", **SMALL}),
    ],
)
def test_a_model_whose_tokens_see_those_after_them_reads_ahead(name, config):
    values = dict(config)
    torch.manual_seed(0)
    model = getattr(transformers, name)(configuration(values.pop("model_type"), **values)).eval()
    assert reads_ahead(model)


def test_a_model_that_reads_ahead_is_refused_when_its_configuration_said_nothing(tmp_path):
    folder = save_tiny(tmp_path / "model", "llama")
    (folder / "model.safetensors").unlink()
    config = configuration("xlnet", vocab_size=300, d_model=32, n_layer=1, n_head=2, d_inner=32)
    transformers.XLNetLMHeadModel(config).save_pretrained(folder)
    found = find_model(ModelConfiguration(path=str(folder)), "tester")
    with pytest.raises(
        ConfigurationError, match="XLNetLMHeadModel whose tokens see those after them; expected a causal"
    ):
        found.load(torch.float32)
