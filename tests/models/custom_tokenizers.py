"""Classes for the tests of custom tokenizers, each with one mistake at most."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

State = tuple[Tensor, ...]

built: list[str] = []
"""Names of the functions below that were called, which must not happen."""


def not_a_class(**arguments: Any) -> nn.Module:
    built.append("not_a_class")
    return nn.Identity()


class NotAModule:
    def __init__(self) -> None:
        built.append("NotAModule")


class Blocks(nn.Module):
    """(B, 3, T, H, W) in [0, 1], T = 1 + 2k -> 4x4 blocks, 16 codes."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([scale]))
        self.codebook = nn.Parameter(torch.arange(16.0))

    def grey(self, x: Tensor) -> Tensor:
        first, rest = x[:, :, :1], x[:, :, 1:]
        if rest.shape[2]:
            rest = rest.unflatten(2, (-1, 2)).mean(3)
        frames = torch.cat([first, rest], 2).mean(1)
        blocks: Tensor = frames.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).mean((3, 5))
        return blocks * self.scale

    def encode(self, x: Tensor) -> Tensor:
        return (self.grey(x) * 15.99).floor().clamp(0, 15).long()

    def decode(self, codes: Tensor) -> Tensor:
        frames = (codes / 15).unsqueeze(1).repeat_interleave(4, 3).repeat_interleave(4, 4)
        rest = frames[:, :, 1:].repeat_interleave(2, 2)
        return torch.cat([frames[:, :, :1], rest], 2).expand(-1, 3, -1, -1, -1)


class Slow(Blocks):
    """Takes ``pause_s`` for each chunk, and no CPU, until the file ``until`` exists."""

    def __init__(self, until: str, pause_s: float) -> None:
        super().__init__()
        self.until, self.pause_s = Path(until), pause_s

    def encode(self, x: Tensor) -> Tensor:
        end_s = time.monotonic() + self.pause_s * len(x)
        while time.monotonic() < end_s and not self.until.exists():
            time.sleep(0.05)
        return super().encode(x)


class Interrupts(Blocks):
    """Makes its lease fail, and then its process, before it works as ``Blocks`` does."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = Path(folder)

    def encode(self, x: Tensor) -> Tensor:
        if x.shape[2] > 5:  # no probe
            for name in ("failed", "died"):
                if not (self.folder / name).exists():
                    (self.folder / name).touch()
                    if name == "died":
                        os._exit(3)
                    raise KeyboardInterrupt
        return super().encode(x)


class WithoutEncode(nn.Module):
    pass


def _blocks(**methods: Any) -> type[Blocks]:
    return type("Blocks", (Blocks,), methods)


def _raise(model: Blocks, x: Tensor) -> Tensor:
    raise KeyError("no such layer")


_encode, _decode = Blocks.encode, Blocks.decode
Flat = _blocks(encode=lambda model, x: _encode(model, x).flatten())
Transposed = _blocks(encode=lambda model, x: _encode(model, x).transpose(2, 3))
Floats = _blocks(encode=lambda model, x: _encode(model, x).float())
FromOne = _blocks(encode=lambda model, x: _encode(model, x) + 10)
Samples = _blocks(encode=lambda model, x: torch.randint_like(_encode(model, x), 16))
MixesClips = _blocks(encode=lambda model, x: (_encode(model, x) + _encode(model, x).sum(0)) % 16)
Raises = _blocks(encode=_raise)
WithoutDecode = _blocks(decode=None)
DecodesSmall = _blocks(decode=lambda model, codes: _decode(model, codes)[..., ::2])
DecodesNaN = _blocks(decode=lambda model, codes: _decode(model, codes) * torch.nan)


class Streams(Blocks):
    def encode_piece(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        if state is None:
            return self.encode(x), (x[:, :, :1],)
        return self.encode(torch.cat([state[0], x], 2))[:, 1:], state


class StreamsBadly(Streams):
    def encode_piece(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        codes, after = super().encode_piece(x, state)
        return codes if state is None else 15 - codes, after


class Narrow(Blocks):
    def compute_in(self, dtype: torch.dtype) -> None:
        self.scale.data = self.scale.data.to(dtype)
