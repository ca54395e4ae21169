"""The causal 3D encoder and decoder of the CogVideo VQ-VAE and MoVQ family."""

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.models.arguments import DECODER_ONLY, ENCODER_ONLY, takes
from tokpipe.models.blocks import AttnBlock2D, DownSample3D, ResnetBlock3D, Upsample3D, silu_conv
from tokpipe.models.causal_conv import NOT_CAUSAL, CausalConv3d, PadMode
from tokpipe.models.group_norm import Norm, group_norm
from tokpipe.models.levels import Levels, MidBlocks, Pyramid
from tokpipe.models.operations import check_input
from tokpipe.models.process import tf32_convolutions
from tokpipe.models.spatial_norm import block_norm
from tokpipe.models.streaming import Stream, StreamState

_VANILLA = {"attn_type": ("vanilla", "vanilla-xformers"), "use_linear_attn": (False,)}


def check_whole_clip(use_cp: bool) -> None:
    """Raise ValueError if ``use_cp``, which has no other effect, means parts of clips on ranks."""
    group = torch.distributed
    if use_cp and group.is_available() and group.is_initialized() and group.get_world_size() > 1:
        found = "use_cp=True: each rank would need frames of a clip that the rank before has"
        raise ValueError(f"{found}: pass whole clips, or pieces in turn to stream()")


