"""The autoencoder of latent diffusion: images to latents and back, with a choice of attention.

Shape letters: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tokpipe.models.activation import silu
from tokpipe.models.blocks_2d import Downsample, ResnetBlock, Upsample, block_norm
from tokpipe.models.convolution import Conv2d
from tokpipe.models.diffusion.attention import AttnType, make_attn
from tokpipe.models.diffusion.levels import (
    DownLevel,
    Factory,
    MidBlocks,
    UpLevel,
    check_levels,
)
from tokpipe.models.vqvae_2d import check_input, check_size


class AutoencoderEncoder(nn.Module):
    """Images to latents: each level but the last halves rows and columns.

    Arguments and state_dict keys are the published ones. ``resolution`` is nominal: it decides
    which levels ``attn_resolutions`` give attention (one that no level has gives none), and
    images of any size are taken. The coarsest level has attention in its middle always, unless
    ``attn_type`` is ``none``; ``use_linear_attn`` is another way to say ``linear``, whatever
    ``attn_type`` says. ``out_ch`` belongs to the decoder that shares these arguments and changes
    nothing here. ``double_z`` gives ``2 * z_channels``, mean and log-variance.

    An image's latent does not depend on the others of its batch.
    Source: arXiv:2112.10752; ``Encoder`` of CogVideo's ``sgm.modules.diffusionmodules.model``.

    Raises:
        ValueError: no level, no block, channels that are not multiples of 32, or an unknown
            ``attn_type``.
        ImportError: ``vanilla-xformers`` without xformers.
    """

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int | None = None,
        ch_mult: Sequence[int] = (1, 2, 4, 8),
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        dropout: float = 0.0,
        resamp_with_conv: bool = True,
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = True,
        use_linear_attn: bool = False,
        attn_type: AttnType = "vanilla",
    ) -> None:
        super().__init__()
        check_levels(ch_mult, num_res_blocks)
        attn_type = "linear" if use_linear_attn else attn_type
        self.spatial_stride: int = 2 ** (len(ch_mult) - 1)
        self.conv_in = Conv2d(in_channels, ch, kernel_size=3, padding=1)
        self.down = nn.ModuleList()
        channels = ch
        for level, mult in enumerate(ch_mult):
            inputs = [channels] + [ch * mult] * (num_res_blocks - 1)
            channels = ch * mult
            last = level == len(ch_mult) - 1
            attention = resolution // 2**level in attn_resolutions
            self.down.append(
                DownLevel(
                    inputs,
                    channels,
                    attn_type=attn_type if attention else None,
                    downsample=None if last else Downsample(channels, resamp_with_conv),
                    dropout=dropout,
                )
            )
        self.mid = MidBlocks(channels, attn_type=attn_type, dropout=dropout)
        self.norm_out = block_norm(channels, None, False)
        out = 2 * z_channels if double_z else z_channels
        self.conv_out = Conv2d(channels, out, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> (B, z or 2z, H // s, W // s), s = spatial_stride.

        Sizes that are not multiples of ``s`` lose what is left over, level by level.

        Raises:
            ValueError: images of another shape or dtype, or fewer than ``s`` rows or columns.
        """
        check_input(x, self.conv_in, "x")
        check_size(x, self.spatial_stride)
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        h = self.mid(h)
        y: Tensor = self.conv_out(silu(self.norm_out(h)))
        return y


class AutoencoderDecoder(nn.Module):
    """Latents to images: each level but the last doubles rows and columns.

    The arguments of ``AutoencoderEncoder``, of which ``in_channels`` and ``double_z`` are the
    encoder's alone and change nothing here. ``tanh_out`` bounds the pixels to (-1, 1);
    ``give_pre_end`` returns what the last norm would see, (B, ch * ch_mult[0], H, W), in place of
    pixels.

    A subclass changes what the decoder is built of by overriding ``_make_attn``,
    ``_make_resblock`` and ``_make_conv``. They are called while the decoder is being built, when
    attributes that the subclass sets before ``super().__init__`` are there.
    Source: arXiv:2112.10752; ``Decoder`` of CogVideo's ``sgm.modules.diffusionmodules.model``.

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
        in_channels: int | None = None,
        resolution: int,
        z_channels: int,
        double_z: bool | None = None,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        use_linear_attn: bool = False,
        attn_type: AttnType = "vanilla",
    ) -> None:
        super().__init__()
        check_levels(ch_mult, num_res_blocks)
        attn_type = "linear" if use_linear_attn else attn_type
        self.spatial_stride: int = 2 ** (len(ch_mult) - 1)
        self.give_pre_end = give_pre_end
        self.tanh_out = tanh_out
        make_attn, make_resblock = self._make_attn(), self._make_resblock()
        channels = ch * ch_mult[-1]
        self.conv_in = Conv2d(z_channels, channels, kernel_size=3, padding=1)
        self.mid = MidBlocks(
            channels,
            attn_type=attn_type,
            dropout=dropout,
            make_attn=make_attn,
            make_resblock=make_resblock,
        )
        up = []
        last = len(ch_mult) - 1
        for level in reversed(range(len(ch_mult))):
            inputs = [channels] + [ch * ch_mult[level]] * num_res_blocks
            channels = ch * ch_mult[level]
            # A resolution that does not halve evenly comes back smaller, as published.
            attention = (resolution // 2**last) * 2 ** (last - level) in attn_resolutions
            up.append(
                UpLevel(
                    inputs,
                    channels,
                    attn_type=attn_type if attention else None,
                    upsample=Upsample(channels, resamp_with_conv) if level else None,
                    dropout=dropout,
                    make_attn=make_attn,
                    make_resblock=make_resblock,
                )
            )
        self.up = nn.ModuleList(reversed(up))  # up.0 is the finest, like down.0
        self.norm_out = block_norm(channels, None, False)
        self.conv_out = self._make_conv()(channels, out_ch, kernel_size=3, stride=1, padding=1)

    def _make_attn(self) -> Factory:
        """What makes attention, ``(channels, attn_type=...) -> module`` of one tensor."""
        return make_attn

    def _make_resblock(self) -> Factory:
        """What makes a block, ``(in_channels=, out_channels=, temb_channels=0, dropout=)``.

        The module is called with a tensor, and None in place of a timestep embedding.
        """
        return ResnetBlock

    def _make_conv(self) -> Factory:
        """What makes ``conv_out``, ``(in, out, kernel_size=3, stride=1, padding=1) -> module``."""
        return Conv2d

    def get_last_layer(self) -> Tensor:
        """The weight of ``conv_out``, by whose gradient losses are weighed against each other."""
        weight = self.conv_out.weight
        assert isinstance(weight, Tensor)  # a stub's doubt: modules have attributes of both kinds
        return weight

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> (B, out_ch, h * s, w * s), with s = spatial_stride.

        Pixels are about [-1, 1], not clamped, and within it with ``tanh_out``.

        Raises:
            ValueError: latents of another shape or dtype.
        """
        check_input(z, self.conv_in, "z")
        h: Tensor = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        if self.give_pre_end:
            return h
        y: Tensor = self.conv_out(silu(self.norm_out(h)))
        return y.tanh() if self.tanh_out else y
