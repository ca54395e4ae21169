"""The causal 3D encoder of the CogVideo VQ-VAE and MoVQ family."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from tokpipe.models.blocks import AttnBlock2D, DownSample3D, MidBlocks, ResnetBlock3D, check_input
from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.convolution import order_weights
from tokpipe.models.group_norm import Norm, group_norm
from tokpipe.models.precision import tf32_convolutions
from tokpipe.models.streaming import Stream, StreamState, why_not_streamable


class Encoder3D(nn.Module):
    """Pixels to latents: each level but the last halves space, the first ones time as well.

    Arguments and state_dict keys are the published ones, so public checkpoints load as they
    are. ``resolution`` is nominal: it decides at which level ``attn_resolutions`` put attention
    (one that no level has puts none), and inputs of any size are taken. ``out_ch`` belongs to
    the decoder that shares these arguments and changes nothing here. ``double_z`` gives
    ``2 * z_channels``, mean and log-variance, for tokenizers without a codebook.

    One frame gives one latent frame, ``1 + r * j`` frames give ``1 + j``; other lengths from
    ``1 + r`` on lose the frames that fill no pair, as published. Rows and columns beyond a
    multiple of ``s`` give no latent of their own, as published.

    With pad modes ``first`` and ``constant`` the convolutions are causal. With ``norm="clip"``, as
    published, the norms are not: latents depend on the whole input. ``norm="frame"`` keeps the
    keys and makes the network strictly causal, so that ``stream`` can take a clip in pieces.
    Source: CogVideo's ``Encoder3D``, after MAGVIT-v2, arXiv:2310.05737.

    Raises:
        ValueError: ``temporal_compress_times`` is no power of two, or needs more levels; a level
            would have no blocks.
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
        pad_mode: PadMode = "first",
        temporal_compress_times: int = 4,
        norm: Norm = "clip",
    ) -> None:
        super().__init__()
        if num_res_blocks < 1:
            raise ValueError(
                f"num_res_blocks={num_res_blocks}: the blocks are what changes the channels from "
                "level to level. Use 1 or more"
            )
        self.norm = norm
        self.pad_mode = pad_mode
        self.temporal_stride = temporal_compress_times
        self.spatial_stride: int = 2 ** (len(ch_mult) - 1)
        powers = [2**level for level in range(len(ch_mult))]
        if temporal_compress_times not in powers:
            raise ValueError(
                f"temporal_compress_times={temporal_compress_times} cannot be reached by halving "
                f"at some of the {len(ch_mult) - 1} downsamplings: use one of {powers}"
            )

        self.conv_in = CausalConv3d(in_channels, ch, 3, pad_mode)
        self.down = nn.ModuleList()
        channels = ch
        for level, mult in enumerate(ch_mult):
            last = level == len(ch_mult) - 1
            self.down.append(
                DownLevel(
                    channels,
                    ch * mult,
                    num_res_blocks=num_res_blocks,
                    attention=resolution // 2**level in attn_resolutions,
                    downsample=None
                    if last
                    else DownSample3D(
                        ch * mult,
                        with_conv=resamp_with_conv,
                        compress_time=2**level < temporal_compress_times,
                    ),
                    dropout=dropout,
                    pad_mode=pad_mode,
                    norm=norm,
                )
            )
            channels = ch * mult
        self.mid = MidBlocks(channels, dropout=dropout, pad_mode=pad_mode, norm=norm)
        self.norm_out = group_norm(channels, norm)
        out = 2 * z_channels if double_z else z_channels
        self.conv_out = CausalConv3d(channels, out, 3, pad_mode)
        self.is_narrow = False

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let the convolutions of residual branches and of attention compute in ``dtype``.

        These are nearly all of the work. What their results are added to stays float32 from end to
        end, with the few convolutions along that way (at the ends, where channels change, where
        frames are halved) and the norms: of the trained checkpoint, 0.2 % of codes then differ
        from those of float32 under bfloat16, where 1.7 % do with everything in it. On GPUs the
        convolutions left in float32 may round to TF32.

        Rounds weights, for good. Inputs and latents are float32 whatever ``dtype``.
        """
        self.float()
        for part in self.modules():
            if isinstance(part, ResnetBlock3D):
                part.conv1.to(dtype)
                part.conv2.to(dtype)
            elif isinstance(part, AttnBlock2D):
                for layer in (part.q, part.k, part.v, part.proj_out):
                    layer.to(dtype)
        order_weights(self)
        self.is_narrow = dtype != torch.float32

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, T, H, W) in [-1, 1] -> (B, z, 1 + (T-1)//r, H//s, W//s).

        Raises:
            ValueError: ``1 < T <= r``, which leaves a pooling layer with a single frame; ``H`` or
                ``W`` below ``s``, which leaves no latent; another shape or dtype.
        """
        self._check(x)
        frames, stride = x.shape[2], self.temporal_stride
        if 1 < frames <= stride:
            raise ValueError(
                f"{frames} frames do not fill one latent frame after the first, which stands for "
                f"{stride}: give 1 frame, or repeat the last one up to {1 + stride}"
            )
        return self._encode(x)

    @property
    def why_not_streamable(self) -> str | None:
        """Why ``stream`` refuses this encoder, or None if it does not."""
        return why_not_streamable(self.norm, self.pad_mode)

    def stream(self, x: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Encode one piece of a clip, given what the pieces before left behind.

        The first piece, with ``state=None``, has ``1 + r * k`` frames and gives ``1 + k`` latent
        frames; each later one has ``r * k`` and gives ``k``. Together they are what ``forward``
        gives for the whole clip, wherever it is cut, in memory that does not grow with its
        length. Gradients do not cross pieces.

        Raises:
            ValueError: an encoder that is not causal, a piece of another length, or the state of
                another network, batch or frame size.
        """
        if (reason := self.why_not_streamable) is not None:
            raise ValueError(f"this encoder cannot take a clip in pieces: {reason}")
        self._check(x)
        frames, stride = x.shape[2], self.temporal_stride
        if state is None and (frames - 1) % stride:
            raise ValueError(
                f"the first piece of a clip has {frames} frames, which end within a latent frame: "
                f"its first frame stands alone and each later latent frame for {stride}. Give "
                f"1 frame and a multiple of {stride}"
            )
        if state is not None and frames % stride:
            raise ValueError(
                f"a later piece of a clip has {frames} frames, which end within a latent frame of "
                f"{stride}: the next piece would begin in the middle of it. Give a multiple of "
                f"{stride}"
            )
        stream = Stream(self, state)
        latent = self._encode(x, stream)
        return latent, stream.state()

    def _check(self, x: Tensor) -> None:
        check_input(x, self.conv_in)
        height, width = x.shape[3:]
        if min(height, width) < self.spatial_stride:
            raise ValueError(
                f"frames of {height}x{width} are smaller than one latent, which stands for "
                f"{self.spatial_stride}x{self.spatial_stride}: nothing would be left. Use "
                "larger frames"
            )

    def _encode(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        with tf32_convolutions(x.device) if self.is_narrow else nullcontext():
            h = self.conv_in(x, stream)
            for level in self.down:
                h = level(h, stream)
            h = self.mid(h, None, stream)
            return self.conv_out.of_silu(self.norm_out, h, stream)


class DownLevel(nn.Module):
    """Residual blocks at one size, each followed by attention if asked, then the way down."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_res_blocks: int,
        attention: bool,
        downsample: DownSample3D | None,
        dropout: float,
        pad_mode: PadMode,
        norm: Norm,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [out_channels] * num_res_blocks
        self.block = nn.ModuleList(
            ResnetBlock3D(
                in_channels=before,
                out_channels=out_channels,
                dropout=dropout,
                temb_channels=0,
                pad_mode=pad_mode,
                norm=norm,
            )
            for before in widths[:-1]
        )
        self.attn = nn.ModuleList(
            AttnBlock2D(out_channels, norm=norm) for _ in self.block if attention
        )
        self.downsample = downsample

    def forward(self, h: Tensor, stream: Stream | None = None) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T', H', W')."""
        for index, block in enumerate(self.block):
            h = block(h, None, None, stream)
            if self.attn:
                h = self.attn[index](h, None, stream)
        if self.downsample is not None:
            h = self.downsample(h, stream)
        return h
