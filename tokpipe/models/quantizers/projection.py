"""Linear projections of latents whose result for one clip does not depend on other clips."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokpipe.models.precision import exact_float32_products
from tokpipe.models.quantizers.nearest import MIN_ROWS


def project(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(B, ..., C_in) -> (B, ..., C_out) float32, for a weight (C_out, C_in) and a bias (C_out,).

    Products are computed clip by clip, as in the search for the nearest code vector. Latents
    without positions, (B, C_in), are the rows of one product.
    """
    clips = x.float().unsqueeze(0) if x.ndim == 2 else x.float().flatten(1, -2)
    with exact_float32_products(x.device):
        projected = [_rows(clip, weight.float(), bias.float()) for clip in clips]
    shape = (*x.shape[:-1], len(weight))
    return torch.stack(projected).view(shape) if projected else x.new_zeros(shape).float()


def _rows(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    missing = max(0, MIN_ROWS - len(rows))
    return F.linear(F.pad(rows, (0, 0, 0, missing)), weight, bias)[: len(rows)]
