"""What is written as JSON comes back the same to the bit, and nothing else is made of it."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from astra_accel.algorithms.dpo import DPOStep
from astra_accel.experience.codec import Codec
from astra_accel.methods.ast.transcript import Segment, Transcript


@dataclass(frozen=True)
class Example:
    state: Any
    more: Any = None


class Pair(NamedTuple):
    one: Any
    other: Any


CODEC = Codec([Example, Pair, DPOStep, Transcript, Segment])


def round_trip(value: Any, codec: Codec = CODEC) -> Any:
    return codec.decode(json.loads(json.dumps(codec.encode(value))))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers() | st.tuples(st.integers(), st.text()), inner)
        | st.builds(Example, inner, inner)
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=20,
)


@given(VALUES)
def test_values_come_back_as_they_were(value):
    found = round_trip(value)
    assert found == value
    assert repr(found) == repr(value)  # 1, 1.0 and True are equal, as are 0.0 and -0.0


@given(st.floats())
def test_floats_come_back_to_the_bit(number):
    found = round_trip(number)
    assert math.isnan(found) if math.isnan(number) else struct.pack("d", found) == struct.pack("d", number)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool]
)
def test_tensors_come_back_with_type_and_shape(dtype):
    tensor = (torch.randn(2, 3, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    found = round_trip(tensor)
    assert (found.dtype, found.shape) == (dtype, tensor.shape)
    assert torch.equal(found, tensor)
    assert round_trip(torch.empty(0, 4)).shape == (0, 4)


def test_a_conversation_comes_back_with_what_is_not_compared():
    opening = Segment("prompt", "Hi \ud83d", (1, 2), (1, 3))
    probe = Segment("probe", " there\u2028", (4,), (4,), end_id=2, sampled_logprobs=(-0.1, -1e-30), num_replaced=1)
    step = DPOStep(Transcript((opening,), "\n"), probe, opening, baseline_pos=-1 / 3, return_pos=0.1 + 0.2)
    found = round_trip(step)
    assert found == step
    assert found.suffix_pos.sampled_logprobs == (-0.1, -1e-30)
    assert type(found.prefix.segments) is tuple


class Stranger:
    pass


@pytest.mark.parametrize("value", [Stranger(), Example(Stranger()), [{"a": (Stranger(),)}]])
def test_another_class_is_named(value):
    with pytest.raises(TypeError, match=r"test_codec\.Stranger"):
        CODEC.encode(value)


def test_a_class_that_is_not_given_is_not_made():
    written = CODEC.encode(Example(1))
    with pytest.raises(ValueError, match="found an object of class Example, expected one of Segment"):
        Codec([Segment]).decode(written)


@pytest.mark.parametrize(
    "written",
    [
        {"class": "Example", "fields": {"state": 1, "fewer": 2}},
        {"class": "Example", "fields": {}},
        {"class": "os.system", "fields": {"command": "true"}},
        {"tensor": [1], "dtype": "storage", "shape": [1]},
        {"some": "thing"},
    ],
)
def test_what_nobody_wrote_is_an_error(written):
    with pytest.raises(ValueError, match="found "):
        CODEC.decode(written)
