"""The U-Net of a diffusion model: predicts noise, or a cleaner image, at a known noise level.

Shape letters: B images, C channels, H rows, W columns, E channels of the timestep embedding.
"""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.blocks import AttnType, Downsample, ResnetBlock, Upsample, make_attn
from tokpipe.models.group_norm import group_norm
from tokpipe.models.levels import Levels, MidBlocks, Pyramid, passes_on_to
from tokpipe.models.operations import Conv2d, check_input, silu


class UNet(nn.Module):
    """Images to images of the same size, through coarser levels, with skips between equal sizes.

    Every activation on the way down is kept, and concatenated to the input of one block on the way
    up. Arguments (see ``Pyramid``) and state_dict keys are the published ones. ``resolution`` is
    nominal: with ``attn_resolutions`` it decides which levels have attention, and any size that
    halves evenly down to the coarsest level is accepted. The middle always has attention.
    ``use_linear_attn`` overrides ``attn_type`` with ``linear``.

    ``use_timestep=False`` builds a network that ignores ``t``. Its blocks keep the ``temb_proj``
    of the published weights, and never use it.
    Source: arXiv:2006.11239; ``Model`` of CogVideo's ``sgm.modules.diffusionmodules.model``.
    """

    @passes_on_to(Pyramid)
    def __init__(
        self,
        *,
        out_ch: int,
        in_channels: int,
        use_timestep: bool = True,
        use_linear_attn: bool = False,
        attn_type: AttnType = "vanilla",
        **shape: Any,
    ) -> None:
        super().__init__()
        pyramid = Pyramid(**shape)
        self.spatial_stride = pyramid.spatial_stride
        self.temb = TimestepEmbedding(pyramid.ch) if use_timestep else None
        attn_type = "linear" if use_linear_attn else attn_type
        attn = partial(make_attn, attn_type=attn_type)
        block = partial(ResnetBlock, dropout=pyramid.dropout, temb_channels=4 * pyramid.ch)

        self.conv_in = Conv2d(in_channels, pyramid.ch, kernel_size=3, padding=1)
        down, up = pyramid.down(), pyramid.up()
        kept = [pyramid.ch]  # channels of the activations that the way up takes, from the end
        for plan in down:
            kept += [plan.channels] * (pyramid.num_res_blocks + (plan is not down[-1]))
        joined = [replace(p, inputs=[width + kept.pop() for width in p.inputs]) for p in up]
        self.down = Levels(
            *("down", down, block, attn),
            lambda plan: Downsample(plan.channels, pyramid.resamp_with_conv),
        )
        self.mid = MidBlocks(down[-1].channels, block, attn)
        self.up = Levels(
            *("up", joined, block, attn),
            lambda plan: Upsample(plan.channels, pyramid.resamp_with_conv),
        )
        channels = up[-1].channels
        self.norm_out = group_norm(channels)
        self.conv_out = Conv2d(channels, out_ch, kernel_size=3, padding=1)

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> (B, out_ch, H, W). ``x`` has the dtype of the weights.

        ``t`` is the timestep of each image, (B,), or one for all, (1,). ``context``, an aligned
        image of (B, in_channels - C, H, W), is appended to the channels of ``x``.
        """
        x = self._joined(x, context)
        temb = self._embed(x, t)
        kept: list[Tensor] = [self.conv_in(x)]
        for level in self.down.in_order():
            for block, attn in level.steps():
                h = block(kept[-1], temb)
                kept.append(h if attn is None else attn(h))
            if level.downsample is not None:
                kept.append(level.downsample(kept[-1]))
        h = self.mid(kept[-1], temb)
        for level in self.up.in_order():
            for block, attn in level.steps():
                h = block(torch.cat([h, kept.pop()], dim=1), temb)
                h = h if attn is None else attn(h)
            if level.upsample is not None:
                h = level.upsample(h)
        return self.conv_out(silu(self.norm_out(h)))

    def get_last_layer(self) -> Tensor:
        """The weight of ``conv_out``, whose gradient is used to balance losses."""
        return self.conv_out.weight

    def _joined(self, x: Tensor, context: Tensor | None) -> Tensor:
        name = "x"
        if context is not None:
            if context.shape[:1] + context.shape[2:] != x.shape[:1] + x.shape[2:]:
                raise ValueError(
                    f"context has shape {tuple(context.shape)}, but it is appended to the channels "
                    f"of x {tuple(x.shape)}: pass the same B, H and W"
                )
            name, x = "x with context", torch.cat([x, context], dim=1)
        check_input(x, self.conv_in, name)
        height, width = x.shape[2:]
        if height % self.spatial_stride or width % self.spatial_stride:
            raise ValueError(
                f"images of {height}x{width} do not halve evenly down to the coarsest level, so "
                "the skips on the way up would not fit: pad or crop rows and columns to multiples "
                f"of {self.spatial_stride}"
            )
        return x

    def _embed(self, x: Tensor, t: Tensor | None) -> Tensor | None:
        if self.temb is None:
            return None
        if t is None:
            raise ValueError(
                "no timesteps were passed, but this network needs the noise level of its input: "
                "pass t, or build it with use_timestep=False"
            )
        if t.shape not in {(x.shape[0],), (1,)}:
            raise ValueError(
                f"t has shape {tuple(t.shape)} for {x.shape[0]} images: pass one timestep for each "
                f"({x.shape[0]},), or one for all (1,)"
            )
        return self.temb(t)


def get_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    """(B,) of any real dtype -> (B, embedding_dim) float32 in [-1, 1]: sines, then cosines.

    The half ``n = embedding_dim // 2`` has angles ``t * 10000 ** (-i / (n - 1))``, from a period
    of ``2 pi`` steps to one of ``20000 pi``. An odd dim ends in a zero. Computed in float32
    whatever the dtype of ``timesteps``, of which whole numbers up to 2**24 are exact.
    Source: tensor2tensor, as in Denoising Diffusion Probabilistic Models, arXiv:2006.11239;
    arguments as in CogVideo's ``sgm.modules.diffusionmodules.model``.
    """
    if timesteps.ndim != 1:
        raise ValueError(
            f"timesteps have shape {tuple(timesteps.shape)}, but each input has one: pass (B,)"
        )
    half = embedding_dim // 2
    if half < 2:
        raise ValueError(
            f"embedding_dim={embedding_dim} leaves room for {half} period(s), but the series "
            "needs two at least: use 4 or more"
        )
    # On the CPU, so that the periods are the same bits on every device.
    steps = torch.arange(half, dtype=torch.float32, device="cpu")
    rates = torch.exp(steps * -(math.log(10000) / (half - 1))).to(timesteps.device)
    angles = timesteps.float()[:, None] * rates
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(embedding, (0, embedding_dim % 2))


class TimestepEmbedding(nn.Module):
    """The sinusoidal embedding of ``channels`` after two dense layers of four times as many.

    Source: arXiv:2006.11239; keys as in CogVideo (``temb.dense.0``, ``temb.dense.1``).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        hidden = 4 * channels
        self.dense = nn.ModuleList([nn.Linear(channels, hidden), nn.Linear(hidden, hidden)])

    def forward(self, timesteps: Tensor) -> Tensor:
        """(B,) -> (B, 4 * channels), in the dtype of the weights."""
        first, second = self.dense
        assert isinstance(first, nn.Linear)
        # The angles of late timesteps need float32: bfloat16 has no odd numbers above 256.
        embedding = get_timestep_embedding(timesteps, self.channels).to(first.weight.dtype)
        return second(silu(first(embedding)))
