"""What is found out about a model before its weights load, and what the messages say where something is amiss."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import huggingface_hub
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BloomConfig,
    GenerationConfig,
    LogitsProcessor,
    PreTrainedModel,
)

from astra_accel.config import LoRAConfiguration, ModelConfiguration
from astra_accel.models.loading import model_files as files_module
from astra_accel.models.loading.model_files import check_lora_targets, find_model, same_tokenizer
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny, save_tiny


def find(path: str | Path, role: str = "tester"):
    return find_model(ModelConfiguration(path=str(path)), role)


def edit_json(path: Path, **values: object) -> None:
    """Set fields of a JSON file; None removes one."""
    fields = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps({name: value for name, value in fields.items() if value is not None}), encoding="utf-8")


def generation_ends_with(folder: Path, ids: int | list[int]) -> None:
    generation_config = GenerationConfig.from_pretrained(folder)
    generation_config.eos_token_id = ids
    generation_config.save_pretrained(folder)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "llama", "llama", seed=3)


# --- What is found ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_a_folder(architecture, tmp_path):
    model, tokenizer = build_tiny(architecture, seed=5)
    found = find(save_tiny(tmp_path, architecture, seed=5))
    assert found.source == str(tmp_path)
    assert found.max_length == 512
    assert found.end_ids == {tokenizer.eos_token_id}
    assert found.tokenizer.pad_token_id == tokenizer.pad_token_id
    loaded = found.load(torch.float32)
    assert all(torch.equal(parameter, model.state_dict()[name]) for name, parameter in loaded.state_dict().items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_weights_go_straight_to_a_device_that_is_no_cpu(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a GPU: each weight is placed as it is read, and nothing is hooked to the model's forward."""
    assert files_module._placement(torch.device("cpu")) == {}
    assert files_module._placement(torch.device("cuda", 1)) == {"device_map": {"": torch.device("cuda", 1)}}
    expected = find(llama).load(torch.bfloat16)
    monkeypatch.setattr(files_module, "_placement", lambda device: {"device_map": {"": device}})
    placed = find(llama).load(torch.bfloat16)
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in placed.state_dict().items())
    assert not any(hasattr(module, "_hf_hook") for module in placed.modules())
    assert Accelerator.verify_device_map(None, placed) is False  # which would refuse to train it on several processes


@pytest.mark.parametrize("path", ["tiny", "tiny:llama", "tiny:gpt2", "tiny:qwen2"])
def test_a_tiny_model(path):
    model, tokenizer = build_tiny(path.partition(":")[2] or "llama")
    found = find(path)
    assert found.end_ids == {tokenizer.eos_token_id}
    loaded = found.load("auto")
    assert all(torch.equal(parameter, model.state_dict()[name]) for name, parameter in loaded.state_dict().items())
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {parameter.dtype for parameter in found.load(torch.bfloat16).parameters()} == {torch.bfloat16}


def test_auto_is_the_type_of_the_checkpoint(tmp_path):
    model, tokenizer = build_tiny("llama")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    found = find(tmp_path)
    assert {parameter.dtype for parameter in found.load("auto").parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in found.load(torch.float32).parameters()} == {torch.float32}


def test_the_embedded_model(llama, monkeypatch):
    monkeypatch.setattr(files_module, "embedded_model_path", lambda: llama)
    assert find("embedded").source == str(llama)


def test_every_end_of_a_turn_counts(llama):
    end = build_tiny("llama")[1].eos_token_id
    generation_ends_with(llama, [7, 9])
    assert find(llama).end_ids == {7, 9, end}
    generation_ends_with(llama, 7)
    assert find(llama).end_ids == {7, end}
    (llama / "generation_config.json").unlink()
    assert find(llama).end_ids == {end}


class Writes(LogitsProcessor):
    """Makes a model write these tokens, whatever it is."""

    def __init__(self, ids: list[int]) -> None:
        self.ids = iter(ids)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = torch.full_like(scores, -torch.inf)
        chosen[:, next(self.ids)] = 0.0
        return chosen


def generate_stops_at(model: PreTrainedModel, token: int) -> bool:
    """Whether transformers' own ``generate`` ends with a token that the model writes."""
    ids = torch.tensor([[20, 21]])
    written = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=2,
        logits_processor=[Writes([token, 20])],
        pad_token_id=0,
    )
    return written.shape[1] == 3


