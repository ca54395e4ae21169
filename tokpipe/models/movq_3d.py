"""The causal 3D decoder of the MoVQ family, whose norms look at the quantized latent."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from tokpipe.models.activation import silu
from tokpipe.models.blocks import (
    AttnBlock2D,
    MidBlocks,
    ResnetBlock3D,
    Upsample3D,
    block_norm,
    check_input,
    normalized,
)
from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.group_norm import Norm
from tokpipe.models.streaming import Stream, StreamState, why_not_streamable


class MOVQDecoder3D(nn.Module):
    """Latents to pixels: each level but the last doubles space, the coarsest ones time as well.

    Arguments and state_dict keys are the published ones, so public checkpoints load as they are.
    ``resolution`` is nominal: it decides at which level ``attn_resolutions`` put attention (one
    that no level has puts none), and latents of any size are taken. ``in_channels`` and
    ``double_z`` belong to the encoder that shares these arguments and change nothing here.
    ``give_pre_end`` returns the features before the last norm. ``zq_ch`` is the width of the latent
    that the norms look at, which is the input; with ``post_quant_conv`` a causal 3x3x3 convolution
    turns it into ``z_channels`` for the decoder itself, without it both are the same. ``add_conv``
    puts a causal convolution into each norm, which sees zeros before frame 0 whatever ``pad_mode``
    says.

    One latent frame gives one frame, ``1 + j`` give ``1 + r * j``. With pad modes ``first`` and
    ``constant`` the convolutions are causal. With ``norm="clip"``, as published, the norms are
    not: frames depend on the whole latent. ``norm="frame"`` keeps the keys and makes the network
    strictly causal, so that ``stream`` can take a latent in pieces.
    Source: MoVQ, arXiv:2209.09002, as CogVideo's ``MOVQDecoder3D``, and its ``NewDecoder3D`` where
    ``post_quant_conv`` is given.

    Raises:
        ValueError: ``temporal_compress_times`` is no power of two, or needs more levels; ``zq_ch``
            other than ``z_channels`` without ``post_quant_conv``.
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
        pad_mode: PadMode = "first",
        temporal_compress_times: int = 4,
        post_quant_conv: bool = False,
        norm: Norm = "clip",
    ) -> None:
        super().__init__()
        zq_ch = z_channels if zq_ch is None else zq_ch
        if zq_ch != z_channels and not post_quant_conv:
            raise ValueError(
                f"zq_ch={zq_ch} with z_channels={z_channels}: the decoder and its norms are given "
                "one and the same latent, which cannot have two widths. Leave zq_ch out, or let "
                "post_quant_conv=True turn one into the other"
            )
        self.norm = norm
        self.pad_mode = pad_mode
        self.give_pre_end = give_pre_end
        self.temporal_stride = temporal_compress_times
        self.spatial_stride: int = 2 ** (len(ch_mult) - 1)
        powers = [2**level for level in range(len(ch_mult))]
        if temporal_compress_times not in powers:
            raise ValueError(
                f"temporal_compress_times={temporal_compress_times} cannot be reached by doubling "
                f"at some of the {len(ch_mult) - 1} upsamplings: use one of {powers}"
            )

        self.post_quant_conv = (
            CausalConv3d(zq_ch, z_channels, 3, pad_mode) if post_quant_conv else None
        )
        channels = ch * ch_mult[-1]
        self.conv_in = CausalConv3d(z_channels, channels, 3, pad_mode)
        self.mid = MidBlocks(
            channels,
            dropout=dropout,
            pad_mode=pad_mode,
            norm=norm,
            zq_ch=zq_ch,
            add_conv=add_conv,
        )
        coarsest = len(ch_mult) - 1
        levels = []
        for level in reversed(range(len(ch_mult))):
            out_channels = ch * ch_mult[level]
            # Doubled from the coarsest, as published: halves lost on the way down stay lost.
            size = resolution // 2**coarsest * 2 ** (coarsest - level)
            levels.append(
                UpLevel(
                    channels,
                    out_channels,
                    num_res_blocks=num_res_blocks,
                    attention=size in attn_resolutions,
                    upsample=None
                    if level == 0
                    else Upsample3D(
                        out_channels,
                        with_conv=resamp_with_conv,
                        compress_time=2 ** (coarsest - level) < temporal_compress_times,
                    ),
                    dropout=dropout,
                    pad_mode=pad_mode,
                    norm=norm,
                    zq_ch=zq_ch,
                    add_conv=add_conv,
                )
            )
            channels = out_channels
        self.up = nn.ModuleList(reversed(levels))  # by published key, up.0 is the finest
        self.norm_out = block_norm(channels, zq_ch, add_conv, norm)
        self.conv_out = CausalConv3d(channels, out_ch, 3, pad_mode)

    def forward(self, z: Tensor) -> Tensor:
        """(B, zq_ch, t, h, w) -> (B, out_ch, 1 + r(t-1), s*h, s*w), about [-1, 1], not clamped.

        Raises:
            ValueError: a latent of another shape or dtype.
        """
        check_input(z, self.conv_in if self.post_quant_conv is None else self.post_quant_conv)
        return self._decode(z)

    @property
    def why_not_streamable(self) -> str | None:
        """Why ``stream`` refuses this decoder, or None if it does not."""
        return why_not_streamable(self.norm, self.pad_mode)

    def stream(self, z: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Decode one piece of a clip's latent, given what the pieces before left behind.

        The first piece, with ``state=None``, has ``1 + k`` latent frames and gives ``1 + r * k``
        frames; each later one has ``k`` and gives ``r * k``. Together they are what ``forward``
        gives for the whole latent, wherever it is cut, in memory that does not grow with its
        length. Gradients do not cross pieces.

        Raises:
            ValueError: a decoder that is not causal, an empty piece, or the state of another
                network, batch or latent size.
        """
        if (reason := self.why_not_streamable) is not None:
            raise ValueError(f"this decoder cannot take a latent in pieces: {reason}")
        check_input(z, self.conv_in if self.post_quant_conv is None else self.post_quant_conv)
        stream = Stream(self, state)
        frames = self._decode(z, stream)
        return frames, stream.state()

    def _decode(self, zq: Tensor, stream: Stream | None = None) -> Tensor:
        h: Tensor = zq if self.post_quant_conv is None else self.post_quant_conv(zq, stream)
        h = self.mid(self.conv_in(h, stream), zq, stream)
        for level in reversed(self.up):
            h = level(h, zq, stream)
        if not self.give_pre_end:
            h = self.conv_out(silu(normalized(self.norm_out, h, zq, stream)), stream)
        return h


class UpLevel(nn.Module):
    """Residual blocks at one size, each followed by attention if asked, then the way up."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_res_blocks: int,
        attention: bool,
        upsample: Upsample3D | None,
        dropout: float,
        pad_mode: PadMode,
        norm: Norm,
        zq_ch: int,
        add_conv: bool,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_res_blocks
        self.block = nn.ModuleList(
            ResnetBlock3D(
                in_channels=before,
                out_channels=out_channels,
                dropout=dropout,
                temb_channels=0,
                zq_ch=zq_ch,
                add_conv=add_conv,
                pad_mode=pad_mode,
                norm=norm,
            )
            for before in widths
        )
        self.attn = nn.ModuleList(
            AttnBlock2D(out_channels, zq_ch, add_conv, norm=norm) for _ in self.block if attention
        )
        self.upsample = upsample

    def forward(self, h: Tensor, zq: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T', H', W')."""
        for index, block in enumerate(self.block):
            h = block(h, None, zq, stream)
            if self.attn:
                h = self.attn[index](h, zq, stream)
        if self.upsample is not None:
            h = self.upsample(h, stream)
        return h