class Network3D(nn.Module):
    """What the 3D encoder and decoder share: strides, and whether clips can come in pieces."""

    def __init__(self, pyramid: Pyramid, temporal_compress_times: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.temporal_stride = temporal_compress_times
        self.spatial_stride = pyramid.spatial_stride
        powers = [2**level for level in range(len(pyramid.ch_mult))]
        if temporal_compress_times not in powers:
            found = f"{temporal_compress_times=} where each level can halve time"
            raise ValueError(f"{found}: use one of {powers}")

    def stream(self, x: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Process one piece of a clip, given the state of the piece before, or None at first.

        With ``r = temporal_compress_times``, an encoder turns a first piece of ``1 + r * k`` frames
        into ``1 + k``, later ones of ``r * k`` into ``k``; a decoder is the inverse. The results
        are those of the whole clip, in constant memory. Gradients do not cross pieces.
        """
        modes = {part.pad_mode for part in self.modules() if isinstance(part, CausalConv3d)}
        if self.norm != "frame" or modes & NOT_CAUSAL:
            raise ValueError(
                "this network cannot take a clip in pieces, since frames depend on later ones "
                f"under norm={self.norm!r} and pad_mode {' or '.join(sorted(modes))}: train it "
                "with norm='frame' and pad_mode 'first' or 'constant'"
            )
        stream = Stream(self, state)
        return self(x, stream=stream), stream.state()


class Encoder3D(Network3D):
    """Pixels to latents: each level but the last halves space, the first ones time as well.

    Arguments (see ``Pyramid``) and state_dict keys are as published; ``double_z`` returns
    ``2 * z_channels``, mean and log-variance. With ``r = temporal_compress_times`` and
    ``s = 2 ** (len(ch_mult) - 1)``, ``1 + r * j`` frames of any size become ``1 + j`` latent
    frames. As published, other lengths above ``r`` lose the frames that do not fill a pair, and
    rows and columns beyond a multiple of ``s`` get no latent of their own.

    With pad modes ``first`` and ``constant`` convolutions are causal. As published, norms are not:
    ``norm="frame"``, with the same keys, makes them so, and ``stream`` can take clips in pieces.
    Source: CogVideo's ``Encoder3D``, after MAGVIT-v2, arXiv:2310.05737.
    """

    @takes(*DECODER_ONLY, "gather_norm", as_well_as=Pyramid, **_VANILLA)
    def __init__(
        self,
        *,
        in_channels: int,
        z_channels: int,
        double_z: bool = True,
        pad_mode: PadMode = "first",
        temporal_compress_times: int = 4,
        norm: Norm = "clip",
        **shape: Any,
    ) -> None:
        pyramid = Pyramid(**shape)
        super().__init__(pyramid, temporal_compress_times, norm)
        block = partial(
            ResnetBlock3D, dropout=pyramid.dropout, temb_channels=0, pad_mode=pad_mode, norm=norm
        )
        conv = partial(CausalConv3d, kernel_size=3, pad_mode=pad_mode)
        self.conv_in = conv(in_channels, pyramid.ch)
        self.down = Levels(
            *("down", pyramid, block, partial(AttnBlock2D, norm=norm), DownSample3D),
            temporal_stride=temporal_compress_times,
        )
        channels = pyramid.widths[-1]
        self.mid = MidBlocks(channels, block)
        self.norm_out = group_norm(channels, norm)
        self.conv_out = conv(channels, 2 * z_channels if double_z else z_channels)
        self.is_narrow = False

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let convolutions in residual branches and attention, nearly all work, use ``dtype``.

        All else stays float32, also inputs and latents, with TF32 in convolutions on GPUs: bfloat16
        then changes 0.2 % of the trained checkpoint's codes; everywhere, it changes 1.7 %. Rounds
        the weights irreversibly.
        """
        self.float()
        for part in self.modules():
            if isinstance(part, ResnetBlock3D):
                part.conv1.to(dtype)
                part.conv2.to(dtype)
            elif isinstance(part, AttnBlock2D):
                for layer in (part.q, part.k, part.v, part.proj_out):
                    layer.to(dtype)
            elif isinstance(part, nn.Conv3d):  # the layout of conv3d, to save a copy per call
                weight = part.weight.data
                part.weight.data = weight.contiguous(memory_format=torch.channels_last_3d)
        self.is_narrow = dtype != torch.float32

    def forward(self, x: Tensor, use_cp: bool = False, stream: Stream | None = None) -> Tensor:
        """(B, in_channels, T, H, W) in [-1, 1] -> (B, z, 1 + (T-1)//r, H//s, W//s)."""
        check_whole_clip(use_cp)
        check_input(x, self.conv_in.conv, smallest=self.spatial_stride)
        frames, stride = x.shape[2], self.temporal_stride
        starts = stream is None or stream.is_first
        if 1 < frames <= stride if stream is None else (frames - starts) % stride:
            use = f"{'1 frame plus ' if starts else ''}a multiple of {stride}"
            raise ValueError(f"{frames} frames do not fill latent frames: pass {use}")
        with tf32_convolutions(x.device) if self.is_narrow else nullcontext():
            h = self.conv_in(x, stream)
            for step, context in self.down.run(None, stream):
                h = step(h, *context)
            h = self.mid(h, None, None, stream)
            return silu_conv(self.norm_out, self.conv_out, h, None, stream)


class MOVQDecoder3D(Network3D):
    """Latents to pixels: each level but the last doubles space, the coarsest ones time as well.

    Arguments (see ``Pyramid``) and keys are as published. The input, of ``zq_ch`` channels, is also
    the latent that the norms read. With ``post_quant_conv``, a causal 3x3x3 convolution turns it
    into ``z_channels`` for the decoder itself. ``add_conv`` adds a causal convolution to each norm,
    padded by ``add_conv_pad_mode``: published weights need ``constant_published``, see
    ``CausalConv3d``. ``give_pre_end`` returns the features before the last norm.

    Sizes are those of ``Encoder3D`` backwards; the same arguments make it causal. Source: MoVQ,
    arXiv:2209.09002, as CogVideo's ``MOVQDecoder3D``, ``NewDecoder3D`` with ``post_quant_conv``.
    """

    @takes(*ENCODER_ONLY, "gather_norm", tanh_out=(False,), as_well_as=Pyramid, **_VANILLA)
    def __init__(
        self,
        *,
        out_ch: int,
        z_channels: int,
        give_pre_end: bool = False,
        zq_ch: int | None = None,
        add_conv: bool = False,
        add_conv_pad_mode: PadMode = "constant",
        pad_mode: PadMode = "first",
        temporal_compress_times: int = 4,
        post_quant_conv: bool = False,
        norm: Norm = "clip",
        **shape: Any,
    ) -> None:
        zq_ch = z_channels if zq_ch is None else zq_ch
        if zq_ch != z_channels and not post_quant_conv:
            found = f"{zq_ch=} with {z_channels=}: the decoder and its norms read the same latent"
            raise ValueError(f"{found}. Leave zq_ch out, or convert it with post_quant_conv=True")
        pyramid = Pyramid(**shape)
        finest, coarsest = pyramid.widths[0], pyramid.widths[-1]
        super().__init__(pyramid, temporal_compress_times, norm)
        self.give_pre_end = give_pre_end
        latent: dict[str, Any] = {"zq_ch": zq_ch, "add_conv": add_conv, "norm": norm}
        latent["add_conv_pad_mode"] = add_conv_pad_mode
        block = partial(
            ResnetBlock3D, dropout=pyramid.dropout, temb_channels=0, pad_mode=pad_mode, **latent
        )
        conv = partial(CausalConv3d, kernel_size=3, pad_mode=pad_mode)
        self.post_quant_conv = conv(zq_ch, z_channels) if post_quant_conv else None
        self.conv_in = conv(z_channels, coarsest)
        self.mid = MidBlocks(coarsest, block)
        self.up = Levels(
            *("up", pyramid, block, partial(AttnBlock2D, **latent), Upsample3D),
            temporal_stride=temporal_compress_times,
        )
        self.norm_out = block_norm(finest, zq_ch, add_conv, norm, add_conv_pad_mode)
        self.conv_out = conv(finest, out_ch)

    def get_last_layer(self) -> Tensor:
        """The weight of ``conv_out``, whose gradient is used to balance losses."""
        return self.conv_out.conv.weight

    def forward(self, z: Tensor, use_cp: bool = False, stream: Stream | None = None) -> Tensor:
        """(B, zq_ch, t, h, w) -> (B, out_ch, 1 + r(t-1), s*h, s*w), about [-1, 1], not clamped."""
        check_whole_clip(use_cp)
        check_input(z, (self.post_quant_conv or self.conv_in).conv, "z")
        h: Tensor = z if self.post_quant_conv is None else self.post_quant_conv(z, stream)
        h = self.mid(self.conv_in(h, stream), None, z, stream)
        h = self.up(h, z, stream)
        return h if self.give_pre_end else silu_conv(self.norm_out, self.conv_out, h, z, stream)
