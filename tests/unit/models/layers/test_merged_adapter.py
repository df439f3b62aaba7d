"""An adapter merged for a while: the model says what it says with the adapter, and holds what it held before."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer

from astra_accel.models.layers.merged_adapter import _sum, can_merge, merged_adapter
from tests.helpers.architectures import build
from tests.helpers.special_models import build_special

IDS = torch.arange(1, 40)[None]

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out", "ignore:`is_gradient_checkpointing`")


def adapted(architecture: str = "llama", **options) -> PeftModel:
    """A LoRA adapter that is no longer the zero that it begins as."""
    torch.manual_seed(0)
    settings = {"r": 4, "target_modules": "all-linear", "init_lora_weights": False, "task_type": "CAUSAL_LM"} | options
    return get_peft_model(build(architecture), LoraConfig(**settings)).eval()


def logits(model: PeftModel) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def state(
    model: PeftModel,
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[int, bool]], list[tuple[bool, list[str]]]]:
    """All weights, which memory they are in and whether they train, and what the layers say of their adapters."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        {name: (parameter.data_ptr(), parameter.requires_grad) for name, parameter in model.named_parameters()},
        [(layer.disable_adapters, list(layer.active_adapters)) for layer in layers],
    )


def assert_unchanged(model: PeftModel, before) -> None:
    now = state(model)
    assert all(torch.equal(now[0][name], value) for name, value in before[0].items())
    assert now[1:] == before[1:]


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma2", "qwen2", "phi"])
def test_merged_the_model_says_the_same(architecture):
    """GPT-2's layers hold their weights the other way round."""
    model = adapted(architecture)
    before, expected = state(model), logits(model)
    switch = merged_adapter(model, "default")
    for _ in range(2):
        with switch():
            torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
            assert not torch.equal(logits(model), expected)  # one matrix product in place of three rounds otherwise
        assert_unchanged(model, before)
        assert torch.equal(logits(model), expected)
    with model.disable_adapter():
        assert (logits(model) - expected).abs().max() > 0.1


def test_in_bfloat16_a_quarter_of_a_step_moves_a_quarter_of_the_weights():
    """From 1 to 2 the numbers of bfloat16 are 1 / 128 apart."""
    weight = torch.ones(100, 200, dtype=torch.bfloat16)
    for share in (0.01, 0.25, 0.5, 0.99):
        total = _sum(weight, torch.full(weight.shape, share / 128))
        assert set(total.flatten().tolist()) == {1.0, 1 + 1 / 128}
        assert float((total > 1).float().mean()) == pytest.approx(share, abs=1e-3)


