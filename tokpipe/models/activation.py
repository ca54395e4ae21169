"""SiLU whose result for one clip does not depend on the number of threads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokpipe.models.rows import GRAIN_ELEMENTS

VECTOR_ELEMENTS = 32
"""Elements per step of PyTorch's kernels on a CPU: two AVX-512 vectors of float32."""


def silu(x: Tensor) -> Tensor:
    """``F.silu``, of any shape.

    On a CPU the elements left over after the last whole vector of each thread go through another
    exponential function, which rounds differently: 2 of 3 million changed by one bit between 1
    and 5 threads. Padded so that every thread has whole vectors, none did.
    """
    if x.device.type == "cpu":
        count = x.numel()
        threads = min(torch.get_num_threads(), -(-count // GRAIN_ELEMENTS))
        if threads and (missing := -count % (threads * VECTOR_ELEMENTS)):
            # In memory order, which for channels-last tensors is not index order.
            last = x.movedim(1, -1) if x.ndim > 1 else x
            dense = last if last.is_contiguous() else x
            y = F.silu(F.pad(dense.flatten(), (0, missing)))[:count].view(dense.shape)
            return y if dense is x else y.movedim(-1, 1)
    return F.silu(x)
