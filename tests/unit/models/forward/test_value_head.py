"""Values, log-probs and entropies of one forward, against plain forwards of transformers."""

from __future__ import annotations

import pytest
import torch

from astra_accel.models.forward.capabilities import check_sequences
from astra_accel.models.forward.head import head_of
from astra_accel.models.forward.value_head import ValueHead
from astra_accel.models.logprobs import sequence_readings
from tests.helpers.architectures import ARCHITECTURES, build
from tests.helpers.output_layers import build_output_layer


def trained_head(model) -> ValueHead:
    """A head that says something."""
    head = ValueHead(model)
    with torch.no_grad():
        head.weight.copy_(torch.linspace(-1, 1, len(head.weight)))
        head.bias.fill_(0.3)
    return head


def plain(model, head, contexts, continuations) -> list[torch.Tensor]:
    """One forward a sequence, ``[tokens, 3]``: log-prob, value and entropy, from whole logits and hidden states."""
    results = []
    for context, continuation in zip(contexts, continuations, strict=True):
        output = model(input_ids=torch.tensor([[*context, *continuation]]), use_cache=False, output_hidden_states=True)
        before = slice(len(context) - 1, -1)
        logprobs_SV = output.logits[0, before].log_softmax(-1)
        values_S = output.hidden_states[-1][0, before] @ head.weight + head.bias
        tokens_S = torch.tensor(continuation)
        chosen_S = logprobs_SV[torch.arange(len(continuation)), tokens_S]
        results.append(torch.stack([chosen_S, values_S, -(logprobs_SV.exp() * logprobs_SV).sum(-1)], dim=-1))
    return results


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "opt", "falcon_alibi", "mamba"])
@pytest.mark.parametrize("packing", ["auto", "none"])
@pytest.mark.parametrize("token_budget", [1024, 20])
def test_readings_and_their_gradients_are_those_of_plain_forwards(architecture, packing, token_budget):
    assert architecture in ARCHITECTURES
    model = build(architecture)
    contexts, continuations = check_sequences(model)
    head = trained_head(model)

    def read(hidden_RH, rows_E, tokens_E):
        lm_head = head_of(model)
        return torch.stack(
            [
                lm_head.logprobs(hidden_RH, rows_E, tokens_E),
                head(hidden_RH)[rows_E],
                lm_head.entropies(hidden_RH)[rows_E],
            ],
            dim=-1,
        )

    found = sequence_readings(model, contexts, continuations, read, packing=packing, token_budget=token_budget)
    expected = plain(model, head, contexts, continuations)
    parameters = [*head.parameters(), *model.parameters()]
    # Each column and token with a weight of its own, so that none can stand for another.
    weights = [torch.linspace(-1, 2, values.numel()).view_as(values) for values in expected]
    gradients = []
    for one in (found, expected):
        total = sum((values * weight).sum() for values, weight in zip(one, weights, strict=True))
        gradients.append(torch.autograd.grad(total, parameters, allow_unused=True))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=5e-5, rtol=5e-5)
    assert gradients[1][0].abs().max() > 0.1
    for one, other in zip(*gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_new_head_is_worth_nothing_and_moves_nothing():
    model = build("llama")
    hidden = torch.randn(3, 48, requires_grad=True)
    values = ValueHead(model)(hidden)
    assert values.tolist() == [0.0] * 3
    values.sum().backward()
    assert hidden.grad.abs().max() == 0


def test_a_head_is_float32_whatever_the_model_and_the_precision():
    model = build("llama").to(torch.bfloat16)
    head = trained_head(model)
    hidden = torch.randn(3, 48).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        values = head(hidden)
    assert {values.dtype, *(parameter.dtype for parameter in head.parameters())} == {torch.float32}
    assert torch.equal(values, hidden.float() @ head.weight + head.bias)


def test_weights_that_a_launch_hands_out_in_bf16_are_multiplied_in_float32():
    """FSDP2 and DeepSpeed do. The weights are rounded then, the products and their sum are not."""
    head = trained_head(build("llama")).to(torch.bfloat16)
    hidden = torch.randn(3, 48).to(torch.bfloat16).requires_grad_()
    values = head(hidden)
    assert values.dtype == torch.float32
    assert torch.equal(values, hidden.float() @ head.weight.float() + head.bias.float())
    values.sum().backward()
    assert {parameter.grad.dtype for parameter in head.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(hidden.grad, head.weight.detach().expand(3, 48))


def test_a_head_is_as_wide_as_what_the_output_layer_gets():
    """OPT-350m projects 1024 numbers to 512 after its last layer."""
    model = build_output_layer("opt_350m")
    assert model.config.hidden_size == 48
    assert ValueHead(model).weight.shape == (24,)


def test_the_file_of_a_head_of_another_width_is_named(tmp_path):
    trained_head(build("llama")).save(tmp_path)
    with pytest.raises(ValueError, match=r"value_head\.safetensors has a value head for states of 48 .* expected 24"):
        ValueHead(build_output_layer("opt_350m")).load(tmp_path)


def test_a_head_comes_back_from_its_file(tmp_path):
    model = build("llama")
    head, other = trained_head(model), ValueHead(model)
    other.load(tmp_path)
    assert other.bias == 0
    head.save(tmp_path)
    other.load(tmp_path)
    assert torch.equal(other.weight, head.weight)
    assert other.bias == head.bias
