"""Sums of rows that share a segment, the same bits each time."""

from __future__ import annotations

import torch


def segment_sum(values_EX: torch.Tensor, segments_E: torch.Tensor, num_segments: int) -> torch.Tensor:
    """The sum of the rows of each segment, ``[segments, ...]`` of the values' type; 0 where a segment has no row.

    On a CPU ``index_add_`` adds one row after the other; on a CUDA device it adds atomically, in an order that differs
    from run to run. There ``index_put_`` with ``accumulate`` sorts the rows by segment first, a stable sort, and adds
    each segment's in their order: PyTorch lists it as varying on CPUs alone (``torch.use_deterministic_algorithms``).
    Rows of 16 bits are added in their own type, so give float32 where that matters.

    Args:
        values_EX: rows ``[E, ...]`` of any shape.
        segments_E: the segment of each row, int64, in any order.
        num_segments: how many there are.
    """
    total_SX = values_EX.new_zeros(num_segments, *values_EX.shape[1:])
    if total_SX.is_cuda:
        return total_SX.index_put_((segments_E,), values_EX, accumulate=True)
    return total_SX.index_add_(0, segments_E, values_EX)
