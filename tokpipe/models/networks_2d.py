"""The 2D networks of the CogVideo family: encoder, decoders and U-Net of images, or single frames.
Shapes: B images, C channels, H rows, W columns; s is ``2 ** (len(ch_mult) - 1)``."""

import math
import re
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.arguments import DECODER_ONLY, ENCODER_ONLY, takes
from tokpipe.models.blocks import AttnType, Downsample, ResnetBlock, Upsample, make_attn
from tokpipe.models.group_norm import group_norm
from tokpipe.models.levels import Factory, Levels, MidBlocks, Pyramid
from tokpipe.models.operations import Conv2d, check_input, silu
from tokpipe.models.spatial_norm import SpatialNorm, block_norm, normalized


@dataclass(frozen=True, kw_only=True)
class Pyramid2D(Pyramid):
    """``Pyramid`` with the kind of attention: see ``make_attn``. ``use_linear_attn``: linear."""

    use_linear_attn: bool = False
    attn_type: AttnType = "vanilla"

    def attention(self, make: Factory = make_attn, **arguments: Any) -> Factory:
        attn_type = "linear" if self.use_linear_attn else self.attn_type
        return partial(make, attn_type=attn_type, **arguments)


_CLIPS_ONLY = ("pad_mode", "temporal_compress_times", "gather_norm")

_STEPS = re.compile(r"(conv|norm)_(in|out)|mid\.\w+|(down|up)\.\d+\.\w+(\.\d+)?")
"""Paths of the modules whose results are published features."""


class Network2D(nn.Module):
    """What the networks share. An image's result does not depend on others of its batch."""

    conv_out: Any

    def __init__(self, pyramid: Pyramid) -> None:
        super().__init__()
        self.spatial_stride = pyramid.spatial_stride

    def get_last_layer(self) -> Tensor:
        """The weight of ``conv_out``, whose gradient is used to balance losses."""
        return self.conv_out.weight

    def forward_with_features_output(self, *given: Any, **named: Any) -> tuple[Any, dict[str, Any]]:
        """The result of ``forward``, and every activation on the way to it, in order.

        Names are the published ones, the decoder's those of MoVQ: ``conv_in``,
        ``down{level}_block{block}``, ``down{level}_attn{block}``, ``down{level}_downsample``,
        ``mid_block_1``, ``mid_attn_1``, ``mid_block_2``, ``up_{level}_block_{block}``,
        ``up_{level}_attn_{block}``, ``up_{level}_upsample``, and unless the network ends before
        them ``norm_out``, ``nonlinearity``, ``conv_out``.
        """
        features: dict[str, Tensor] = {}

        def keep(name: str, _step: nn.Module, given: tuple[Tensor, ...], h: Tensor) -> None:
            if name == "conv_out":
                features["nonlinearity"] = given[0]
            features[name] = h

        with ExitStack() as stack:
            for path, step in self.named_modules():
                if _STEPS.fullmatch(path):
                    name = re.sub(r"\.(?=\d)", "" if path.startswith("down") else "_", path)
                    hook = step.register_forward_hook(partial(keep, name.replace(".", "_")))
                    stack.callback(hook.remove)
            return self(*given, **named), features


