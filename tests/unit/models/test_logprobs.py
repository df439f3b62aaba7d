"""Log-probs of sequences, against one plain forward a sequence: no padding, no batch, a whole log-softmax.

Values and gradients of all architectures are compared in ``tests/invariant/test_packed_logprobs.py``.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from astra_accel.models.forward.capabilities import UnsupportedModelError
from astra_accel.models.loading.tiny import TINY_ARCHITECTURES, build_tiny
from astra_accel.models.logprobs import pad_logprobs, sequence_logprobs
from tests.helpers.architectures import build

CLOSE = {"rtol": 0, "atol": 2e-5}
PACKINGS = ["prefix_tree", "none"]


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
@pytest.mark.parametrize("packing", PACKINGS)
def test_any_budget_gives_the_plain_values(model, packing, token_budget):
    top = model.config.vocab_size
    with torch.no_grad():
        assert_plain(model, *examples(MIXED, top), packing=packing, token_budget=token_budget)


def shapes_of(layer: torch.nn.Module, call: Callable[[], object]) -> list[tuple[int, ...]]:
    """The shapes of what a layer is given, without the features."""
    shapes = []
    hook = layer.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape[:2])))
    call()
    hook.remove()
    return shapes


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_budget_bounds_each_forward(model, packing):
    contexts, continuations = examples(MIXED, model.config.vocab_size)

    def score() -> None:
        with torch.no_grad():
            sequence_logprobs(model, contexts, continuations, packing=packing, token_budget=130)

    score()  # the model's checks
    shapes = sorted(shapes_of(model.get_input_embeddings(), score))
    if packing == "none":
        # The last token of each is only predicted: 302 tokens alone, 127 alone; the others are of 1, 5, 7, 13 and 44
        # tokens, and a continuation without tokens needs no forward.
        assert shapes == [(1, 44), (1, 127), (1, 302), (4, 13)]
        return
    # The one sequence that is longer than the budget stands alone.
    assert {num_rows for num_rows, _ in shapes} == {1}
    assert shapes[-1] == (1, 302)
    assert shapes[-2][1] <= 130
    # Two of the contexts may begin alike.
    assert 495 <= sum(num_tokens for _, num_tokens in shapes) <= 302 + 197


def test_every_distinct_prefix_is_read_once(model):
    """Of ``a b c | d e``, ``a b c | d f`` and ``a b | c d e g`` a to e: what ends a sequence is only predicted."""
    contexts, continuations = [[1, 2, 3], [1, 2, 3], [1, 2]], [[4, 5], [4, 6], [3, 4, 5, 7]]
    sequence_logprobs(model, contexts, continuations)  # the model's checks
    found = shapes_of(model.get_input_embeddings(), lambda: assert_plain(model, contexts, continuations))
    assert found[0] == (1, 5)
    assert found[1:] == [(1, 5), (1, 5), (1, 6)]  # the plain path


@pytest.mark.parametrize("packing", PACKINGS)
def test_the_head_runs_at_the_scored_positions_alone(model, packing):
    contexts, continuations = examples([(200, 2), (3, 4)], model.config.vocab_size)

    def score() -> None:
        with torch.no_grad():
            sequence_logprobs(model, contexts, continuations, packing=packing)

    score()  # the model's checks
    expected = {"prefix_tree": (2 + 4, 48), "none": (2, 4)}[packing]
    assert shapes_of(model.get_output_embeddings(), score) == [expected]


# --- Memory -------------------------------------------------------------------------------------------------


def test_without_packing_gradients_take_one_forward(model):
    """Its graph is kept anyway, and processes that train together must run as many forwards."""
    contexts, continuations = examples(MIXED, model.config.vocab_size)
    options = {"packing": "none", "token_budget": 1}
    sequence_logprobs(model, contexts, continuations, **options)  # the model's checks
    embeddings = model.get_input_embeddings()
    (shape,) = shapes_of(embeddings, lambda: sequence_logprobs(model, contexts, continuations, **options))
    assert shape == (sum(1 for continuation in continuations if continuation), 302)


def kept_bytes(model, contexts, continuations, **options) -> int:
    """What autograd keeps of a forward for the backward pass, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.no_grad():
        sequence_logprobs(model, contexts, continuations, **options)  # the model's checks
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        values = sequence_logprobs(model, contexts, continuations, **options)
    assert sum(values).requires_grad
    return sum(kept.values())


