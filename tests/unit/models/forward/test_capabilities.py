"""What a model can do is found out once, and said once."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from astra_accel.models.decoding.generation import carries
from astra_accel.models.forward import capabilities
from astra_accel.models.forward.capabilities import (
    UnsupportedModelError,
    assert_same,
    check_sequences,
    plain_logprobs,
    supports,
    transformers_model,
)
from astra_accel.models.logprobs import can_pack
from tests.helpers.architectures import build


class Check:
    """Counts how often it runs, and fails as it is told."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.models: list[torch.nn.Module] = []
        self.windows: list[int | None] = []

    def __call__(self, model: torch.nn.Module) -> None:
        self.models.append(model)
        self.windows.append(getattr(model.config, "sliding_window", None))
        assert not torch.is_grad_enabled()
        if self.error is not None:
            raise self.error


def test_a_check_runs_once_a_model_and_feature(caplog):
    model, other, check = build("llama"), build("llama"), Check()
    assert [supports(model, "juggling", check, "balls fall") for _ in range(3)] == [True] * 3
    assert check.models == [model]
    assert supports(model, "singing", check, "silence")
    assert supports(other, "juggling", check, "balls fall")
    assert check.models == [model, model, other]
    assert caplog.messages == []


def test_another_attention_implementation_is_another_model():
    model, check = build("llama"), Check()
    supports(model, "juggling", check, "balls fall")
    model.set_attn_implementation("eager")
    supports(model, "juggling", check, "balls fall")
    assert len(check.models) == 2


@pytest.mark.parametrize(
    ("error", "reason"), [(UnsupportedModelError("two hands"), "two hands"), (KeyError("ball"), "KeyError: 'ball'")]
)
def test_what_fails_is_said_once(error, reason, caplog):
    model, check = build("llama"), Check(error)
    assert [supports(model, "juggling", check, "balls fall") for _ in range(3)] == [False] * 3
    assert len(check.models) == 1
    assert caplog.messages == [f"LlamaForCausalLM can't do juggling ({reason}): balls fall."]


def test_what_is_required_raises_every_time_and_warns_never(caplog):
    model, check = build("llama"), Check(UnsupportedModelError("two hands"))
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=r"^LlamaForCausalLM can't do juggling: two hands$"):
            supports(model, "juggling", check, "balls fall", required=True)
    assert len(check.models) == 1
    assert caplog.messages == []
    assert supports(model, "walking", Check(), "", required=True)


def test_an_error_of_memory_is_not_taken_for_the_models():
    model, check = build("llama"), Check(torch.OutOfMemoryError("full"))
    for count in (1, 2):
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            supports(model, "juggling", check, "balls fall")
        assert len(check.models) == count


@pytest.mark.parametrize("error", [None, UnsupportedModelError("no"), torch.OutOfMemoryError("full")])
def test_a_window_is_narrow_for_the_check_alone(error):
    model, check = build("mistral"), Check(error)
    model.config.sliding_window = 4096
    with suppress(torch.OutOfMemoryError):
        supports(model, "juggling", check, "balls fall")
    assert model.config.sliding_window == 4096
    longest = max(
        len(context) + len(continuation) for context, continuation in zip(*check_sequences(model), strict=True)
    )
    assert check.windows[0] < longest
    assert torch.is_grad_enabled()


# --- The parts of a check -----------------------------------------------------------------------------------


def test_same_is_within_rounding_of_the_type():
    expected = [torch.tensor([-0.5, -20.0]), torch.tensor([-3.0])]
    near = [expected[0] * (1 + 5e-5), expected[1]]
    assert_same(near, expected, torch.float32)
    far = [expected[0], expected[1] * 1.001]
    assert_same(far, expected, torch.bfloat16)
    with pytest.raises(UnsupportedModelError, match=r"log-probs differ by 1\.0e-03 from the plain way"):
        assert_same(far, expected, torch.float32)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_what_is_no_number_is_not_the_same(value):
    with pytest.raises(UnsupportedModelError, match="differ by"):
        assert_same([torch.tensor([-1.0, value])], [torch.tensor([-1.0, -2.0])], torch.bfloat16)


