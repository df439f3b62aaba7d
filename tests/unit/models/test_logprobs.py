"""Log-probs of sequences, against one plain forward a sequence: no padding, no batch, a whole log-softmax."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import PreTrainedModel

from astra_accel.models.logprobs import pad_logprobs, sequence_logprobs, token_logprobs
from astra_accel.models.tiny import TINY_ARCHITECTURES, build_tiny

CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(params=TINY_ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return build_tiny(request.param)[0]


def plain(model, context: list[int], continuation: list[int]) -> torch.Tensor:
    logprobs = model(input_ids=torch.tensor([[*context, *continuation]])).logits[0].log_softmax(-1)
    # Position t says what token t + 1 is.
    return logprobs[torch.arange(len(continuation)) + len(context) - 1, continuation]


def examples(lengths: list[tuple[int, int]], top: int = 260) -> tuple[list[list[int]], list[list[int]]]:
    """Random ids; the lengths are those of contexts and continuations."""
    draw = random.Random(0)
    ids = [[[draw.randrange(top) for _ in range(length)] for length in pair] for pair in lengths]
    return [context for context, _ in ids], [continuation for _, continuation in ids]


MIXED = [(1, 1), (300, 3), (5, 40), (17, 0), (2, 12), (64, 64), (1, 7), (5, 1)]


def assert_plain(model, contexts, continuations, **options) -> None:
    found = sequence_logprobs(model, contexts, continuations, **options)
    assert [values.dtype for values in found] == [torch.float32] * len(contexts)
    for values, context, continuation in zip(found, contexts, continuations, strict=True):
        with torch.no_grad():
            expected = plain(model, context, continuation)
        torch.testing.assert_close(values.detach(), expected, **CLOSE)


@pytest.mark.parametrize("token_budget", [1, 80, 400, 8192])
def test_any_budget_gives_the_plain_values(model, token_budget):
    top = model.config.vocab_size
    with torch.no_grad():
        assert_plain(model, *examples(MIXED, top), token_budget=token_budget)


def test_the_budget_bounds_each_forward(model):
    contexts, continuations = examples(MIXED, model.config.vocab_size)
    shapes = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: shapes.append(args[0].shape))
    with torch.no_grad():
        sequence_logprobs(model, contexts, continuations, token_budget=130)
    # 303 tokens alone, 128 alone; the others are of 2, 6, 8, 14 and 45 tokens, and a continuation without tokens
    # needs no forward.
    assert sorted(tuple(shape) for shape in shapes) == [(1, 45), (1, 128), (1, 303), (4, 14)]


def test_with_gradients_there_is_one_forward(model):
    """Its graph is kept anyway, and processes that train together must run as many forwards."""
    contexts, continuations = examples(MIXED, model.config.vocab_size)
    rows = []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    assert_plain(model, contexts, continuations, token_budget=1)
    assert rows[0] == sum(1 for continuation in continuations if continuation)
    assert set(rows[1:]) == {1}  # the plain path


def test_the_head_runs_at_the_scored_positions_alone(model):
    contexts, continuations = examples([(200, 2), (3, 4)], model.config.vocab_size)
    shapes = []
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: shapes.append(args[0].shape[:2]))
    with torch.no_grad():
        sequence_logprobs(model, contexts, continuations)
    assert [tuple(shape) for shape in shapes] == [(2, 5)]


def test_pad_and_end_tokens_among_the_content(model):
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    contexts = [[pad, 5, pad, pad], [end], [pad] * 30, [0, 0, 0], [7, end, 8]]
    continuations = [[end, pad, 3], [9, end], [pad], [0, 0], [end, 1, 2, 3, end, end]]
    with torch.no_grad():
        assert_plain(model, contexts, continuations)


def test_pad_equal_to_end_is_the_gpt2_case():
    config = build_tiny("gpt2")[0].config
    assert config.pad_token_id == config.eos_token_id


def test_gradients_are_those_of_the_plain_path(model):
    contexts, continuations = examples([(3, 5), (30, 2), (1, 1), (9, 0), (12, 9)], model.config.vocab_size)
    weights = [torch.linspace(-1, 2, len(continuation)) for continuation in continuations]

    def gradients(logprobs: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        model.zero_grad()
        sum((values * weight).sum() for values, weight in zip(logprobs, weights, strict=True) if len(weight)).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    found = gradients(sequence_logprobs(model, contexts, continuations, token_budget=40))
    expected = gradients([plain(model, *pair) for pair in zip(contexts, continuations, strict=True)])
    assert max(gradient.abs().max() for gradient in expected.values()) > 1
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: name + text)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")
def test_an_adapter_counts(model):
    """Against a copy with the adapter merged into the weights."""
    contexts, continuations = examples([(4, 6), (50, 3), (2, 2)], model.config.vocab_size)
    before = sequence_logprobs(model, contexts, continuations)
    torch.manual_seed(0)
    # Without the usual zeros in B.
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config).eval()
    merged = copy.deepcopy(wrapped).merge_and_unload()
    found = sequence_logprobs(model, contexts, continuations)
    assert all((one - other).abs().max() > 1e-3 for one, other in zip(found, before, strict=True))
    for values, context, continuation in zip(found, contexts, continuations, strict=True):
        torch.testing.assert_close(values, plain(merged, context, continuation), rtol=0, atol=1e-4)
    sum(values.sum() for values in found).backward()
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    assert trained
    assert all(parameter.grad.abs().max() > 0 for parameter in trained)


def test_no_gradient_where_gradients_are_off(model):
    with torch.no_grad():
        (values,) = sequence_logprobs(model, [[1]], [[2, 3]])
    assert not values.requires_grad


def test_nothing_to_score(model):
    assert sequence_logprobs(model, [], []) == []
    first, second = sequence_logprobs(model, [[1], [2, 3]], [[], ()])
    assert (first.shape, second.shape, first.dtype) == ((0,), (0,), torch.float32)


def test_an_empty_context_is_named(model):
    with pytest.raises(ValueError, match="context 1 is empty: its continuation's first token has nothing to follow"):
        sequence_logprobs(model, [[1], []], [[2], [3]])


def test_as_many_contexts_as_continuations(model):
    with pytest.raises(ValueError, match="1 contexts and 2 continuations: expected as many of each"):
        sequence_logprobs(model, [[1]], [[2], [3]])


# --- The parts ----------------------------------------------------------------------------------------------


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


def test_rows_are_padded_with_zeros():
    rows = [torch.tensor([-1.0, -2.0]), torch.zeros(0), torch.tensor([-3.0])]
    assert pad_logprobs(rows).tolist() == [[-1, -2], [0, 0], [-3, 0]]
    assert pad_logprobs([torch.zeros(0), torch.zeros(0)]).shape == (2, 0)
