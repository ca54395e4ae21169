"""What ``tokpipe verify --reference`` compares with: the codes of another implementation.

Here they are those of grey_blocks.py, computed by numpy. For published weights, this is where the
authors' own code is imported, loaded and called.
"""

import numpy as np
import torch
from torch import Tensor


def codes_of(pixels: Tensor) -> Tensor:
    """(B, T, H, W, 3) uint8 RGB -> (B, T, H/8, W/8) codes."""
    clips, frames, height, width, _ = pixels.shape
    grey = pixels.cpu().numpy() @ np.array([0.299, 0.587, 0.114]) / 255
    blocks = grey.reshape(clips, frames, height // 8, 8, width // 8, 8).mean((3, 5))
    return torch.from_numpy((blocks * 63).round().astype(np.int64))
