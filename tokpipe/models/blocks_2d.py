"""The blocks of the 2D encoders and decoders. Attribute names are state_dict keys: an interface.

Shape letters: B images, C channels, H rows, W columns. ``zq`` is the quantized latent
(B, C_zq, h, w) that the norms of a MoVQ decoder read, and None elsewhere. Source: CogVideo's
``vqvae_blocks`` and ``movq_modules``, whose classes of the same name are merged here.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Size, Tensor, nn

from tokpipe.models.activation import silu
from tokpipe.models.attention import attention
from tokpipe.models.convolution import Conv2d
from tokpipe.models.group_norm import GroupNorm, group_norm

ADD_CONV_WITHOUT_ZQ = (
    "add_conv=True without zq_ch: the convolution applies to the latent, which this norm does "
    "not read. Pass zq_ch, or leave add_conv out"
)
ZQ_MISSING = "this block was built with zq_ch, so its norms need the latent: pass zq"


class SpatialNorm(nn.Module):
    """A norm whose scale and shift at each position come from the quantized latent ``zq``.

    ``norm_layer(f) * conv_y(zq) + conv_b(zq)``, with ``zq`` resized to ``f`` by repetition.
    ``add_conv`` adds a 3x3 convolution of the resized ``zq``. ``norm_layer`` is called with
    ``num_channels`` and ``norm_layer_params``; ``freeze_norm_layer`` keeps its parameters out of
    training. Source: MoVQ, arXiv:2209.09002; arguments and keys as in CogVideo.
    """

    def __init__(
        self,
        f_channels: int,
        zq_channels: int,
        norm_layer: Callable[..., nn.Module] = GroupNorm,
        freeze_norm_layer: bool = False,
        add_conv: bool = False,
        **norm_layer_params: Any,
    ) -> None:
        super().__init__()
        self.norm_layer = norm_layer(num_channels=f_channels, **norm_layer_params)
        self.norm_layer.requires_grad_(not freeze_norm_layer)
        self.conv = Conv2d(zq_channels, zq_channels, 3, padding=1) if add_conv else None
        self.conv_y = Conv2d(zq_channels, f_channels, 1)
        self.conv_b = Conv2d(zq_channels, f_channels, 1)

    def forward(self, f: Tensor, zq: Tensor) -> Tensor:
        """f (B, C_f, H, W), zq (B, C_zq, h, w) -> (B, C_f, H, W)."""
        size = f.shape[2:]
        if self.conv is not None:
            zq = self.conv(_resized(zq, size))
        # Otherwise no position of zq depends on another: scale and shift are computed before the
        # resize, on a fraction of the positions.
        scale = _resized(self.conv_y(zq), size)
        shift = _resized(self.conv_b(zq), size)
        y: Tensor = self.norm_layer(f) * scale + shift
        return y


def _resized(x: Tensor, size: Size) -> Tensor:
    return x if x.shape[2:] == size else F.interpolate(x, size)


def block_norm(channels: int, zq_ch: int | None, add_conv: bool) -> GroupNorm | SpatialNorm:
    """A plain norm over 32 groups of channels, or with ``zq_ch`` one that reads the latent."""
    if zq_ch is not None:
        return SpatialNorm(channels, zq_ch, add_conv=add_conv, num_groups=32, eps=1e-6)
    if add_conv:
        raise ValueError(ADD_CONV_WITHOUT_ZQ)
    return group_norm(channels)


def normalized(norm: GroupNorm | SpatialNorm, x: Tensor, zq: Tensor | None) -> Tensor:
    """Apply either kind of ``block_norm``."""
    if isinstance(norm, SpatialNorm) != (zq is not None):
        raise ValueError(
            ZQ_MISSING
            if zq is None
            else "this block was built without zq_ch, so its norms cannot use zq: leave it out"
        )
    y: Tensor = norm(x) if zq is None else norm(x, zq)
    return y


def with_embedding(h: Tensor, temb: Tensor | None, temb_proj: nn.Linear | None) -> Tensor:
    """Add ``temb`` (B, temb_channels), if there is one, to every position of ``h`` (B, C, ...)."""
    if temb is None:
        return h
    if temb_proj is None:
        raise ValueError(
            "this block was built with temb_channels=0 and cannot use an embedding: leave temb out"
        )
    projected: Tensor = temb_proj(silu(temb))
    return h + projected.view(projected.shape + (1,) * (h.ndim - 2))


class ResnetBlock(nn.Module):
    """Two rounds of norm, SiLU and 3x3 convolution, added to the input.

    Where the number of channels changes, the input passes through a 1x1 convolution, or a 3x3 one
    (``conv_shortcut``). ``temb_channels`` is the width of an embedding, such as that of a
    timestep, which is added between the rounds, 0 for none. With ``zq_ch`` the norms read the
    latent.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int | None = None,
        conv_shortcut: bool = False,
        dropout: float,
        temb_channels: int = 512,
        zq_ch: int | None = None,
        add_conv: bool = False,
    ) -> None:
        super().__init__()
        out_channels = in_channels if out_channels is None else out_channels
        self.norm1 = block_norm(in_channels, zq_ch, add_conv)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.temb_proj = nn.Linear(temb_channels, out_channels) if temb_channels > 0 else None
        self.norm2 = block_norm(out_channels, zq_ch, add_conv)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1)
        # Two keys, which say what kind of convolution the weights are for.
        self.conv_shortcut: Conv2d | None = None
        self.nin_shortcut: Conv2d | None = None
        if in_channels != out_channels:
            if conv_shortcut:
                self.conv_shortcut = Conv2d(in_channels, out_channels, 3, padding=1)
            else:
                self.nin_shortcut = Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, temb: Tensor | None = None, zq: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W), with temb (B, temb_channels) -> (B, C_out, H, W).

        Raises:
            ValueError: ``temb`` for a block without ``temb_channels``, or a ``zq`` that is missing
                with ``zq_ch``, or present without it.
        """
        h = self.conv1(silu(normalized(self.norm1, x, zq)))
        h = with_embedding(h, temb, self.temb_proj)
        h = self.conv2(self.dropout(silu(normalized(self.norm2, h, zq))))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        elif self.nin_shortcut is not None:
            x = self.nin_shortcut(x)
        y: Tensor = x + h
        return y


class AttnBlock(nn.Module):
    """Single-head attention among the positions of an image, added to the input.

    With ``zq_ch`` the norm before it reads the latent. The products of queries and keys are only
    formed with their scale of C^-0.5, so they overflow float16 later than unscaled ones.
    """

    def __init__(self, in_channels: int, zq_ch: int | None = None, add_conv: bool = False) -> None:
        super().__init__()
        self.norm = block_norm(in_channels, zq_ch, add_conv)
        self.q = Conv2d(in_channels, in_channels, 1)
        self.k = Conv2d(in_channels, in_channels, 1)
        self.v = Conv2d(in_channels, in_channels, 1)
        self.proj_out = Conv2d(in_channels, in_channels, 1)

    def forward(self, x: Tensor, zq: Tensor | None = None) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        h = normalized(self.norm, x, zq)
        q, k, v = (conv(h).flatten(2).mT for conv in (self.q, self.k, self.v))
        y: Tensor = self.proj_out(self.attend(q, k, v).mT.reshape(x.shape))
        return x + y

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H * W, C) each -> the same shape: for each position, the mean of ``v`` weighted
        by similarity."""
        # With a dimension for one head, since PyTorch's fused kernels only take four dimensions.
        q, k, v = (x.unsqueeze(1) for x in (q, k, v))
        return attention(q, k, v).squeeze(1)


class Downsample(nn.Module):
    """Halves rows and columns, rounding down.

    By a strided 3x3 convolution padded right and below, or by averaging (``with_conv=False``).
    """

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, in_channels, 3, stride=2) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // 2, W // 2)."""
        if self.conv is None:
            return F.avg_pool2d(x, 2)
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)))
        return y


class Upsample(nn.Module):
    """Doubles rows and columns by repetition; then, ``with_conv``, a 3x3 convolution."""

    def __init__(self, in_channels: int, with_conv: bool) -> None:
        super().__init__()
        self.conv = Conv2d(in_channels, in_channels, 3, padding=1) if with_conv else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W)."""
        x = F.interpolate(x, scale_factor=2.0)
        if self.conv is not None:
            x = self.conv(x)
        return x
