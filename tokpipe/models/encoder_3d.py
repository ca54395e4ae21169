"""The causal 3D encoder of the CogVideo VQ-VAE and MoVQ family."""

from contextlib import nullcontext
from functools import partial
from typing import Unpack

import torch
from torch import Tensor

from tokpipe.models.blocks import AttnBlock2D, DownSample3D, Network3D, ResnetBlock3D
from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.group_norm import Norm, group_norm
from tokpipe.models.levels import Levels, MidBlocks, Pyramid, Shape
from tokpipe.models.operations import check_input, order_weights
from tokpipe.models.process import tf32_convolutions
from tokpipe.models.streaming import Stream, StreamState


class Encoder3D(Network3D):
    """Pixels to latents: each level but the last halves space, the first ones time as well.

    Arguments (see ``Shape``) and state_dict keys are the published ones, so public checkpoints load
    unchanged. ``resolution`` is nominal: with ``attn_resolutions`` it decides which levels have
    attention, and frames of any size are accepted. ``out_ch`` is for the decoder, which shares
    these arguments. ``double_z`` returns ``2 * z_channels``, mean and log-variance, for tokenizers
    without a codebook.

    With ``r = temporal_compress_times`` and ``s = 2 ** (len(ch_mult) - 1)``, one frame becomes one
    latent frame, and ``1 + r * j`` frames become ``1 + j``. As published, other lengths above
    ``r`` lose the frames that do not fill a pair, and rows and columns beyond a multiple of ``s``
    get no latent of their own.

    With pad modes ``first`` and ``constant`` the convolutions are causal. The norms are not with
    ``norm="clip"``, as published: latents then depend on the whole input. ``norm="frame"`` keeps
    the keys and makes the network strictly causal, so that ``stream`` can take a clip in pieces.
    Source: CogVideo's ``Encoder3D``, after MAGVIT-v2, arXiv:2310.05737.
    """

    def __init__(
        self,
        *,
        out_ch: int | None = None,
        in_channels: int,
        z_channels: int,
        double_z: bool = True,
        pad_mode: PadMode = "first",
        temporal_compress_times: int = 4,
        norm: Norm = "clip",
        **shape: Unpack[Shape],
    ) -> None:
        pyramid = Pyramid(**shape)
        plans = pyramid.down()
        super().__init__(pyramid, temporal_compress_times, pad_mode, norm)
        block = partial(
            ResnetBlock3D, dropout=pyramid.dropout, temb_channels=0, pad_mode=pad_mode, norm=norm
        )
        self.conv_in = CausalConv3d(in_channels, pyramid.ch, 3, pad_mode)
        self.down = Levels(
            *("down", plans, block, partial(AttnBlock2D, norm=norm)),
            lambda plan: DownSample3D(
                plan.channels, pyramid.resamp_with_conv, 2**plan.index < temporal_compress_times
            ),
        )
        channels = plans[-1].channels
        self.mid = MidBlocks(channels, block)
        self.norm_out = group_norm(channels, norm)
        self.conv_out = CausalConv3d(
            channels, 2 * z_channels if double_z else z_channels, 3, pad_mode
        )
        self.is_narrow = False

    def compute_in(self, dtype: torch.dtype) -> None:
        """Let the convolutions of residual branches and of attention compute in ``dtype``.

        They are nearly all of the work. The values that their results are added to stay float32
        from end to end, as do the norms and the few other convolutions (at the ends, where
        channels change, where frames are halved). With the trained checkpoint, bfloat16 then
        changes 0.2 % of the codes, compared with 1.7 % when everything computes in it. On GPUs the
        convolutions left in float32 may round to TF32.

        Rounds the weights irreversibly. Inputs and latents are float32 whatever ``dtype``.
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
        """(B, in_channels, T, H, W) in [-1, 1] -> (B, z, 1 + (T-1)//r, H//s, W//s)."""
        self._check(x)
        frames, stride = x.shape[2], self.temporal_stride
        if 1 < frames <= stride:
            raise ValueError(
                f"{frames} frames do not fill the second latent frame, which covers {stride} "
                f"frames after the first: pass 1 frame, or repeat the last one up to {1 + stride}"
            )
        return self._encode(x)

    def stream(self, x: Tensor, state: StreamState | None) -> tuple[Tensor, StreamState]:
        """Encode one piece of a clip, continuing from the state of the piece before it.

        The first piece, with ``state=None``, has ``1 + r * k`` frames and returns ``1 + k`` latent
        frames; each later one has ``r * k`` and returns ``k``. Concatenated they equal ``forward``
        of the whole clip, for any cuts, in memory that does not grow with its length.
        Gradients do not cross pieces.
        """
        stream = self._piece(state)
        self._check(x)
        frames, stride = x.shape[2], self.temporal_stride
        which, alone = ("the first", 1) if state is None else ("a later", 0)
        if (frames - alone) % stride:
            raise ValueError(
                f"{which} piece of a clip has {frames} frames and ends within a latent frame of "
                f"{stride}, so the next piece would start inside it. Pass "
                f"{'1 frame plus ' * alone}a multiple of {stride}"
            )
        return self._encode(x, stream), stream.state()

    def _check(self, x: Tensor) -> None:
        check_input(x, self.conv_in.conv)
        height, width = x.shape[3:]
        if min(height, width) < self.spatial_stride:
            raise ValueError(
                f"frames of {height}x{width} are smaller than one latent, which covers "
                f"{self.spatial_stride}x{self.spatial_stride}: use larger frames"
            )

    def _encode(self, x: Tensor, stream: Stream | None = None) -> Tensor:
        with tf32_convolutions(x.device) if self.is_narrow else nullcontext():
            h = self.conv_in(x, stream)
            for step in self.down.run(None, stream):
                h = step(h)
            h = self.mid(h, None, None, stream)
            return self.conv_out.of_silu(self.norm_out, h, stream)
