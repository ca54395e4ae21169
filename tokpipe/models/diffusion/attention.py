"""Kinds of attention among the positions of an image, chosen by name.

Shape letters: B images, C channels, H rows, W columns, N = H * W positions.
"""

from typing import Literal

from torch import Tensor, nn

from tokpipe.models.blocks import AttnBlock
from tokpipe.models.operations import Conv2d

AttnType = Literal["vanilla", "vanilla-xformers", "linear", "none"]


def make_attn(
    in_channels: int,
    attn_type: str = "vanilla",
    *,
    zq_ch: int | None = None,
    add_conv: bool = False,
) -> nn.Module:
    """Return the attention named ``attn_type``, (B, in_channels, H, W) -> the same shape.

    - ``vanilla``: ``AttnBlock``, softmax over all positions.
    - ``vanilla-xformers``: the same. PyTorch's kernels need as little memory as those of xformers.
    - ``linear``: one head of ``LinearAttention``, which has neither norm nor residual.
    - ``none``: the input, unchanged.

    With ``zq_ch``, ``vanilla`` has a norm that reads a latent, as in ``AttnBlock``.

    Raises:
        ValueError: ``zq_ch`` with another kind, or any other name, such as
            ``memory-efficient-cross-attn``, for which published code mistakenly returns linear
            attention.
    """
    if attn_type in ("vanilla", "vanilla-xformers"):
        return AttnBlock(in_channels, zq_ch, add_conv)
    if zq_ch is not None:
        raise ValueError(
            f"attn_type={attn_type!r} has no norm that reads the latent of {zq_ch=}: use 'vanilla'"
        )
    if attn_type == "linear":
        return LinearAttention(in_channels, heads=1, dim_head=in_channels)
    if attn_type == "none":
        return nn.Identity()
    remedy = "use 'vanilla', 'vanilla-xformers', 'linear' or 'none'"
    if attn_type == "memory-efficient-cross-attn":
        remedy = (
            "published code returns linear attention for this name. For weights trained with it "
            "(keys to_qkv and to_out) use 'linear', for attention among all positions 'vanilla'"
        )
    raise ValueError(f"attn_type={attn_type!r}: {remedy}")


class LinearAttention(nn.Module):
    """Attention whose cost grows with N instead of its square.

    Keys are normalized over the positions and weight the values into one (dim_head, dim_head)
    matrix per head, which every query reads. There is no norm, scale or residual, so magnitudes
    and rounding errors grow with each layer: after five, float32 was accurate to 2e-4, here and in
    the published code. ``to_qkv`` has no bias.
    Source: Efficient Attention, arXiv:1812.01243, without the normalization of queries;
    arguments and keys as in CogVideo's ``sgm.modules.attention.LinearAttention``.
    """

    def __init__(self, dim: int, heads: int = 4, dim_head: int = 32) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = Conv2d(dim, 3 * heads * dim_head, 1, bias=False)
        self.to_out = Conv2d(heads * dim_head, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim, H, W) -> the same shape."""
        qkv = self.to_qkv(x).flatten(2).unflatten(1, (3, self.heads, -1))
        q, k, v = qkv.unbind(1)  # each (B, heads, dim_head, N)
        context = v @ k.softmax(dim=-1).transpose(-1, -2)  # values x keys
        h = (context @ q).flatten(1, 2).unflatten(-1, x.shape[2:])
        y: Tensor = self.to_out(h)
        return y