def test_plain_logprobs_are_those_of_a_growing_context():
    """The oracle of the checks, against one forward for each token."""
    model = build("mistral")
    contexts, continuations = check_sequences(model)
    with torch.no_grad():
        for values, context, continuation in zip(
            plain_logprobs(model, contexts, continuations), contexts, continuations, strict=True
        ):
            expected = [
                model(torch.tensor([[*context, *continuation[:place]]])).logits[0, -1].log_softmax(-1)[token]
                for place, token in enumerate(continuation)
            ]
            torch.testing.assert_close(values, torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`")
def test_the_model_within_an_adapters_wrapper():
    model = build("llama")
    assert transformers_model(model) is model
    assert transformers_model(get_peft_model(model, LoraConfig(target_modules=["q_proj"]))) is model


@pytest.mark.parametrize(
    ("config_name", "sizes", "limits"),
    [
        ("mistral", {"sliding_window": 4096}, {"sliding_window": 8}),
        ("deepseek_v32", {"index_topk": 2048}, {"index_topk": 8}),
        ("doge", {"keep_window_size": 2048, "max_position_embeddings": 2048}, {"keep_window_size": 2048}),
        ("doge", {"keep_window_size": 2048, "max_position_embeddings": 4096}, {"keep_window_size": 8}),
        (
            "llama4_text",
            {"attention_chunk_size": 8192, "floor_scale": 8192},
            {"attention_chunk_size": 8, "floor_scale": 8},
        ),
    ],
)
def test_limits_of_many_kinds_are_short_in_a_check(config_name, sizes, limits):
    model = build("llama")
    model.config = CONFIG_MAPPING[config_name](**sizes)
    layer = model.model.layers[0].self_attn
    for name, value in sizes.items():
        setattr(layer, name, value)
    seen = {}

    def check(model):
        seen.update({name: (getattr(model.config, name), getattr(layer, name)) for name in limits})

    supports(model, "juggling", check, "balls fall")
    assert seen == {name: (limit, limit) for name, limit in limits.items()}
    for name, value in sizes.items():
        assert (getattr(model.config, name), getattr(layer, name)) == (value, value)


# --- Models of 16 bits --------------------------------------------------------------------------------------


class Types:
    """Notes the type that it is run in, and finds a difference of log-probs there, or none."""

    def __init__(self, **differences: float) -> None:
        self.differences = {getattr(torch, name): value for name, value in differences.items()}
        self.seen: list[torch.dtype] = []

    def __call__(self, model: torch.nn.Module) -> None:
        self.seen.append(model.dtype)
        expected = torch.tensor([-1.0])
        assert_same([expected + self.differences.get(model.dtype, 0.0)], [expected], model.dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_are_checked_in_float32_first_and_left_as_they_were(dtype):
    model, check = build("llama").to(dtype), Types()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert supports(model, "juggling", check, "balls fall")
    assert check.seen == [torch.float32, dtype]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.dtype == dtype


def test_what_is_wrong_by_less_than_sixteen_bits_round_is_found(caplog):
    """Positions that are one too many change log-probs of a real model by a twentieth."""
    model, check = build("llama").bfloat16(), Types(float32=0.05, bfloat16=0.05)
    assert not supports(model, "juggling", check, "balls fall")
    assert "log-probs differ by 5.0e-02" in caplog.text


@pytest.mark.parametrize(("difference", "is_right"), [(0.3, True), (0.6, False)])
def test_rounding_to_sixteen_bits_is_no_reason_and_an_operation_that_is_wrong_in_them_is(difference, is_right):
    assert supports(build("llama").bfloat16(), "juggling", Types(bfloat16=difference), "balls fall") == is_right


def test_without_room_for_float32_sixteen_bits_are_checked_alone(monkeypatch):
    monkeypatch.setattr(capabilities, "free_memory", lambda device: 0)
    check = Types(bfloat16=0.05)
    assert supports(build("llama").bfloat16(), "juggling", check, "balls fall")
    assert check.seen == [torch.bfloat16]
    assert not supports(build("llama").bfloat16(), "juggling", Types(bfloat16=0.3), "balls fall")


def test_an_error_in_float32_leaves_the_weights_as_they_were():
    model = build("llama").bfloat16()
    with pytest.raises(torch.OutOfMemoryError):
        supports(model, "juggling", Check(torch.OutOfMemoryError("full")), "balls fall")
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral"])
def test_a_model_of_sixteen_bits_can_do_what_it_can_in_float32(name):
    model = build(name).bfloat16()
    assert can_pack(model)
    assert carries(model)
