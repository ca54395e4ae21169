"""Custom tokenizers with more than one code per position, each a small stand-in for its family.

No class here has a network, and each shows one layout of codes: residual levels, the scales of VAR,
the one-dimensional tokens of TiTok and LARP, and the codebooks of UniTok. docs/tokenizers.md says
what a job declares for each.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResidualLevels(nn.Module):
    """Residual quantization: each level encodes what the levels before it left over.

    (B, 3, T, H, W) in [0, 1] -> (B, T, H/8, W/8, levels), every code below ``size``.
    """

    def __init__(self, levels: int = 3, size: int = 8) -> None:
        super().__init__()
        self.levels, self.size = levels, size

    def encode(self, x: Tensor) -> Tensor:
        rest = F.avg_pool3d(x.mean(1, keepdim=True), (1, 8, 8))[:, 0]
        codes = []
        for level in range(1, self.levels + 1):
            step = self.size**-level  # a level divides the steps of the one before
            codes.append((rest / step).floor().clamp(0, self.size - 1))
            rest = rest - codes[-1] * step
        return torch.stack(codes, dim=-1).long()

    def decode(self, codes: Tensor) -> Tensor:
        steps = self.size ** -torch.arange(1.0, self.levels + 1, device=codes.device)
        grey = (codes * steps).sum(-1) + steps[-1] / 2
        pixels = grey.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return pixels.unsqueeze(1).expand(-1, 3, -1, -1, -1)


class Scales(nn.Module):
    """Multi-scale residuals, as VAR: a frame is one position with all codes of all scales.

    (B, 3, 32, 32) in [-1, 1], frame by frame -> (B, 1, 1, 85): 1x1, 2x2, 4x4 and 8x8 codes.
    """

    sides = (1, 2, 4, 8)

    def encode(self, x: Tensor) -> Tensor:
        rest, codes = x.mean(1, keepdim=True), []
        for side in self.sides:
            found = ((F.adaptive_avg_pool2d(rest, side) + 1) * 32).round().clamp(0, 63)
            rest = rest - F.interpolate(found / 32 - 1, size=32)
            codes.append(found.flatten(1))
        return torch.cat(codes, dim=1)[:, None, None].long()

    def decode(self, codes: Tensor) -> Tensor:
        grey = torch.zeros(len(codes), 1, 32, 32, device=codes.device)
        parts = codes[:, 0, 0].split([side**2 for side in self.sides], dim=1)
        for side, part in zip(self.sides, parts, strict=True):
            grey += F.interpolate(part.view(-1, 1, side, side) / 32 - 1, size=32)
        return grey.expand(-1, 3, -1, -1)


class TokenList(nn.Module):
    """One-dimensional tokens, as TiTok and LARP: a chunk of frames becomes a list of codes.

    (B, 3, 4, 64, 64) in [0, 1] -> (B, 1, 1, 1, 48): the mean of each of 16 bands, by colour.
    """

    def encode(self, x: Tensor) -> Tensor:
        bands = x.unflatten(3, (16, 4)).mean((2, 4, 5))  # (B, 3, 16)
        codes: Tensor = (bands.flatten(1) * 255).round().long()
        return codes[:, None, None, None]

    def decode(self, codes: Tensor) -> Tensor:
        bands = codes.view(-1, 3, 16) / 255
        pixels = bands.repeat_interleave(4, dim=2)[:, :, None, :, None]
        return pixels.expand(-1, -1, 4, -1, 64)


class Codebooks(nn.Module):
    """Several codebooks, as UniTok: each encodes a part of the vector; here, a colour each.

    (B, 3, T, H, W) in [0, 1] -> (B, T, H/8, W/8, 3), with codes below 8, 16 and 4.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("most", torch.tensor([7.0, 15.0, 3.0]), persistent=False)

    def encode(self, x: Tensor) -> Tensor:
        colours = F.avg_pool3d(x, (1, 8, 8)).movedim(1, -1)
        return (colours * self.get_buffer("most")).round().long()

    def decode(self, codes: Tensor) -> Tensor:
        colours: Tensor = (codes / self.get_buffer("most")).movedim(-1, 1)
        return colours.repeat_interleave(8, 3).repeat_interleave(8, 4)