def test_of_several_packs_one_keeps_its_activations(model):
    contexts, continuations = examples([(40, 40)] * 5, model.config.vocab_size)
    together = kept_bytes(model, contexts, continuations)
    assert kept_bytes(model, contexts, continuations, token_budget=80) < 0.35 * together
    assert kept_bytes(model, contexts[:1], continuations[:1]) > 0.15 * together


@pytest.mark.parametrize("packing", PACKINGS)
def test_checkpointed_layers_keep_little(model, packing):
    contexts, continuations = examples([(60, 4)] * 3, model.config.vocab_size)
    more, less = (
        kept_bytes(model, contexts, continuations, packing=packing, activation_checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    assert less < 0.6 * more


# --- Odd tokens, adapters, gradients --------------------------------------------------------------------------


def test_pad_and_end_tokens_among_the_content(model):
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    contexts = [[pad, 5, pad, pad], [end], [pad] * 30, [0, 0, 0], [7, end, 8]]
    continuations = [[end, pad, 3], [9, end], [pad], [0, 0], [end, 1, 2, 3, end, end]]
    with torch.no_grad():
        assert_plain(model, contexts, continuations)


def test_pad_equal_to_end_is_the_gpt2_case():
    config = build_tiny("gpt2")[0].config
    assert config.pad_token_id == config.eos_token_id


def adapted(model) -> tuple[PeftModel, PreTrainedModel]:
    """The model with an adapter that changes it (without the usual zeros in B), and a copy with it merged."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    wrapped = get_peft_model(model, config).eval()
    return wrapped, copy.deepcopy(wrapped).merge_and_unload()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")
def test_an_adapter_counts(model):
    """Whether the model or its wrapper is asked."""
    contexts, continuations = examples([(4, 6), (50, 3), (2, 2)], model.config.vocab_size)
    before = sequence_logprobs(model, contexts, continuations)
    wrapped, merged = adapted(model)
    for asked in (model, wrapped):
        found = sequence_logprobs(asked, contexts, continuations)
        assert all((one - other).abs().max() > 1e-3 for one, other in zip(found, before, strict=True))
        for values, context, continuation in zip(found, contexts, continuations, strict=True):
            torch.testing.assert_close(values, plain(merged, context, continuation), rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize(
    "options",
    [
        {"packing": "prefix_tree"},
        {"packing": "prefix_tree", "token_budget": 40, "activation_checkpointing": True},
        {"packing": "none", "activation_checkpointing": True},
    ],
    ids=["packed", "several packs, checkpointed", "padded, checkpointed"],
)
def test_an_adapters_gradients_are_those_of_the_plain_path(model, options):
    """All else is frozen: the embeddings ask for no gradient, and the head is run another way."""
    contexts, continuations = examples([(3, 5), (30, 2), (1, 1), (9, 0), (12, 9)], model.config.vocab_size)
    contexts[1] = [*contexts[4], *contexts[1]]
    wrapped, _ = adapted(model)

    def gradient(logprobs: list[torch.Tensor]) -> torch.Tensor:
        wrapped.zero_grad()
        sum((values * torch.linspace(-1, 2, len(values))).sum() for values in logprobs).backward()
        trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
        assert not any(parameter.grad is not None for parameter in wrapped.parameters() if not parameter.requires_grad)
        return torch.cat([parameter.grad.flatten() for parameter in trained])

    found = gradient(sequence_logprobs(wrapped, contexts, continuations, **options))
    expected = gradient([plain(wrapped, *pair) for pair in zip(contexts, continuations, strict=True)])
    assert expected.norm() > 1
    assert (found - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")
@pytest.mark.parametrize("packing", PACKINGS)
def test_an_adapter_on_16_bits_can_be_trained(model, packing):
    contexts, continuations = examples([(4, 6), (50, 3)], model.config.vocab_size)
    wrapped, merged = adapted(model.bfloat16())
    found = sequence_logprobs(wrapped, contexts, continuations, packing=packing)
    for values, context, continuation in zip(found, contexts, continuations, strict=True):
        assert values.dtype == torch.float32
        torch.testing.assert_close(values, plain(merged, context, continuation).float(), rtol=0, atol=0.3)
    sum(values.sum() for values in found).backward()
    assert all(parameter.grad.norm() > 0 for parameter in wrapped.parameters() if parameter.requires_grad)


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


def test_rows_are_padded_with_zeros():
    rows = [torch.tensor([-1.0, -2.0]), torch.zeros(0), torch.tensor([-3.0])]
    assert pad_logprobs(rows).tolist() == [[-1, -2], [0, 0], [-3, 0]]
    assert pad_logprobs([torch.zeros(0), torch.zeros(0)]).shape == (2, 0)


def test_an_unknown_packing_is_named(model):
    with pytest.raises(ValueError, match="packing is 'tight', expected auto, prefix_tree or none"):
        sequence_logprobs(model, [[1]], [[2]], packing="tight")


class Odd(torch.nn.Linear):
    """An output layer that may do anything else."""


def test_a_head_of_another_kind_is_not_packed():
    model = build_tiny("qwen2")[0]
    odd = Odd(model.config.hidden_size, model.config.vocab_size, bias=False)
    odd.load_state_dict(model.lm_head.state_dict())
    model.lm_head = odd
    assert_plain(model, *examples(MIXED, model.config.vocab_size))
    with pytest.raises(ValueError, match="can't do prefix-tree packing: its output layer is not a plain linear layer"):
        sequence_logprobs(model, [[1]], [[2]], packing="prefix_tree")


def test_mixed_precision_packs_too(model):
    """Under autocast, values and gradients are the plain ones of full precision but for the rounding of bfloat16."""
    contexts, continuations = examples([(5, 40), (17, 3), (64, 12)], model.config.vocab_size)
    parameters = list(model.parameters())
    results = []
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            values = torch.cat(sequence_logprobs(model, contexts, continuations, packing="prefix_tree"))
        gradients = torch.autograd.grad(values.mean(), parameters)
        results.append((values.detach(), torch.cat([gradient.flatten() for gradient in gradients])))
    (exact, exact_gradient), (mixed, mixed_gradient) = results
    assert mixed.dtype == torch.float32
    assert 1e-4 < (mixed - exact).abs().max() < 0.5
    assert torch.cosine_similarity(mixed_gradient, exact_gradient, dim=0) > 0.99


@pytest.mark.parametrize("packing", PACKINGS)
def test_what_scores_nothing_depends_on_the_weights_all_the_same(model, packing):
    """A process whose examples have no token takes part in what processes do in a backward pass."""
    (values,) = sequence_logprobs(model, [[3, 4, 5]], [[]], packing=packing)

    assert values.shape == (0,)
    values.sum().backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in model.parameters())
    with torch.no_grad():
        assert not sequence_logprobs(model, [[3, 4, 5]], [[]], packing=packing)[0].requires_grad


class TestSharded:
    """Weights that processes gather together, so that all of them must make as many forwards."""

    @pytest.fixture(autouse=True)
    def sharded(self, monkeypatch):
        monkeypatch.setattr("astra_accel.models.logprobs.is_sharded", lambda model: True)

    @pytest.mark.parametrize("packing", PACKINGS)
    def test_there_is_one_forward_whatever_the_budget(self, model, packing):
        contexts, continuations = examples(MIXED, model.config.vocab_size)
        with torch.no_grad():
            sequence_logprobs(model, contexts, continuations, packing=packing)  # the model's checks
        forwards = []
        model.get_input_embeddings().register_forward_hook(lambda *_: forwards.append(1))

        assert_plain(model, contexts, continuations, packing=packing, token_budget=1)

        plain_ones = len(contexts)
        assert len(forwards) == 1 + plain_ones

    def test_a_model_that_takes_no_padding_is_refused(self):
        model = build("mamba")
        with torch.no_grad():
            sequence_logprobs(model, [[3, 4]], [[5]])
        with pytest.raises(
            UnsupportedModelError, match=r"Mamba.* takes no padding.*expected a launch by DDP or ZeRO-2"
        ):
            sequence_logprobs(model, [[3, 4]], [[5]])
