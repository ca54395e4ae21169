"""Attention whose result for one image does not depend on the rest of the batch."""

import torch.nn.functional as F
from torch import Tensor

QUERY_BLOCK = 32
"""Up to this many queries, PyTorch's kernel for CPUs is one task."""


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``F.scaled_dot_product_attention``: (B, heads, N, C) each -> the same shape, scale C^-0.5.

    On CPUs the fused kernel's rounding of a head depends on that head alone, except in two cases:
    the kernel is not used unless the channels are the innermost dimension, and a single task
    splits its products among all threads, so their number decides the rounding. So the input is
    made contiguous, and a single task is run twice at once. Then no bit changed, with 24 counts
    from 1 to 600, 5 widths, 3 dtypes, 4 batches and 1 to 3 threads; without, bits changed for 25
    of these shapes in float32 and 9 in float16.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (x.contiguous() for x in (q, k, v))
    if q.shape[0] * q.shape[1] == 1 and q.shape[2] <= QUERY_BLOCK:
        q, k, v = (x.expand(2, -1, -1, -1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)[:1]
    return F.scaled_dot_product_attention(q, k, v)
