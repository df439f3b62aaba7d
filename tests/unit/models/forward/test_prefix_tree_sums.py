"""Sums of rows that share a segment."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from astra_accel.models.forward.prefix_tree import segment_sum

SHAPES = [(), (3,), (2, 5)]


class Recorder(TorchDispatchMode):
    """Takes down the names of the operations that run within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", SHAPES)
def test_each_segment_has_the_sum_of_its_rows_and_an_empty_one_is_0(shape):
    values, segments = torch.randn(9, *shape), torch.tensor([3, 0, 3, 1, 0, 3, 6, 0, 1])
    total = segment_sum(values, segments, 8)
    assert total.shape == (8, *shape)
    for segment in range(8):
        own = [value for value, other in zip(values.double(), segments.tolist(), strict=True) if other == segment]
        expected = sum(own, torch.zeros(shape, dtype=torch.float64))
        torch.testing.assert_close(total[segment].double(), expected, rtol=1e-6, atol=1e-6)


def test_no_rows_give_zeros():
    assert segment_sum(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), 3).tolist() == [[0.0] * 4] * 3


def test_a_small_segment_beside_a_huge_one_loses_nothing():
    """Differences of a running sum would: 1e8 + 0.5 is 1e8 in float32."""
    total = segment_sum(torch.tensor([1e8, 0.5, 1e8, 0.25]), torch.tensor([0, 1, 2, 1]), 3)
    assert total.tolist() == [1e8, 0.75, 1e8]


@pytest.mark.parametrize("shape", SHAPES)
def test_no_atomic_add_runs_on_a_cuda_device(shape):
    """Fake tensors of the device say which operations would run there."""
    with FakeTensorMode(), Recorder() as seen:
        values = torch.empty(9, *shape, device="cuda")
        total = segment_sum(values, torch.zeros(9, dtype=torch.long, device="cuda"), 8)
    assert total.shape == (8, *shape)
    assert "index_put_" in seen.names
    assert not seen.names & {"index_add", "index_add_", "scatter_add", "scatter_add_", "put_", "index_reduce_"}
    # What PyTorch says of it: it varies where it adds up on a CPU.
    listed = " ".join((torch.use_deterministic_algorithms.__doc__ or "").split())
    assert "torch.Tensor.index_put` with ``accumulate=True`` when called on a CPU" in listed
    assert "torch.Tensor.index_put` with ``accumulate=True`` when called on a CUDA" not in listed