def test_in_bfloat16_sums_are_right_on_average_and_within_a_step():
    """Of 200,000 evenly spread errors below a step of 2**-7 the mean is far below 1e-4 of a weight."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(400, 500, generator=generator).bfloat16()
    change = torch.randn(400, 500, generator=generator) * 1e-4
    error = (_sum(weight, change).double() - (weight.double() + change.double())) / (weight.double().abs() + 1e-3)
    assert float(error.abs().max()) <= 2**-7
    assert abs(float(error.mean())) < 1e-5
    rounded = (weight.float() + change).bfloat16().double() - weight.double()
    kept = (_sum(weight, change).double() - weight.double() - change).mul(change).sum() / change.square().sum()
    assert abs(float(kept)) < 0.05
    assert float(rounded.mul(change).sum() / change.square().sum()) < 0.9  # the nearest numbers lose some of it


def test_a_change_of_zero_changes_nothing():
    weight = torch.randn(30, 40).bfloat16()
    assert torch.equal(_sum(weight, torch.zeros(30, 40)), weight)


@torch.no_grad()
def test_in_bfloat16_the_model_says_the_same_as_beside_its_weights():
    """The adapter moves log-probs by about 1."""
    model = adapted()
    exact = logits(model).log_softmax(-1)
    with model.disable_adapter():
        without = logits(model).log_softmax(-1)
    model.to(torch.bfloat16)
    beside = logits(model).float().log_softmax(-1)
    with merged_adapter(model, "default")():
        merged = logits(model).float().log_softmax(-1)
    off = [float((found - exact).square().mean().sqrt()) for found in (beside, merged, without)]
    assert off[1] < 1.5 * off[0] < 0.1 * off[2]


def test_an_error_within_leaves_everything_as_it_was():
    model = adapted()
    before, expected = state(model), logits(model)
    with pytest.raises(RuntimeError, match="in the middle"), merged_adapter(model, "default")():
        raise RuntimeError("in the middle")
    assert_unchanged(model, before)
    assert torch.equal(logits(model), expected)


def test_the_adapter_is_merged_as_it_is_when_asked_for():
    model = adapted()
    expected = logits(model)
    switch = merged_adapter(model, "default")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.mul_(2)
    with switch():
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    with merged_adapter(model, "default")():
        assert (logits(model) - expected).abs().max() > 0.1


def test_one_of_several_adapters_is_merged():
    model = adapted()
    expected = logits(model)
    model.add_adapter("other", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    assert merged_adapter(model, "other") is None, "not all layers have it"
    with merged_adapter(model, "default")():
        torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_training_goes_on_after_it():
    """The gradients are those of a model that was never merged."""
    model, other = adapted(), adapted()
    with merged_adapter(model, "default")():
        logits(model)
    for each in (model, other):
        each(input_ids=IDS).logits.square().mean().backward()
    gradients = [{name: value.grad for name, value in each.named_parameters()} for each in (model, other)]
    assert all(
        (gradient is None) == (gradients[1][name] is None)
        and (gradient is None or torch.equal(gradient, gradients[1][name]))
        for name, gradient in gradients[0].items()
    )
    assert sum(gradient is not None for gradient in gradients[0].values()) > 0


class Twice(torch.nn.Module):
    """One layer in two places, of which PEFT adapts the first; and a weight that a table shares."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(40, 8)
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Sequential(self.first)
        self.head = torch.nn.Linear(8, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(torch.tanh(self.first(self.table(input_ids)))))


def test_what_shares_a_layer_or_a_weight_keeps_its_own():
    torch.manual_seed(0)
    model = get_peft_model(Twice(), LoraConfig(r=2, target_modules=["first", "head"], init_lora_weights=False))
    with torch.no_grad():
        expected = model(IDS)
        with merged_adapter(model, "default")():
            torch.testing.assert_close(model(IDS), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(model(IDS), expected)
        with model.disable_adapter():
            assert not torch.allclose(model(IDS), expected, atol=1e-2)


@pytest.mark.parametrize(("name", "merges"), [("zamba", True), ("deepseek_v3", True), ("jamba", False)])
def test_an_adapter_merges_where_no_layer_is_read_past_its_forward(name, merges):
    """PEFT's ``all-linear``: fused experts, blocks in several places, and ``dt_proj``, whose weight Jamba reads."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(build_special(name), config).eval()
    before, expected = state(model), logits(model)
    assert can_merge(model.get_base_model(), "default") == merges
    assert_unchanged(model, before)
    with merged_adapter(model, "default")():
        same = torch.allclose(logits(model), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert same == merges
    assert_unchanged(model, before)


def quantised() -> PeftModel:
    model = adapted()
    layer = next(module for module in model.modules() if isinstance(module, LoraLayer))
    packed = torch.nn.Parameter(layer.base_layer.weight.data.to(torch.uint8), requires_grad=False)
    layer.base_layer.weight = packed
    return model


def merged_already() -> PeftModel:
    model = adapted()
    model.merge_adapter()
    return model


NOT_MERGED = {
    "no adapter at all": lambda: build("llama"),
    "bias": lambda: adapted("qwen2", target_modules=["q_proj"], lora_bias=True),
    "DoRA": lambda: adapted(use_dora=True),
    "float16": lambda: adapted().to(torch.float16),
    "quantised": quantised,
    "embeddings": lambda: adapted("qwen2", target_modules=["embed_tokens", "q_proj"]),
    "merged already": merged_already,
}


@pytest.mark.parametrize("case", NOT_MERGED)
def test_what_merging_would_change_is_left_alone(case):
    assert merged_adapter(NOT_MERGED[case](), "default") is None
