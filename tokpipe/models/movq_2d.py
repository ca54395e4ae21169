"""The 2D decoder of MoVQ, whose norms read the quantized latent.

Shape letters: B images, C channels, H rows, W columns; s is ``2 ** (len(ch_mult) - 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from tokpipe.models.blocks_2d import AttnBlock, ResnetBlock, SpatialNorm
from tokpipe.models.levels import Keep, Pyramid, drop
from tokpipe.models.vqvae_2d import BaseDecoder2D, check_input


class MOVQDecoder(BaseDecoder2D):
    """Latents to images, with every norm scaled and shifted by the quantized latent ``zq``.

    Arguments and state_dict keys are the published ones, so public checkpoints (SBER-MoVQGAN,
    the decoders of Kandinsky 2) load unchanged. ``zq_ch`` is the width of ``zq``, by default
    ``z_channels``; published code requires it. ``add_conv`` adds a 3x3 convolution of ``zq`` to
    each norm. The other arguments are those of ``Decoder``.

    An image does not depend on the other latents of its batch.
    Source: arXiv:2209.09002, as CogVideo's ``movq_modules.MOVQDecoder``.

    Raises:
        ValueError: no level, no block, or channels that are not multiples of 32.
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
        zq_ch: int | None = None,
        add_conv: bool = False,
    ) -> None:
        super().__init__()
        zq_ch = z_channels if zq_ch is None else zq_ch
        make_block = partial(ResnetBlock, dropout=dropout, temb_channels=0)
        self._build(
            Pyramid(ch, ch_mult, num_res_blocks, resolution, attn_resolutions),
            z_channels=z_channels,
            out_ch=out_ch,
            resamp_with_conv=resamp_with_conv,
            give_pre_end=give_pre_end,
            make_block=partial(make_block, zq_ch=zq_ch, add_conv=add_conv),
            make_attn=partial(AttnBlock, zq_ch=zq_ch, add_conv=add_conv),
            zq_ch=zq_ch,
            add_conv=add_conv,
        )

    def forward(self, z: Tensor, zq: Tensor) -> Tensor:
        """z (B, z_channels, h, w), zq (B, zq_ch, h', w') -> (B, out_ch, s * h, s * w).

        About [-1, 1], not clamped. ``z`` is usually ``post_quant_conv(zq)``, and so of the same
        size; a ``zq`` of another size is resized to the input of each norm.

        Raises:
            ValueError: latents of another shape or dtype.
        """
        return self._decode_pair(z, zq, drop)

    def forward_with_features_output(
        self, z: Tensor, zq: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The result of ``forward``, and every activation on the way to it, in order.

        Names are the published ones; see ``Decoder.forward_with_features_output``. (With
        ``give_pre_end``, published code omits the second value.)
        """
        features: dict[str, Tensor] = {}
        return self._decode_pair(z, zq, features.__setitem__), features

    def _decode_pair(self, z: Tensor, zq: Tensor, keep: Keep) -> Tensor:
        norm = self.norm_out
        assert isinstance(norm, SpatialNorm)
        check_input(zq, norm.conv_y if norm.conv is None else norm.conv, "zq")
        if z.shape[:1] != zq.shape[:1]:
            raise ValueError(
                f"z has {len(z)} images and zq {len(zq)}: pass one zq for each image of z"
            )
        return self._decode(z, keep, zq=zq)