@pytest.mark.parametrize("of_generation", ["absent", None, 7, [7, 9]])
@pytest.mark.parametrize("of_config", [None, 5, [5, 6]])
def test_turns_end_where_transformers_would_stop(llama, of_generation, of_config):
    """The settings of generation decide; where there are none, those of the model; and the tokenizer's end of text.

    Where the settings are there but name no end, ``generate`` never stops; we do at the model's.
    """
    edit_json(llama / "config.json", eos_token_id=of_config)
    if of_generation == "absent":
        (llama / "generation_config.json").unlink()
    else:
        edit_json(llama / "generation_config.json", eos_token_id=of_generation)
    end = build_tiny("llama")[1].eos_token_id
    found, model = find(llama).end_ids, AutoModelForCausalLM.from_pretrained(llama)
    for token in (2, 5, 6, 7, 9, end):
        stops = generate_stops_at(model, token) or token == end
        if of_generation is None:
            stops = token == end or token in ([of_config] if isinstance(of_config, int) else of_config or [])
        assert (token in found) == stops, token


@pytest.mark.parametrize("of_text", [5, [5, 6]])
def test_the_text_part_of_a_multimodal_model_names_its_ends(llama, of_text):
    """As transformers' ``GenerationConfig.from_model_config`` reads them."""
    (llama / "generation_config.json").unlink()
    text = {"model_type": "gemma3_text", "eos_token_id": of_text}
    edit_json(llama / "config.json", model_type="gemma3", eos_token_id=None, text_config=text)
    expected = {*([of_text] if isinstance(of_text, int) else of_text), build_tiny("llama")[1].eos_token_id}
    assert find(llama).end_ids == expected


def test_strings_that_end_turns_are_told(llama, caplog):
    edit_json(llama / "generation_config.json", stop_strings=["User:"])
    with caplog.at_level(logging.WARNING, logger="astra_accel"):
        find(llama)
    (line,) = caplog.messages
    assert line.startswith(
        f"{llama} has stop_strings ['User:'] in its generation_config.json. Turns end only with tokens"
    )


def test_the_end_of_text_pads_where_no_token_does(llama):
    edit_json(llama / "tokenizer_config.json", pad_token=None)
    found = find(llama)
    assert found.tokenizer.pad_token == "<|im_end|>"
    assert found.tokenizer.pad_token_id == found.tokenizer.eos_token_id


def test_a_model_without_a_limit(llama):
    BloomConfig(vocab_size=260, hidden_size=8).save_pretrained(llama)
    assert find(llama).max_length is None


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_weights_that_are_missing_are_not_drawn_at_random(architecture, tmp_path):
    found = find(save_tiny(tmp_path, architecture, seed=5))
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    gone = next(
        name for name, tensor in tensors.items() if tensor.ndim == 2 and "emb" not in name and "wte" not in name
    )
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{tmp_path} lacks 1 of its weights, such as .*{gone}"):
        found.load(torch.float32)


# --- What is amiss ------------------------------------------------------------------------------------------


def test_a_folder_without_configuration(llama):
    (llama / "config.json").unlink()
    message = re.escape(f"target.path is the folder {llama}, which has no config.json: expected a saved model")
    with pytest.raises(FileNotFoundError, match=message):
        find(llama, "target")


def test_a_folder_without_weights(llama):
    (llama / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=re.escape(f"baseline.path is the folder {llama}, which has no weights")
    ):
        find(llama, "baseline")
    with pytest.raises(FileNotFoundError, match=r"\*\.safetensors or .*it holds .*config\.json, .*tokenizer\.json"):
        find(llama, "baseline")
    (llama / "pytorch_model-00001-of-00002.bin").touch()
    with pytest.raises(
        ValueError, match=r"it holds pytorch_model-00001-of-00002.bin, but no weights that can be loaded"
    ):
        find(llama)


def test_a_tokenizer_without_any_end(llama):
    edit_json(llama / "tokenizer_config.json", pad_token=None, eos_token=None)
    message = f"the target's tokenizer ({llama}) has neither a pad token nor an end-of-text token"
    with pytest.raises(ValueError, match=re.escape(message)):
        find(llama, "target")


