"""SiLU whose result for one clip does not depend on the number of threads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

VECTOR_ELEMENTS = 32
"""Elements that PyTorch's kernels take in one step on a CPU: two AVX-512 vectors of float32."""

GRAIN_ELEMENTS = 32768
"""Elements that PyTorch gives to a thread at the least."""


def silu(x: Tensor) -> Tensor:
    """``F.silu``, of any shape.

    On a CPU the elements that are left over after the last whole vector of each thread go through
    another exponential function, which rounds differently: 2 of 3 million moved by one bit
    between 1 and 5 threads. Filled up so that every thread has whole vectors, none did.
    """
    if x.device.type == "cpu":
        count = x.numel()
        threads = min(torch.get_num_threads(), -(-count // GRAIN_ELEMENTS))
        if threads and (missing := -count % (threads * VECTOR_ELEMENTS)):
            return F.silu(F.pad(x.flatten(), (0, missing)))[:count].view_as(x)
    return F.silu(x)
