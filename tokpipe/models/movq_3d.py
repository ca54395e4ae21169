"""The causal 3D decoder of the MoVQ family, whose norms read the quantized latent."""

from functools import partial
from typing import Any, Unpack

from torch import Tensor

from tokpipe.models.blocks import AttnBlock2D, Network3D, ResnetBlock3D, Upsample3D
from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.group_norm import Norm
from tokpipe.models.levels import Levels, MidBlocks, Pyramid, Shape
from tokpipe.models.operations import check_input, silu
from tokpipe.models.spatial_norm import SpatialNorm3D, block_norm, normalized
from tokpipe.models.streaming import Stream, StreamState


class MOVQDecoder3D(Network3D):
    """Latents to pixels: each level but the last doubles space, the coarsest ones time as well.

    Arguments (see ``Shape``) and state_dict keys are the published ones: those of ``Encoder3D``,
    where ``in_channels`` and ``double_z`` are for the encoder. ``give_pre_end`` returns the
    features before the last norm.

    The input, of ``zq_ch`` channels, is also the latent that the norms read. With
    ``post_quant_conv``, a causal 3x3x3 convolution turns it into ``z_channels`` for the decoder
    itself; without it both widths must be equal. ``add_conv`` adds a causal convolution to each
    norm, which sees zeros before frame 0 whatever the ``pad_mode``.

    One latent frame becomes one frame, and ``1 + j`` become ``1 + r * j``, with
    ``r = temporal_compress_times``. What is causal depends on ``pad_mode`` and ``norm`` as in
    ``Encoder3D``.
    Source: MoVQ, arXiv:2209.09002, as CogVideo's ``MOVQDecoder3D``, and its ``NewDecoder3D`` with
    ``post_quant_conv``.
    """

    def __init__(
        self,
        *,
        out_ch: int,
        in_channels: int | None = None,
        z_channels: int,
        double_z: bool | None = None,
        give_pre_end: bool = False,
        zq_ch: int | None = None,
        add_conv: bool = False,
        pad_mode: PadMode = "first",
        temporal_compress_times: int = 4,
        post_quant_conv: bool = False,
        norm: Norm = "clip",
        **shape: Unpack[Shape],
    ) -> None:
        zq_ch = z_channels if zq_ch is None else zq_ch
        if zq_ch != z_channels and not post_quant_conv:
            raise ValueError(
                f"zq_ch={zq_ch} with z_channels={z_channels}: the decoder and its norms read the "
                "same latent, which cannot have two widths. Leave zq_ch out, or convert one into "
                "the other with post_quant_conv=True"
            )
        pyramid = Pyramid(**shape)
        plans = pyramid.up()
        super().__init__(pyramid, temporal_compress_times, pad_mode, norm)
        self.give_pre_end = give_pre_end
        latent: dict[str, Any] = {"zq_ch": zq_ch, "add_conv": add_conv, "norm": norm}
        block = partial(
            ResnetBlock3D, dropout=pyramid.dropout, temb_channels=0, pad_mode=pad_mode, **latent
        )
        self.post_quant_conv = (
            CausalConv3d(zq_ch, z_channels, 3, pad_mode) if post_quant_conv else None
        )
        coarsest, finest = plans[0], plans[-1]
        self.conv_in = CausalConv3d(z_channels, coarsest.inputs[0], 3, pad_mode)
        self.mid = MidBlocks(coarsest.inputs[0], block)
        self.up = Levels(
            *("up", plans, block, partial(AttnBlock2D, **latent)),
            lambda plan: Upsample3D(
                plan.channels,
                pyramid.resamp_with_conv,
                2 ** (coarsest.index - plan.index) < temporal_compress_times,
            ),
        )
        self.norm_out = block_norm(finest.channels, zq_ch, add_conv, norm, SpatialNorm3D)
        self.conv_out = CausalConv3d(finest.channels, out_ch, 3, pad_mode)

    def forward(self, z: Tensor) -> Tensor:
        """(B, zq_ch, t, h, w) -> (B, out_ch, 1 + r(t-1), s*h, s*w), about [-1, 1], not clamped.

        ``s`` is ``2 ** (len(ch_mult) - 1)``.
        """
        return self._decode(z)

    def stream(self, z: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Decode one piece of a clip's latent: the inverse of ``Encoder3D.stream``.

        The first piece, with ``state=None``, has ``1 + k`` latent frames and returns ``1 + r * k``
        frames; each later one has ``k`` and returns ``r * k``.
        """
        stream = self._piece(state)
        return self._decode(z, stream), stream.state()

    def _decode(self, zq: Tensor, stream: Stream | None = None) -> Tensor:
        check_input(zq, (self.post_quant_conv or self.conv_in).conv, "z")
        h: Tensor = zq if self.post_quant_conv is None else self.post_quant_conv(zq, stream)
        h = self.mid(self.conv_in(h, stream), None, zq, stream)
        h = self.up(h, zq, stream)
        if not self.give_pre_end:
            h = self.conv_out(silu(normalized(self.norm_out, h, zq, stream)), stream)
        return h
