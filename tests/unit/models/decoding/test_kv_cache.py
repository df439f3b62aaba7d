"""What rows hold after they changed places, and how often a device is sent something for it."""

from __future__ import annotations

import pytest
import torch

from astra_accel.models import memory
from astra_accel.models.decoding import generation, kv_cache
from astra_accel.models.decoding.kv_cache import BATCH_PRICE, KVBuffer, Paths, batch_price
from astra_accel.models.decoding.prefill import PrefillPlan, PrefillRequest

CPU = torch.device("cpu")


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what was sent."""
    sizes: list[int] = []

    def counted(values: list[int], device: torch.device) -> torch.Tensor:
        sizes.append(len(values))
        return memory.uploaded(values, device)

    monkeypatch.setattr(kv_cache, "uploaded", counted)
    return sizes


def filled(num_layers: int, num_rows: int) -> tuple[KVBuffer, dict[int, torch.Tensor]]:
    """KVBuffer of three tokens that were written from a forward of as many nodes, and its keys by layer."""
    slots = KVBuffer(num_rows, 3)
    paths = Paths.from_nodes({row: [3 * row, 3 * row + 1, 3 * row + 2] for row in range(num_rows)}, CPU)
    keys = {layer: torch.randn(2, 3 * num_rows, 4) for layer in range(num_layers)}
    for layer, key_HND in keys.items():
        slots.write(layer, key_HND, -key_HND, paths)
    return slots, keys


def test_rows_change_places_with_two_uploads_however_many_layers(uploads: list[int]) -> None:
    slots, keys = filled(num_layers=4, num_rows=5)
    uploads.clear()
    slots.swap([0, 2], [3, 4])
    assert uploads == [4, 4]
    for layer, key_HND in keys.items():
        expected = key_HND.view(2, 5, 3, 4).transpose(0, 1)[[3, 1, 4, 0, 2]]
        both = slots.buffers[layer]
        assert both is not None
        assert torch.equal(both[0], expected)
        assert torch.equal(both[1], -expected)


def test_rows_take_the_states_of_their_paths_with_two_uploads(uploads: list[int]) -> None:
    """Paths of unlike length: what stands after the shorter one's end is seen by nobody."""
    slots = KVBuffer(3, 4)
    key_HND = torch.randn(2, 6, 4)
    paths = Paths.from_nodes({2: [0, 1, 4], 0: [5]}, CPU)
    for layer in range(3):
        slots.write(layer, key_HND, key_HND, paths)
    assert uploads == [2, 2]
    for both in slots.buffers.values():
        assert both is not None
        assert torch.equal(both[0][2, :, :3], key_HND[:, [0, 1, 4]])
        assert torch.equal(both[0][0, :, :1], key_HND[:, [5]])
        assert not both[0][1].any()


def test_nothing_to_change_or_to_take_sends_nothing(uploads: list[int]) -> None:
    slots, _ = filled(num_layers=1, num_rows=2)
    uploads.clear()
    slots.swap([], [])
    KVBuffer(2, 3).swap([0], [1])
    assert uploads == []
    slots.write(0, torch.zeros(2, 1, 4), torch.zeros(2, 1, 4), Paths.from_nodes({}, CPU))


def test_bins_have_a_price_on_a_cpu_and_there_is_one_on_other_devices() -> None:
    assert batch_price(CPU) == BATCH_PRICE["cpu"]
    for kind in ("cuda", "mps", "xpu"):
        assert batch_price(torch.device(kind)) == float("inf")


def test_rows_of_unlike_length_are_parted_on_a_cpu_alone() -> None:
    requests = [PrefillRequest((row, *range(length))) for row, length in enumerate((10, 20, 4000, 4100))]
    begun = {request: PrefillPlan(None, request.context[:1]) for request in requests}
    assert len(generation._batches_of(requests, begun, 8, batch_price(CPU))) == 2
    (rows,) = generation._batches_of(requests, begun, 8, batch_price(torch.device("cuda")))
    assert sorted(rows) == [0, 1, 2, 3]