class Encoder(Network2D):
    """Images to latents: each level but the last halves rows and columns.

    Arguments (see ``Pyramid2D``) and keys are as published. The middle always has attention.
    ``double_z`` returns ``2 * z_channels``, mean and log-variance. Sizes that are not multiples of
    ``s`` are rounded down, as published: 33 rows have the latent rows of 32, the last of which sees
    row 33. Source: arXiv:2012.09841 and arXiv:2112.10752, as CogVideo's ``vqvae_blocks.Encoder``
    and ``Encoder`` of ``sgm.modules.diffusionmodules.model``.
    """

    @takes(*DECODER_ONLY, *_CLIPS_ONLY, as_well_as=Pyramid2D)
    def __init__(
        self, *, in_channels: int, z_channels: int, double_z: bool = True, **shape: Any
    ) -> None:
        pyramid = Pyramid2D(**shape)
        super().__init__(pyramid)
        block = partial(ResnetBlock, dropout=pyramid.dropout, temb_channels=0)
        attn = pyramid.attention()
        channels = pyramid.widths[-1]
        self.conv_in = Conv2d(in_channels, pyramid.ch, 3, padding=1)
        self.down = Levels("down", pyramid, block, attn, Downsample)
        self.mid = MidBlocks(channels, block, attn)
        self.norm_out = group_norm(channels)
        self.conv_out = Conv2d(channels, 2 * z_channels if double_z else z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) in [-1, 1] -> (B, z or 2z, H // s, W // s)."""
        check_input(x, self.conv_in, smallest=self.spatial_stride)
        h = self.mid(self.down(self.conv_in(x)))
        return self.conv_out(silu(self.norm_out(h)))


class Decoder(Network2D):
    """Latents to images: each level but the last doubles rows and columns.

    Arguments (see ``Pyramid2D``) and keys are as published. ``give_pre_end`` ends before the last
    norm; ``tanh_out`` bounds pixels to (-1, 1). With ``zq_ch`` a second latent of that many
    channels scales and shifts every norm, and ``add_conv`` adds a 3x3 convolution to it in each.

    To change its parts, override ``_make_attn``, ``_make_resblock`` or ``_make_conv``, which are
    called during ``__init__`` and may use what the subclass set before. Source: arXiv:2012.09841
    and arXiv:2112.10752, as CogVideo's ``vqvae_blocks.Decoder`` and ``Decoder`` of
    ``sgm.modules.diffusionmodules.model``.
    """

    @takes(*ENCODER_ONLY, *_CLIPS_ONLY, as_well_as=Pyramid2D, post_quant_conv=(False,))
    def __init__(
        self,
        *,
        out_ch: int,
        z_channels: int,
        give_pre_end: bool = False,
        tanh_out: bool = False,
        zq_ch: int | None = None,
        add_conv: bool = False,
        **shape: Any,
    ) -> None:
        pyramid = Pyramid2D(**shape)
        super().__init__(pyramid)
        self.give_pre_end = give_pre_end
        self.tanh_out = tanh_out
        latent: dict[str, Any] = {} if zq_ch is None else {"zq_ch": zq_ch, "add_conv": add_conv}
        block = partial(self._make_resblock(), temb_channels=0, dropout=pyramid.dropout, **latent)
        attn = pyramid.attention(self._make_attn(), **latent)
        finest, coarsest = pyramid.widths[0], pyramid.widths[-1]
        self.conv_in = Conv2d(z_channels, coarsest, 3, padding=1)
        self.mid = MidBlocks(coarsest, block, attn)
        self.up = Levels("up", pyramid, block, attn, Upsample)
        self.norm_out = block_norm(finest, zq_ch, add_conv)
        self.conv_out = self._make_conv()(finest, out_ch, kernel_size=3, stride=1, padding=1)

    def _make_attn(self) -> Factory:
        """Return the attention's factory, ``(channels, attn_type=...) -> module``. With ``zq_ch``
        it also gets ``zq_ch`` and ``add_conv``, and the module ``zq``, as blocks do."""
        return make_attn

    def _make_resblock(self) -> Factory:
        """Return that of blocks: ``(in_channels=, out_channels=, temb_channels=0, dropout=)``. A
        block is called with a tensor, and None in place of a timestep embedding."""
        return ResnetBlock

    def _make_conv(self) -> Factory:
        """Return the factory of ``conv_out``: ``(in, out, kernel_size=3, stride=1, padding=1)``."""
        return Conv2d

    def forward(self, z: Tensor, zq: Tensor | None = None) -> Tensor:
        """(B, z_channels, h, w) -> (B, out_ch, s * h, s * w), about [-1, 1], not clamped. With
        ``zq_ch`` it needs zq (B, zq_ch, h', w'), which is resized to the input of each norm."""
        check_input(z, self.conv_in, "z")
        norm = self.norm_out
        if zq is not None and isinstance(norm, SpatialNorm):
            check_input(zq, norm.conv_y if norm.conv is None else norm.conv, "zq")
            if z.shape[:1] != zq.shape[:1]:
                raise ValueError(f"z has {len(z)} images and zq {len(zq)}: pass one zq for each")
        context = () if zq is None else (zq,)
        h: Tensor = self.up(self.mid(self.conv_in(z), None, *context), *context)
        if self.give_pre_end:
            return h
        h = self.conv_out(silu(normalized(norm, h, zq)))
        return h.tanh() if self.tanh_out else h


class MOVQDecoder(Decoder):
    """``Decoder`` with every norm scaled and shifted by the quantized latent ``zq``, as in
    SBER-MoVQGAN and Kandinsky 2. ``z`` is usually ``post_quant_conv(zq)``. Source: MoVQ,
    arXiv:2209.09002, as CogVideo's ``movq_modules.MOVQDecoder``."""

    @takes(as_well_as=Decoder)
    def __init__(self, *, z_channels: int, zq_ch: int | None = None, **arguments: Any) -> None:
        zq_ch = z_channels if zq_ch is None else zq_ch
        super().__init__(z_channels=z_channels, zq_ch=zq_ch, **arguments)


class UNet(Network2D):
    """Predicts noise, or a cleaner image, of the same size, from an image at a known noise level.

    Every activation on the way to the coarsest level is concatenated to the input of one block on
    the way back. Arguments (see ``Pyramid2D``) and keys are as published; the middle has attention.
    ``use_timestep=False`` ignores ``t``; blocks keep the ``temb_proj`` of published weights unused.
    Source: arXiv:2006.11239; ``Model`` of CogVideo's ``sgm.modules.diffusionmodules.model``.
    """

    @takes(as_well_as=Pyramid2D)
    def __init__(
        self, *, out_ch: int, in_channels: int, use_timestep: bool = True, **shape: Any
    ) -> None:
        pyramid = Pyramid2D(**shape)
        super().__init__(pyramid)
        hidden = 4 * pyramid.ch
        self.temb: Any = None
        if use_timestep:
            dense = [nn.Linear(pyramid.ch, hidden), nn.Linear(hidden, hidden)]
            self.temb = nn.ModuleDict({"dense": nn.ModuleList(dense)})
        attn = pyramid.attention()
        block = partial(ResnetBlock, dropout=pyramid.dropout, temb_channels=hidden)
        self.conv_in = Conv2d(in_channels, pyramid.ch, kernel_size=3, padding=1)
        widths = pyramid.widths
        self.down = Levels("down", pyramid, block, attn, Downsample)
        self.mid = MidBlocks(widths[-1], block, attn)
        # Of the results of conv_in, blocks and downsamplers; the last level has no downsampler.
        kept = [pyramid.ch, *(one for one in widths for _ in range(pyramid.num_res_blocks + 1))]
        self.up = Levels("up", pyramid, block, attn, Upsample, skips=kept[:-1])
        self.norm_out = group_norm(widths[0])
        self.conv_out = Conv2d(widths[0], out_ch, kernel_size=3, padding=1)

    def forward(self, x: Tensor, t: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in the dtype of the weights -> (B, out_ch, H, W). ``t`` (B,), or (1,) for
        all, are timesteps. ``context``, an aligned image of (B, in_channels - C, H, W), is appended
        to the channels of ``x``."""
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

    def _joined(self, x: Tensor, context: Tensor | None) -> Tensor:
        name = "x"
        if context is not None:
            if context.shape[:1] + context.shape[2:] != x.shape[:1] + x.shape[2:]:
                shapes = f"{tuple(context.shape)}, but joins the channels of x {tuple(x.shape)}"
                raise ValueError(f"context has shape {shapes}: pass the same B, H and W")
            name, x = "x with context", torch.cat([x, context], dim=1)
        check_input(x, self.conv_in, name)
        height, width = x.shape[2:]
        if height % self.spatial_stride or width % self.spatial_stride:
            found = f"images of {height}x{width} do not halve evenly down to the coarsest level"
            raise ValueError(f"{found}: pad or crop to multiples of {self.spatial_stride}")
        return x

    def _embed(self, x: Tensor, t: Tensor | None) -> Tensor | None:
        """(B,) or (1,) -> (B or 1, 4 * ch), in the dtype of the weights."""
        if self.temb is None:
            return None
        if t is None or t.shape not in {(x.shape[0],), (1,)}:
            raise ValueError(
                f"t is {None if t is None else tuple(t.shape)}, but this network needs one "
                f"timestep for each image ({x.shape[0]},) or all (1,): pass t or use_timestep=False"
            )
        first, second = self.temb["dense"]
        # The angles of late timesteps need float32: bfloat16 has no odd numbers above 256.
        embedding = get_timestep_embedding(t, first.in_features).to(first.weight.dtype)
        return second(silu(first(embedding)))


def get_timestep_embedding(timesteps: Tensor, embedding_dim: int) -> Tensor:
    """(B,) of any real dtype -> (B, embedding_dim) float32 in [-1, 1]: sines, then cosines.

    There are ``n = embedding_dim // 2`` angles, ``t * 10000 ** (-i / (n - 1))``; an odd dim ends in
    a zero. Whole timesteps are exact up to 2**24, as in float32. Source: tensor2tensor, as in
    arXiv:2006.11239; arguments as in CogVideo's ``sgm.modules.diffusionmodules.model``.
    """
    if timesteps.ndim != 1:
        raise ValueError(f"timesteps have shape {tuple(timesteps.shape)}, not one: pass (B,)")
    half = embedding_dim // 2
    if half < 2:
        raise ValueError(f"{embedding_dim=} leaves room for {half} period(s): use 4 or more")
    # On the CPU, so that the periods are the same bits on every device.
    steps = torch.arange(half, dtype=torch.float32, device="cpu")
    rates = torch.exp(steps * -(math.log(10000) / (half - 1))).to(timesteps.device)
    angles = timesteps.float()[:, None] * rates
    embedding = torch.cat([angles.sin(), angles.cos()], dim=1)
    return F.pad(embedding, (0, embedding_dim % 2))
