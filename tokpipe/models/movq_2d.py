"""The 2D decoder of MoVQ, whose norms look at the quantized latent.

Shape letters: B images, C channels, H rows, W columns; s is ``2 ** (len(ch_mult) - 1)``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tokpipe.models.blocks_2d import SpatialNorm
from tokpipe.models.vqvae_2d import BaseDecoder2D, check_input, drop


class MOVQDecoder(BaseDecoder2D):
    """Latents to images, with every norm scaled and shifted by the quantized latent ``zq``.

    Arguments and state_dict keys are the published ones, so public checkpoints (SBER-MoVQGAN,
    the decoders of Kandinsky 2) load as they are. ``zq_ch`` is the width of ``zq``, by default
    ``z_channels``; published code needs it. ``add_conv`` puts a 3x3 convolution of ``zq`` into
    each norm. The other arguments are those of ``Decoder``; ``in_channels`` and ``double_z``, the
    encoder's, change nothing here either.

    An image does not depend on the other latents of its batch.
    Source: arXiv:2209.09002, as CogVideo's ``movq_modules.MOVQDecoder``.

    Raises:
        ValueError: no level, no block, or channels that are no multiples of 32.
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
        super().__init__(
            ch=ch,
            out_ch=out_ch,
            ch_mult=ch_mult,
            num_res_blocks=num_res_blocks,
            attn_resolutions=attn_resolutions,
            dropout=dropout,
            resamp_with_conv=resamp_with_conv,
            resolution=resolution,
            z_channels=z_channels,
            give_pre_end=give_pre_end,
            zq_ch=z_channels if zq_ch is None else zq_ch,
            add_conv=add_conv,
        )

    def forward(self, z: Tensor, zq: Tensor) -> Tensor:
        """z (B, z_channels, h, w), zq (B, zq_ch, h', w') -> (B, out_ch, s * h, s * w).

        About [-1, 1], not clamped. ``z`` is what ``post_quant_conv`` makes of ``zq``, so the two
        have one size as a rule; another ``zq`` is stretched or thinned out to the size of each
        norm's input.

        Raises:
            ValueError: latents of another shape or dtype.
        """
        self._check(z, zq)
        return self._decode(z, zq, drop)

    def forward_with_features_output(
        self, z: Tensor, zq: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """What ``forward`` gives, and every activation on the way to it, in order.

        Their names are the published ones: ``conv_in``, ``mid_block_1``, ``mid_attn_1``,
        ``mid_block_2``, ``up_{level}_block_{block}``, ``up_{level}_attn_{block}``,
        ``up_{level}_upsample``, and without ``give_pre_end`` also ``norm_out``,
        ``nonlinearity``, ``conv_out``. (With it, published code forgets the second value.)
        """
        self._check(z, zq)
        features: dict[str, Tensor] = {}
        return self._decode(z, zq, features.__setitem__), features

    def _check(self, z: Tensor, zq: Tensor) -> None:
        norm = self.norm_out
        assert isinstance(norm, SpatialNorm)
        check_input(zq, norm.conv_y if norm.conv is None else norm.conv, "zq")
        if z.shape[:1] != zq.shape[:1]:
            raise ValueError(
                f"z has {len(z)} images and zq {len(zq)}, but they belong together one by one"
            )
