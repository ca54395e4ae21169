"""Convolution, SiLU and attention, of which no bit depends on other clips, or threads of a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.process import is_autocast
from tokpipe.models.rows import GRAIN_ELEMENTS

VECTOR_ELEMENTS = 32
"""Elements per step of PyTorch's kernels on a CPU: two AVX-512 vectors of float32."""

QUERY_BLOCK = 32  # Up to this many queries, PyTorch's kernel for CPUs is one task


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...] = (1, 1, 1),
    padding: tuple[int, ...] = (0, 0, 0),
    dilation: tuple[int, ...] = (1, 1, 1),
    groups: int = 1,
) -> Tensor:
    """``F.conv3d``, but on CPUs always by oneDNN.

    PyTorch chooses between oneDNN and its own kernel by batch size, input size and number of
    threads, and the two round differently: latents changed by up to 6e-6, which now and then flips
    a code. oneDNN's results had the same bits for every batch size and thread count tried, if the
    memory layout is always the same: channels-last, which group norm and bfloat16 kernels prefer.
    """
    by_onednn = x.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if not by_onednn or x.dtype == torch.float64:  # which oneDNN lacks
        return F.conv3d(x, weight, bias, stride, padding, dilation, groups)
    if torch.is_autocast_enabled("cpu"):  # which does not know mkldnn_convolution
        x, weight, bias = _converted(torch.get_autocast_dtype("cpu"), x, weight, bias)
    dtype = x.dtype
    # oneDNN takes bfloat16 with AVX-512, or AVX2 with conversions.
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16 or (dtype == torch.bfloat16 and not has_bfloat16):
        # The same sums, rounded once at the end. PyTorch's kernel takes 130 times as long.
        x, weight, bias = _converted(torch.float32, x, weight, bias)
    x, weight = _channels_last(x), _channels_last(weight)
    return torch.mkldnn_convolution(x, weight, bias, padding, stride, dilation, groups).to(dtype)


def _channels_last(x: Tensor) -> Tensor:
    """Channels innermost, with strides that only depend on the shape: oneDNN chooses its kernel by
    them, and PyTorch leaves those of dimensions of size one open."""
    _, channels, frames, height, width = x.shape
    row, frame = width * channels, height * width * channels
    strides = (frames * frame, 1, frame, row, channels)
    if x.stride() == strides:
        return x
    return x.contiguous(memory_format=torch.channels_last_3d).as_strided(x.shape, strides)


def _converted(
    dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def as_weights(layer: nn.Module, x: Tensor) -> Tensor:
    """``x`` in the dtype of a layer's weights, unless autocast converts it."""
    assert isinstance(layer.weight, Tensor)
    return x if is_autocast(x.device) else x.to(layer.weight.dtype)


def check_input(
    x: Tensor, conv: nn.Conv2d | nn.Conv3d, name: str = "x", *, smallest: int = 1
) -> None:
    """Raise ValueError for an input that a network's first convolution cannot take, or misreads.
    Only autocast converts floating point. There have to be ``smallest`` rows and columns."""
    dims, dtype = conv.weight.ndim, conv.weight.dtype
    fits = x.ndim == dims and x.shape[1] == conv.in_channels and x.numel()
    if fits and x.dtype != dtype:
        fits = x.is_floating_point() and is_autocast(x.device)
    if not fits:
        sizes = "H, W" if dims == 4 else "T, H, W"
        raise ValueError(
            f"{name} is {x.dtype} of {tuple(x.shape)}, but the network takes {dtype} of "
            f"(B, {conv.in_channels}, {sizes}), none of them 0: convert or reshape it"
        )
    if min(x.shape[-2:]) < smallest:
        found = "frames of {}x{} are smaller than one latent".format(*x.shape[-2:])
        raise ValueError(f"{found}, which covers {smallest}x{smallest}: use larger ones")


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` computed by ``conv3d``: zero padding."""

    def forward(self, x: Tensor, with_bias: bool = True) -> Tensor:
        """(B, C_in, T, H, W) -> (B, C_out, T', H', W')."""
        padding, bias = self.padding, self.bias if with_bias else None
        assert not isinstance(padding, str)
        return conv3d(x, self.weight, bias, self.stride, padding, self.dilation, self.groups)


class Conv2d(nn.Conv2d):
    """``nn.Conv2d`` of images or of every frame of clips, each alone: zero padding, one group.
    Clips run as a 3D convolution of depth 1, without a copy; on CPUs images do as well."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W'), or (B, C_in, T, H, W) -> (B, C_out, T, H', W')."""
        if x.ndim == 4 and x.device.type != "cpu":
            return super().forward(x)
        assert not isinstance(self.padding, str)
        frames, weight = x if x.ndim == 5 else x.unsqueeze(2), self.weight.unsqueeze(2)
        how = (1, *self.stride), (0, *self.padding), (1, *self.dilation)
        y = conv3d(frames, weight, self.bias, *how)
        return y if x.ndim == 5 else y.squeeze(2)


def same_conv2d(in_channels: int, out_channels: int, kernel: int, bias: bool = True) -> Conv2d:
    """A ``Conv2d`` whose result has the size of its input."""
    return Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)


def silu(x: Tensor) -> Tensor:
    """``F.silu``. On a CPU the elements after the last whole vector of each thread go through
    another exponential function, which rounds differently: here every thread has whole vectors."""
    if x.device.type == "cpu":
        count = x.numel()
        threads = min(torch.get_num_threads(), -(-count // GRAIN_ELEMENTS))
        if threads and (missing := -count % (threads * VECTOR_ELEMENTS)):
            # In memory order, which for channels-last tensors is not index order.
            last = x.movedim(1, -1) if x.ndim > 1 else x
            dense = last if last.is_contiguous() else x
            y = F.silu(F.pad(dense.flatten(), (0, missing)))[:count].view(dense.shape)
            return y if dense is x else y.movedim(-1, 1)
    return F.silu(x)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``F.scaled_dot_product_attention``: (B, heads, N, C) each -> the same shape, scale C^-0.5.

    On CPUs the fused kernel's rounding of a head depends on that head alone, but it is only used if
    channels are innermost, and its single tasks split products among all threads, whose number then
    decides the rounding. So the input is made contiguous, and a single task run twice at once: no
    bit changed, with 24 counts from 1 to 600, 5 widths, 3 dtypes, 4 batches, 1 to 3 threads.
    """
    if q.device.type != "cpu":
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (x.contiguous() for x in (q, k, v))
    if q.shape[0] * q.shape[1] == 1 and q.shape[2] <= QUERY_BLOCK:
        q, k, v = (x.expand(2, -1, -1, -1) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v)[:1]
    return F.scaled_dot_product_attention(q, k, v)
