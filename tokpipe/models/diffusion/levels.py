"""The levels of an encoder, a decoder and a U-Net: what happens at one image size.

Attribute names are state_dict keys. Shape letters: B images, C channels, H rows, W columns,
E channels of the timestep embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from tokpipe.models.blocks_2d import Downsample, ResnetBlock, Upsample
from tokpipe.models.diffusion.attention import AttnType, make_attn

Factory: TypeAlias = Callable[..., nn.Module]


def check_levels(ch_mult: Sequence[int], num_res_blocks: int) -> None:
    """Raise ValueError unless there is a level, and a block at each to change its channels."""
    if not ch_mult or num_res_blocks < 1:
        raise ValueError(
            f"ch_mult={tuple(ch_mult)} with num_res_blocks={num_res_blocks}: residual blocks "
            "change the channels, so there must be a level, and at least one block at each"
        )


class Level(nn.Module):
    """Residual blocks at one size, each followed by attention if asked.

    Block ``j`` takes ``inputs[j]`` channels and gives ``channels``. The factories are called as
    the published decoder calls its own, with a keyword for all but the channels of attention.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        *,
        attn_type: AttnType | None,
        dropout: float,
        temb_channels: int = 0,
        make_attn: Factory = make_attn,
        make_resblock: Factory = ResnetBlock,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            make_resblock(
                in_channels=before,
                out_channels=channels,
                temb_channels=temb_channels,
                dropout=dropout,
            )
            for before in inputs
        )
        self.attn = nn.ModuleList(
            nn.Identity() if attn_type is None else make_attn(channels, attn_type=attn_type)
            for _ in inputs
        )

    def _through(self, h: Tensor) -> Tensor:
        """All blocks and attentions, without an embedding."""
        for block, attn in zip(self.block, self.attn, strict=True):
            h = attn(block(h, None))
        return h


class DownLevel(Level):
    """A level of an encoder, and the way down from it."""

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        *,
        attn_type: AttnType | None,
        downsample: Downsample | None,
        dropout: float,
    ) -> None:
        super().__init__(inputs, channels, attn_type=attn_type, dropout=dropout)
        self.downsample = nn.Identity() if downsample is None else downsample

    def forward(self, h: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H // 2 or H, W // 2 or W)."""
        y: Tensor = self.downsample(self._through(h))
        return y


class UpLevel(Level):
    """A level of a decoder, and the way up from it."""

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        *,
        attn_type: AttnType | None,
        upsample: Upsample | None,
        dropout: float,
        make_attn: Factory,
        make_resblock: Factory,
    ) -> None:
        super().__init__(
            inputs,
            channels,
            attn_type=attn_type,
            dropout=dropout,
            make_attn=make_attn,
            make_resblock=make_resblock,
        )
        self.upsample = nn.Identity() if upsample is None else upsample

    def forward(self, h: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, 2H or H, 2W or W)."""
        y: Tensor = self.upsample(self._through(h))
        return y


class KeepingDownLevel(Level):
    """A level on the way down of a U-Net, which keeps every activation for the way up."""

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        *,
        attn_type: AttnType | None,
        downsample: Downsample | None,
        dropout: float,
        temb_channels: int,
    ) -> None:
        super().__init__(
            inputs, channels, attn_type=attn_type, dropout=dropout, temb_channels=temb_channels
        )
        self.downsample = downsample

    def forward(self, h: Tensor, temb: Tensor | None) -> list[Tensor]:
        """(B, C_in, H, W), (B, E) -> (B, C_out, H, W) after each block, then that one halved."""
        kept = []
        for block, attn in zip(self.block, self.attn, strict=True):
            h = attn(block(h, temb))
            kept.append(h)
        if self.downsample is not None:
            kept.append(self.downsample(h))
        return kept


class JoiningUpLevel(Level):
    """A level on the way up of a U-Net, each of whose blocks is joined by a kept activation."""

    def __init__(
        self,
        inputs: Sequence[int],
        channels: int,
        *,
        attn_type: AttnType | None,
        upsample: Upsample | None,
        dropout: float,
        temb_channels: int,
    ) -> None:
        super().__init__(
            inputs, channels, attn_type=attn_type, dropout=dropout, temb_channels=temb_channels
        )
        self.upsample = nn.Identity() if upsample is None else upsample

    def forward(self, h: Tensor, kept: list[Tensor], temb: Tensor | None) -> Tensor:
        """(B, C_in, H, W), (B, E) -> (B, C_out, 2H or H, 2W or W).

        Takes one activation after the other off the end of ``kept``, which frees it.
        """
        for block, attn in zip(self.block, self.attn, strict=True):
            h = attn(block(torch.cat([h, kept.pop()], dim=1), temb))
        y: Tensor = self.upsample(h)
        return y


class MidBlocks(nn.Module):
    """Two residual blocks around attention, at the coarsest size."""

    def __init__(
        self,
        channels: int,
        *,
        attn_type: AttnType,
        dropout: float,
        temb_channels: int = 0,
        make_attn: Factory = make_attn,
        make_resblock: Factory = ResnetBlock,
    ) -> None:
        super().__init__()
        self.block_1, self.block_2 = (
            make_resblock(
                in_channels=channels,
                out_channels=channels,
                temb_channels=temb_channels,
                dropout=dropout,
            )
            for _ in range(2)
        )
        self.attn_1 = make_attn(channels, attn_type=attn_type)

    def forward(self, h: Tensor, temb: Tensor | None = None) -> Tensor:
        """(B, C, H, W), with temb (B, E) -> (B, C, H, W)."""
        h = self.attn_1(self.block_1(h, temb))
        y: Tensor = self.block_2(h, temb)
        return y
