"""The output layer in chunks, against a whole log-softmax and torch's own gradients."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import CohereConfig, CohereForCausalLM, GraniteConfig, GraniteForCausalLM

from astra_accel.models.forward.head import Head, token_logprobs
from tests.helpers.architectures import ARCHITECTURES, build

NUM_ROWS, HIDDEN, VOCABULARY = 11, 6, 19
# Asked for in no order, some rows twice, the same token of a row twice, and some rows not at all.
ROWS = torch.tensor([3, 10, 0, 3, 7, 3, 10, 1, 9, 0])
TOKENS = torch.tensor([5, 0, 18, 5, 7, 6, 18, 1, 2, 0])
WEIGHTS = torch.linspace(-1, 2, len(ROWS))

# What is in a chunk: everything, 4 rows of 3 chunks, one row each, less than a row.
CHUNK_BYTES = {"whole": 2**20, "three": 4 * 4 * VOCABULARY, "rows": 4 * VOCABULARY, "tiny": 1}


def head(trained: bool = False, bias: bool = False, **options) -> Head:
    generator = torch.Generator().manual_seed(1)
    linear = torch.nn.Linear(HIDDEN, VOCABULARY, bias=bias)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return Head(linear.requires_grad_(trained), **options)


def hidden() -> torch.Tensor:
    return torch.randn(NUM_ROWS, HIDDEN, generator=torch.Generator().manual_seed(0)).requires_grad_()


def whole(layer: Head, hidden_RH: torch.Tensor) -> torch.Tensor:
    """All log-probs of all rows, the logits as in the papers."""
    logits = layer.linear(hidden_RH) * layer.scale
    if layer.softcap is not None:
        logits = layer.softcap * torch.tanh(logits / layer.softcap)
    return logits.log_softmax(-1)[ROWS, TOKENS]


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("chunk", CHUNK_BYTES)
@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 0.3}, {"softcap": 1.5}, {"scale": 2.0, "softcap": 3.0}],
    ids="-".join,
)
def test_values_and_gradients_are_those_of_a_whole_log_softmax(trained, chunk, bias, options):
    layer = head(trained, bias, chunk_bytes=CHUNK_BYTES[chunk], **options)

    def run(values: torch.Tensor, input_RH: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        inputs = [input_RH, *(layer.linear.parameters() if trained else [])]
        return values, list(torch.autograd.grad((values * WEIGHTS).sum(), inputs))

    mine, other = hidden(), hidden()
    values, gradients = run(layer.logprobs(mine, ROWS, TOKENS), mine)
    expected, expected_gradients = run(whole(layer, other), other)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)
    assert len(gradients) == 1 + trained * (1 + bias)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert expected_gradient.abs().max() > 0.1
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_a_chunk_may_have_nothing_to_say(trained):
    """All that is asked for is in the last of eleven chunks."""
    layer = head(trained, chunk_bytes=1)
    rows, tokens = torch.tensor([10, 10]), torch.tensor([4, 2])
    values = layer.logprobs(hidden(), rows, tokens)
    torch.testing.assert_close(values, layer.linear(hidden()).log_softmax(-1)[rows, tokens])
    values.sum().backward()


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_without_gradients(trained):
    layer = head(trained, chunk_bytes=CHUNK_BYTES["three"])
    with torch.no_grad():
        values = layer.logprobs(hidden(), ROWS, TOKENS)
    assert not values.requires_grad
    torch.testing.assert_close(values, whole(layer, hidden()).detach(), rtol=1e-5, atol=1e-5)


def test_no_more_than_a_chunk_of_logits_is_made_at_once():
    layer = head(chunk_bytes=CHUNK_BYTES["three"])
    sizes = []
    layer.linear.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    layer.logprobs(hidden(), ROWS, TOKENS)
    assert sizes == [4, 4, 3]


def test_under_a_frozen_head_a_chunk_of_logits_is_the_only_tensor_of_its_size():
    chunk_bytes = 100 * 5000 * 4
    layer = Head(torch.nn.Linear(HIDDEN, 5000, bias=False).requires_grad_(False), chunk_bytes=chunk_bytes)
    input_RH = torch.randn(300, HIDDEN).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        layer.logprobs(input_RH, torch.arange(300), torch.arange(300))
    # Allocations, and what is freed as negative ones, by time: those within torch's operations too.
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    assert chunk_bytes <= max(accumulate(changes)) < 1.5 * chunk_bytes


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_a_head_of_16_bits_gives_float32_within_rounding(trained):
    """Values in float32, the gradient in the type of what it is for."""
    layer, exact_RH = head(trained), hidden()
    exact = whole(layer, exact_RH)
    (exact * WEIGHTS).sum().backward()
    layer.linear.bfloat16()
    input_RH = hidden().detach().bfloat16().requires_grad_()
    values = layer.logprobs(input_RH, ROWS, TOKENS)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values, exact, rtol=0, atol=0.1)
    (values * WEIGHTS).sum().backward()
    assert input_RH.grad.dtype == torch.bfloat16
    torch.testing.assert_close(input_RH.grad.float(), exact_RH.grad, rtol=0, atol=0.1)


# --- Single tokens ------------------------------------------------------------------------------------------


def test_token_logprobs_by_hand():
    """Odds of 1 : 3 and of 9 : 1."""
    logits = torch.tensor([[1.0, 3.0], [9.0, 1.0]]).log()
    assert token_logprobs(logits, torch.tensor([1, 1])).exp().tolist() == pytest.approx([0.75, 0.1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_token_logprobs_are_computed_in_float32(dtype):
    logits = (torch.randn(3, 4, 1000, generator=torch.Generator().manual_seed(0)) * 20).to(dtype)
    tokens = torch.arange(12).reshape(3, 4) * 80
    found = token_logprobs(logits, tokens)
    expected = logits.double().log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-5)


def test_large_logits_do_not_overflow():
    logits = torch.tensor([[6e4, 0.0]], requires_grad=True)
    values = token_logprobs(logits, torch.tensor([1]))
    values.sum().backward()
    assert values.tolist() == [-6e4]
    assert logits.grad.tolist() == [[-1.0, 1.0]]


# --- The head of a model ------------------------------------------------------------------------------------


def scaled(architecture: str) -> torch.nn.Module:
    """Cohere multiplies its logits, Granite divides them."""
    sizes = {
        "vocab_size": 40,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "pad_token_id": 0,
        "initializer_range": 0.5,
    }
    torch.manual_seed(0)
    if architecture == "cohere":
        return CohereForCausalLM(CohereConfig(**sizes, logit_scale=0.25)).eval()
    return GraniteForCausalLM(GraniteConfig(**sizes, logits_scaling=4.0)).eval()


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "cohere", "granite"])
def test_the_head_of_a_model_makes_its_logits(architecture):
    model = build(architecture) if architecture in ARCHITECTURES else scaled(architecture)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        found = Head.from_model(model).logits(model.base_model(ids)[0])
        torch.testing.assert_close(found, model(ids).logits.float(), rtol=1e-5, atol=1e-5)


class Odd(torch.nn.Linear):
    """A linear layer that may do anything else."""


@pytest.mark.parametrize("layer", [None, Odd(48, 260), torch.nn.Sequential(torch.nn.Linear(48, 260))])
def test_a_head_that_is_not_a_plain_linear_layer_is_none(layer):
    model = build("qwen2")
    model.lm_head = layer
    assert Head.from_model(model) is None
