"""A merged tester says what the adapter says."""

from __future__ import annotations

import json

import pytest
import torch
from huggingface_hub import ModelCard
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from astra_accel.errors import SharingError
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, save_tiny
from astra_accel.sharing.merged import export_merged
from tests.helpers.special_models import SPECIAL, save_special

IDS = torch.arange(1, 60)[None]

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")


@pytest.fixture
def base(tmp_path):
    return save_tiny(tmp_path / "base", "llama")


@pytest.fixture
def make_tester(tmp_path):
    """Saves an adapter that is no longer the zero that it begins as; returns its folder."""

    def make(base, **options):
        torch.manual_seed(0)
        settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"}
        config = options.pop("config", None) or LoraConfig(**settings | options)
        get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path / "tester")
        return tmp_path / "tester"

    return make


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


@pytest.mark.parametrize("architecture", TINY_ARCHITECTURES)
def test_logits_are_those_of_the_adapter(tmp_path, make_tester, architecture):
    base = save_tiny(tmp_path / "base", architecture)
    tester = make_tester(base)

    difference = export_merged(tester, tmp_path / "merged")

    plain = AutoModelForCausalLM.from_pretrained(base)
    before = logits(plain)
    expected = logits(PeftModel.from_pretrained(plain, tester))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    assert (expected - before).abs().max() > 0.1  # the adapter does something
    assert 0 <= difference < 1e-4
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("Hi.").input_ids
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("qwen3_moe", {}),  # PEFT puts the adapter on the fused experts too
        ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),  # tied to the embeddings before
        pytest.param("deepseek_v3", {}, marks=pytest.mark.slow),
        pytest.param("qwen2", {"modules_to_save": ["lm_head", "embed_tokens"]}, marks=pytest.mark.slow),
    ],
)
def test_experts_and_modules_that_were_saved_whole_are_merged_too(tmp_path, make_tester, name, options):
    base = save_special(tmp_path / "base", name) if name in SPECIAL else save_tiny(tmp_path / "base", name)
    tester = make_tester(base, **options)

    assert export_merged(tester, tmp_path / "merged") < 1e-3

    expected = logits(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tester))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_card_says_what_it_is(tmp_path, base, make_tester):
    export_merged(make_tester(base), tmp_path / "merged")

    card = ModelCard.load(tmp_path / "merged" / "README.md")
    assert card.data.library_name == "transformers"
    assert "merged of a LoRA adapter and base." in card.text


def test_sixteen_bits_tell_how_much_they_lose(tmp_path, base, make_tester):
    difference = export_merged(make_tester(base), tmp_path / "merged", dtype="bfloat16")

    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.bfloat16
    assert 1e-4 < difference < 1


def test_a_head_tied_to_the_embeddings_is_refused(tmp_path, make_tester):
    base = save_tiny(tmp_path / "base", "llama", tie_word_embeddings=True)
    tester = make_tester(base, target_modules=["lm_head"])

    with pytest.raises(SharingError, match=r"log-probs of the merged model differ by up to .* tied to the"):
        export_merged(tester, tmp_path / "merged")

    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "tester"]


def test_a_whole_model_is_none_to_merge(tmp_path, base):
    with pytest.raises(SharingError, match=r"has no adapter_config\.json: it is a whole model, not an adapter"):
        export_merged(base, tmp_path / "merged")


def test_another_kind_of_adapter_is_refused(tmp_path, base, make_tester):
    tester = make_tester(
        base, config=IA3Config(task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[])
    )

    with pytest.raises(SharingError, match="is of type IA3; expected LORA"):
        export_merged(tester, tmp_path / "merged")


def test_a_quantised_base_is_refused(tmp_path, base, make_tester):
    tester = make_tester(base)
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (base / "config.json").write_text(json.dumps(config))

    with pytest.raises(SharingError, match=r"the weights of .*base are quantised"):
        export_merged(tester, tmp_path / "merged")


def test_an_adapter_that_does_not_fit_its_base_is_refused(tmp_path, base, make_tester):
    tester = make_tester(base)
    save_tiny(base, "llama", num_hidden_layers=1)

    with pytest.raises(SharingError, match="does not fit its model"):
        export_merged(tester, tmp_path / "merged")


def test_a_base_that_is_gone_is_named(tmp_path, base, make_tester):
    tester = make_tester(base)
    base.rename(tmp_path / "elsewhere")

    with pytest.raises(SharingError, match=rf"can't be merged: tester\.path is '{base}'"):
        export_merged(tester, tmp_path / "merged")


def test_an_adapter_that_names_no_base_needs_its_run(tmp_path, base, make_tester):
    tester = make_tester(base)
    (tester / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": null}')

    with pytest.raises(SharingError, match="names no base model; expected the folder of the run"):
        export_merged(tester, tmp_path / "merged")
