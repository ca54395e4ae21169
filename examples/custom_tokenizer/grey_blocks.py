"""A custom tokenizer: the class that docs/tokenizers.md explains.

It averages blocks of 8x8 pixels to one of 256 greys, frame by frame. There is no network, but
everything that tokpipe requires of a tokenizer is here.
"""

import torch
from torch import Tensor, nn


class GreyBlocks(nn.Module):
    """Encodes each block of a frame as its brightness."""

    def __init__(self, levels: int = 256) -> None:
        super().__init__()
        self.levels = levels
        # Anything that must be on the GPU beside the pixels is a parameter or a buffer.
        self.register_buffer("luma", torch.tensor([0.299, 0.587, 0.114]), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        """(B, 3, T, H, W) in [0, 1] -> (B, T, H/8, W/8) codes."""
        grey = torch.einsum("bcthw,c->bthw", x, self.get_buffer("luma"))
        blocks = grey.unflatten(3, (-1, 8)).unflatten(2, (-1, 8)).mean((3, 5))
        codes: Tensor = (blocks * (self.levels - 1)).round().long()
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """(B, T, h, w) codes -> (B, 3, T, 8h, 8w) in [0, 1]."""
        grey = codes / (self.levels - 1)
        pixels = grey.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
        return pixels.unsqueeze(1).expand(-1, 3, -1, -1, -1)

    def encode_piece(
        self, x: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next frames of a long clip. No frame depends on others, so there is no state."""
        return self.encode(x), ()

    def decode_piece(
        self, codes: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next codes of a long clip."""
        return self.decode(codes), ()
