"""A tokenizer that takes time and no CPU, as an accelerator does."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn

STRIDE = 4
SIDE = 8


class PretendAccelerator(nn.Module):
    """Sleeps ``chunk_s`` for each chunk, and gives zeros."""

    def __init__(self, chunk_s: float) -> None:
        super().__init__()
        self.chunk_s = chunk_s

    def encode(self, x: Tensor) -> Tensor:
        """(B, C, T, H, W) -> (B, t, h, w) codes."""
        clips, _, frames, height, width = x.shape
        time.sleep(self.chunk_s * clips)
        latents = 1 + (frames - 1) // STRIDE
        return torch.zeros(clips, latents, height // SIDE, width // SIDE, dtype=torch.int64)
