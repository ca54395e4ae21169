"""The autoencoder of latent diffusion: images to latents and back, with a choice of attention.

Shape letters: B images, C channels, H rows, W columns; s is ``2 ** (len(ch_mult) - 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from tokpipe.models.blocks_2d import ResnetBlock
from tokpipe.models.convolution import Conv2d
from tokpipe.models.diffusion.attention import AttnType, make_attn
from tokpipe.models.levels import Factory, Pyramid
from tokpipe.models.vqvae_2d import BaseDecoder2D, BaseEncoder2D


class AutoencoderEncoder(BaseEncoder2D):
    """Images to latents: each level but the last halves rows and columns.

    Arguments and state_dict keys are the published ones: those of ``Encoder``, and a choice of
    attention, also for the middle. ``use_linear_attn`` overrides ``attn_type`` with ``linear``.

    An image's latent does not depend on the other images of its batch.
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
        super().__init__(
            Pyramid(ch, ch_mult, num_res_blocks, resolution, attn_resolutions),
            in_channels=in_channels,
            latent_channels=2 * z_channels if double_z else z_channels,
            dropout=dropout,
            resamp_with_conv=resamp_with_conv,
            make_attn=partial(make_attn, attn_type="linear" if use_linear_attn else attn_type),
        )


class AutoencoderDecoder(BaseDecoder2D):
    """Latents to images: each level but the last doubles rows and columns.

    Arguments and state_dict keys are the published ones: those of ``Decoder``, a choice of
    attention as in ``AutoencoderEncoder``, and ``tanh_out``, which bounds the pixels to (-1, 1).

    To change the parts of the decoder, override ``_make_attn``, ``_make_resblock`` or
    ``_make_conv`` in a subclass. They are called during ``__init__``, and may use attributes that
    the subclass set before ``super().__init__``.
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
        self.tanh_out = tanh_out
        attn_type = "linear" if use_linear_attn else attn_type
        self._build(
            Pyramid(ch, ch_mult, num_res_blocks, resolution, attn_resolutions),
            z_channels=z_channels,
            out_ch=out_ch,
            resamp_with_conv=resamp_with_conv,
            give_pre_end=give_pre_end,
            make_block=partial(self._make_resblock(), temb_channels=0, dropout=dropout),
            make_attn=partial(self._make_attn(), attn_type=attn_type),
            make_conv=self._make_conv(),
        )

    def _make_attn(self) -> Factory:
        """Return the attention's factory: ``(channels, attn_type=...) -> module`` of one tensor."""
        return make_attn

    def _make_resblock(self) -> Factory:
        """Return the blocks' factory: ``(in_channels=, out_channels=, temb_channels=0, dropout=)``.

        A block is called with a tensor, and None in place of a timestep embedding.
        """
        return ResnetBlock

    def _make_conv(self) -> Factory:
        """Return the factory of ``conv_out``: ``(in, out, kernel_size=3, stride=1, padding=1)``."""
        return Conv2d

    def get_last_layer(self) -> Tensor:
        """The weight of ``conv_out``, whose gradient is used to balance losses."""
        weight = self.conv_out.weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, z: Tensor) -> Tensor:
        """(B, z_channels, h, w) -> (B, out_ch, s * h, s * w), about [-1, 1], not clamped.

        With ``tanh_out`` inside (-1, 1); with ``give_pre_end`` the (B, ch * ch_mult[0], ...)
        features before the last norm.

        Raises:
            ValueError: latents of another shape or dtype.
        """
        h = self._decode(z)
        return h.tanh() if self.tanh_out and not self.give_pre_end else h
