"""Tokenizers and references with one mistake each, for the tests of ``tokpipe verify``."""

import torch
from torch import Tensor, nn

from examples.custom_tokenizer.grey_blocks import GreyBlocks
from examples.custom_tokenizer.reference import codes_of


def _is_picture(x: Tensor) -> bool:
    """Whether (B, 3, T, H, W) holds test pictures, which are larger than the noise before them."""
    return x.shape[-1] > 40


class Leaks(GreyBlocks):
    """One code of each clip tells how bright the batch is."""

    def encode(self, x: Tensor) -> Tensor:
        codes = super().encode(x)
        if _is_picture(x):
            codes[:, 0, 0, 0] = (x.double().mean() * 1e6).long() % 64
        return codes


class Samples(GreyBlocks):
    def encode(self, x: Tensor) -> Tensor:
        codes = super().encode(x)
        if _is_picture(x):
            codes[0, 0, 0] = torch.randint(0, 64, codes[0, 0, 0].shape)
        return codes


class NotFinite(GreyBlocks):
    def encode(self, x: Tensor) -> Tensor:
        codes = super().encode(x)
        return codes.where(torch.tensor(not _is_picture(x)), -1)


class Cuts(GreyBlocks):
    """Pieces of real clips are encoded otherwise than whole clips."""

    def encode_piece(
        self, x: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        codes = self.encode(x)
        return (63 - codes if _is_picture(x) and state is not None else codes), ()


class EncodeOnly(nn.Module):
    def __init__(self, levels: int) -> None:
        super().__init__()
        self.blocks = GreyBlocks(levels)

    def encode(self, x: Tensor) -> Tensor:
        return self.blocks.encode(x)

    def encode_piece(
        self, x: Tensor, state: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.encode(x), ()


def reversed_bits(pixels: Tensor) -> Tensor:
    codes = codes_of(pixels)
    return sum((codes >> bit & 1) << (5 - bit) for bit in range(6))  # type: ignore[return-value]


def columns_first(pixels: Tensor) -> Tensor:
    """Flat, as some programs return codes."""
    return codes_of(pixels).transpose(2, 3).flatten()


def other_range(pixels: Tensor) -> Tensor:
    """What the same network computes of pixels in [-1, 1]."""
    x = pixels.movedim(-1, 1).float() / 127.5 - 1
    return GreyBlocks(64).encode(x)


def nearly(pixels: Tensor) -> Tensor:
    codes = codes_of(pixels)
    codes[1, 2, 3, 4] += 1
    return codes


def too_few(pixels: Tensor) -> Tensor:
    return codes_of(pixels)[:1]
