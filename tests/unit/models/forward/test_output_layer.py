"""What models do between their body and their logits."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from astra_accel.models.forward.capabilities import UnsupportedModelError, check_sequences, plain_logprobs
from astra_accel.models.forward.head import Head, head_of
from astra_accel.models.forward.output_layer import find_output_layer, state_width
from astra_accel.models.forward.value_head import ValueHead
from astra_accel.models.logprobs import can_pack, check_readings, sequence_logprobs
from tests.helpers.architectures import build
from tests.helpers.output_layers import FORMS, OF_THEIR_OWN, OUTPUT_LAYERS, body, build_output_layer

QUICK = ("hyperclovax", "granite", "minicpm3", "recurrent_gemma", "gemma2", "phi", "opt_350m", "bert", "falcon_h1")
NAMES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in OUTPUT_LAYERS]
WIDTHS = {"opt_350m": 24, "electra": 24, "rembert": 32}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_a_model_does_to_its_logits_is_found_whatever_its_names_and_its_precision(name, dtype):
    # Inkling 2 keeps some layers in float32, and runs in no other way.
    model = build_output_layer(name).to(torch.float32 if name == "inkling2" else dtype)
    found = find_output_layer(model)
    assert found.width == WIDTHS.get(name, 48)
    if name in OF_THEIR_OWN:
        assert found.form is None
        assert found.reason == "what its output layer gets is not its body's output"
        return
    assert found.form is not None
    scale, softcap, num_logits = FORMS[name]
    # A factor on states of 16 bits is found through their rounding.
    exact = dtype == torch.float32 or name not in {"minicpm3", "inkling"}
    assert found.form.scale == pytest.approx(scale, rel=1e-6 if exact else 1e-3)
    assert (found.form.softcap, found.form.num_logits) == (softcap, num_logits)


@pytest.mark.parametrize("name", NAMES)
def test_the_head_makes_a_models_logits_or_the_model_does(name):
    model = build_output_layer(name)
    check_readings(model)
    if name not in OF_THEIR_OWN:
        ids = torch.arange(1, 30)[None]
        with torch.no_grad():
            logits = head_of(model).logits(body(model)(input_ids=ids, use_cache=False)[0])
            torch.testing.assert_close(logits, model(input_ids=ids, use_cache=False).logits, rtol=1e-5, atol=1e-5)


def test_a_cap_far_above_the_logits_is_found():
    """In bfloat16 no logit of the check shows a cap of 1000, but logits of a longer training may."""
    model = build("gemma2").to(torch.bfloat16)
    model.config.final_logit_softcapping = 1000.0
    assert Head.from_model(model).softcap == 1000.0


class Llama(LlamaForCausalLM):
    """A model that does something to its logits."""

    change = staticmethod(lambda logits: logits)

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = self.change(output.logits)
        return output


def without_token_7(logits):
    return logits.masked_fill(torch.arange(logits.shape[-1]) == 7, -torch.inf)


CHANGES = {
    "a token ruled out": without_token_7,
    "a bias": lambda logits: logits + torch.linspace(-1, 1, logits.shape[-1]),
    "another curve": lambda logits: 3 * torch.asinh(logits / 3),
    "a normalisation": lambda logits: logits.log_softmax(-1) * 2,
    "a rounding": lambda logits: logits.bfloat16(),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_of_another_form_has_no_head_and_makes_its_logits_itself(name):
    model = Llama(build("llama").config).eval()
    model.change = CHANGES[name]
    assert Head.from_model(model) is None
    assert not can_pack(model)
    with pytest.raises(UnsupportedModelError, match="its logits are"):
        head_of(model)
    check_readings(model)
    contexts, continuations = check_sequences(model)
    found = sequence_logprobs(model, contexts, continuations)
    for one, other in zip(found, plain_logprobs(model, contexts, continuations), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4 if name != "a rounding" else 0.1)


def test_another_output_layer_is_found_anew():
    model = build("qwen2")
    assert Head.from_model(model) is not None
    model.lm_head = torch.nn.Sequential(model.lm_head)
    assert Head.from_model(model) is None
    check_readings(model)


def test_the_weights_and_their_hooks_are_as_before():
    model = build("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    find_output_layer(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_model_that_shows_no_states_is_refused_in_one_sentence():
    model = build("qwen2")
    model.get_output_embeddings = lambda: None
    with pytest.raises(UnsupportedModelError, match=r"Qwen2ForCausalLM shows no states .* it names no output layer"):
        state_width(model)
    with pytest.raises(UnsupportedModelError, match="shows no states"):
        ValueHead(model)