def test_an_unknown_tiny_architecture():
    message = "tester.path: unknown tiny architecture 'bloom'; expected one of tiny:llama, tiny:gpt2, tiny:qwen2"
    with pytest.raises(ValueError, match=message):
        find("tiny:bloom")


def test_a_hub_id_that_cannot_be_had(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = "target.path is 'someone/no-such-model', which is neither a local model folder nor .* the hub"
    with pytest.raises(ValueError, match=message) as info:
        find("someone/no-such-model", "target")
    assert info.value.__cause__ is not None


# --- Whether ids mean the same ------------------------------------------------------------------------------


def test_one_tokenizer_however_it_came(llama):
    built = build_tiny("llama")[1]
    assert same_tokenizer(built, built)
    assert same_tokenizer(built, build_tiny("llama")[1])
    assert same_tokenizer(built, AutoTokenizer.from_pretrained(llama))


def test_a_tokenizer_that_has_padded_or_cut_a_batch_is_the_same():
    used = build_tiny("llama")[1]
    used(["a", "long text"], padding=True, truncation=True, max_length=5)
    assert same_tokenizer(used, build_tiny("llama")[1])
    assert same_tokenizer(build_tiny("llama")[1], used)


def test_different_tokenizers():
    tokenizers = [build_tiny(architecture)[1] for architecture in TINY_ARCHITECTURES]
    pairs = [(one, other) for one in tokenizers for other in tokenizers if one is not other]
    assert not any(same_tokenizer(*pair) for pair in pairs)


def test_one_vocabulary_with_other_rules():
    changed = build_tiny("llama")[1]
    changed.backend_tokenizer.post_processor = None
    assert not same_tokenizer(changed, build_tiny("llama")[1])
    extended = build_tiny("llama")[1]
    extended.add_tokens(["hello"])
    assert not same_tokenizer(extended, build_tiny("llama")[1])


# --- LoRA's targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("llama", "all-linear"),
        ("llama", ["q_proj", "down_proj"]),
        ("llama", ["self_attn.v_proj"]),
        ("llama", r"model\.layers\.[01]\.mlp\..*"),
        ("gpt2", ["c_attn"]),
        ("gpt2", "all-linear"),
        ("qwen2", ["lm_head"]),
    ],
)
def test_targets_that_exist(architecture, targets):
    check_lora_targets(LoRAConfiguration(target_modules=targets), find(f"tiny:{architecture}"))


@pytest.mark.parametrize(
    ("targets", "missing"),
    [
        (["q_proj", "c_attn"], "['c_attn']"),
        (["proj"], "['proj']"),
        ("q_proj", "['q_proj']"),
        (["embed_tokens"], "['embed_tokens']"),
        ([], "[]"),
    ],
)
def test_targets_that_do_not_exist(targets, missing):
    """A list names ends of names; a string is a regular expression of the whole name, so ``q_proj`` is none."""
    there_are = "there are down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    message = f"lora.target_modules: {missing} match no linear layer of tiny:llama; {there_are}"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_lora_targets(LoRAConfiguration(target_modules=targets), find("tiny:llama"))


# --- Special tokens without an embedding --------------------------------------------------------------------


def test_a_model_that_cannot_say_that_its_turn_ends(llama):
    edit_json(llama / "config.json", vocab_size=256)
    generation_ends_with(llama, 259)
    expected = (
        r"^the target \(.*\) ends its turns with the token id 259, but has 256 embeddings, for ids from 0 to 255;"
    )
    with pytest.raises(ValueError, match=expected):
        find(llama, "target")
    generation_ends_with(llama, [259, 255])
    edit_json(llama / "config.json", pad_token_id=None)
    assert find(llama).end_ids == {259, 255}


def test_padding_without_an_embedding(llama):
    edit_json(llama / "config.json", pad_token_id=260)
    expected = r"^the tester's config.json \(.*\) has the pad_token_id 260, but 260 embeddings \(vocab_size\); expected"
    with pytest.raises(ValueError, match=expected):
        find(llama)


def test_padding_that_is_in_no_embedding_anyway(tmp_path):
    """GPT-2 doesn't ask for it."""
    save_tiny(tmp_path, "gpt2")
    edit_json(tmp_path / "config.json", pad_token_id=257)
    assert find(tmp_path).load("auto").config.pad_token_id == 257
