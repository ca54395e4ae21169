"""The U-Net of a diffusion model: predicts noise, or a cleaner image, at a known noise level.

Shape letters: B images, C channels, H rows, W columns, E channels of the timestep embedding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tokpipe.models.activation import silu
from tokpipe.models.blocks_2d import Downsample, Upsample, block_norm
from tokpipe.models.convolution import Conv2d
from tokpipe.models.diffusion.attention import AttnType
from tokpipe.models.diffusion.levels import (
    JoiningUpLevel,
    KeepingDownLevel,
    MidBlocks,
    check_levels,
)
from tokpipe.models.diffusion.timestep import TimestepEmbedding
from tokpipe.models.vqvae_2d import check_input


class UNet(nn.Module):
    """Images to images of the same size, through coarser levels, with skips between equal sizes.

    Every activation of the way down is kept and joined, channel on channel, to the input of one
    block on the way up. Arguments and state_dict keys are the published ones. ``resolution`` is
    nominal: it decides which levels ``attn_resolutions`` give attention (one that no level has
    gives none), and images of any size that halves evenly down to the coarsest level are taken.
    That level has attention in its middle always, unless ``attn_type`` is ``none``;
    ``use_linear_attn`` is another way to say ``linear``, whatever ``attn_type`` says.

    ``use_timestep=False`` builds a network that disregards ``t``. Its blocks keep the
    ``temb_proj`` that published weights have, and never use it.
    Source: arXiv:2006.11239; ``Model`` of CogVideo's ``sgm.modules.diffusionmodules.model``.

    Raises:
        ValueError: no level, no block, channels that are not multiples of 32, or an unknown
            ``attn_type``.
        ImportError: ``vanilla-xformers`` without xformers.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        use_timestep: bool = True,
        use_linear_attn: bool = False,
        attn_type: AttnType = "vanilla",
    ) -> None:
        super().__init__()
        check_levels(ch_mult, num_res_blocks)
        attn_type = "linear" if use_linear_attn else attn_type
        self.spatial_stride: int = 2 ** (len(ch_mult) - 1)
        self.temb = TimestepEmbedding(ch) if use_timestep else None
        temb_channels = 4 * ch

        self.conv_in = Conv2d(in_channels, ch, kernel_size=3, padding=1)
        self.down = nn.ModuleList()
        last = len(ch_mult) - 1
        channels = ch
        kept = [ch]  # channels of the activations that the way up takes, from the end
        for level, mult in enumerate(ch_mult):
            inputs = [channels] + [ch * mult] * (num_res_blocks - 1)
            channels = ch * mult
            attention = resolution // 2**level in attn_resolutions
            self.down.append(
                KeepingDownLevel(
                    inputs,
                    channels,
                    attn_type=attn_type if attention else None,
                    downsample=None if level == last else Downsample(channels, resamp_with_conv),
                    dropout=dropout,
                    temb_channels=temb_channels,
                )
            )
            kept += [channels] * (num_res_blocks + (level != last))
        self.mid = MidBlocks(
            channels, attn_type=attn_type, dropout=dropout, temb_channels=temb_channels
        )
        up = []
        for level in reversed(range(len(ch_mult))):
            inputs = [channels] + [ch * ch_mult[level]] * num_res_blocks
            channels = ch * ch_mult[level]
            # A resolution that does not halve evenly comes back smaller, as published.
            attention = (resolution // 2**last) * 2 ** (last - level) in attn_resolutions
            up.append(
                JoiningUpLevel(
                    [width + kept.pop() for width in inputs],
                    channels,
                    attn_type=attn_type if attention else None,
                    upsample=Upsample(channels, resamp_with_conv) if level else None,
                    dropout=dropout,
                    temb_channels=temb_channels,
                )
            )
        self.up = nn.ModuleList(reversed(up))  # up.0 is the finest, like down.0
        self.norm_out = block_norm(channels, None, False)
        self.conv_out = Conv2d(channels, out_ch, kernel_size=3, padding=1)

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, out_ch, H, W), in the dtype of the weights, which ``x`` has as well.

        ``t`` is the timestep of each image, (B,) or one for all, (1,). ``context`` is
        (B, in_channels - C, H, W), an aligned image to go by, behind the channels of ``x``.

        Raises:
            ValueError: rows or columns that do not halve evenly, shapes that do not fit each
                other or the network, or no timesteps where they are used.
        """
        x = self._joined(x, context)
        temb = self._embed(x, t)
        kept = [self.conv_in(x)]
        for level in self.down:
            kept += level(kept[-1], temb)
        h = self.mid(kept[-1], temb)
        for level in reversed(self.up):
            h = level(h, kept, temb)
        y: Tensor = self.conv_out(silu(self.norm_out(h)))
        return y

    def get_last_layer(self) -> Tensor:
        """The weight of the last convolution, by whose gradient losses are weighed."""
        return self.conv_out.weight

    def _joined(self, x: Tensor, context: Tensor | None) -> Tensor:
        name = "x"
        if context is not None:
            if context.shape[:1] + context.shape[2:] != x.shape[:1] + x.shape[2:]:
                raise ValueError(
                    f"context has shape {tuple(context.shape)}, but it is joined to x of "
                    f"{tuple(x.shape)} channel on channel: bring it to the same B, H and W"
                )
            name, x = "x with context", torch.cat([x, context], dim=1)
        check_input(x, self.conv_in, name)
        height, width = x.shape[2:]
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(
                f"images of {height}x{width} do not halve evenly down to the coarsest level, and "
                "would not fit the skips on the way up: pad or cut rows and columns to multiples "
                f"of {self.spatial_stride}"
            )
        return x

    def _embed(self, x: Tensor, t: Tensor | None) -> Tensor | None:
        if self.temb is None:
            return None
        if t is None:
            raise ValueError(
                "no timesteps were given, but the network was built to know the noise level of "
                "its input: give t, or build it with use_timestep=False"
            )
        if t.shape not in {(x.shape[0],), (1,)}:
            raise ValueError(
                f"t has shape {tuple(t.shape)} for {x.shape[0]} images, of which each has one "
                f"noise level: give ({x.shape[0]},), or (1,) for all alike"
            )
        temb: Tensor = self.temb(t)
        return temb
