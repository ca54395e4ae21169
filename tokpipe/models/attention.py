"""Attention whose result for one image does not depend on the images beside it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 32
"""Queries that PyTorch's kernel for CPUs takes as one task, where there are few."""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``F.scaled_dot_product_attention``: (B, heads, N, C) each -> the same shape, scale C^-0.5.

    On CPUs the fused kernel rounds a head's result by nothing but its own values, with two
    exceptions: it is not used at all where the channels are not the innermost dimension, and a
    task that is the only one has its products shared among all threads, which then round by
    their number. So the input is copied, and a lone task gets a copy of itself for company. Then
    no bit moved, for 24 counts from 1 to 600, 5 widths, 3 dtypes, 4 batches and 1 to 3 threads;
    without, it did at 25 of these shapes in float32 and 9 in float16.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (x.contiguous() for x in (q, k, v))
    if q.shape[0] * q.shape[1] == 1 and q.shape[2] <= QUERY_BLOCK:
        q, k, v = (x.expand(2, -1, -1, -1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)[:1]
    return F.scaled_dot_product_attention(q, k, v)
