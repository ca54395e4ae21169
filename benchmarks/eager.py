"""The encoder as its published code computes it: one plain operation after the other.

The baseline of the encoder benchmark. It reads the parameters of an ``Encoder3D`` and shares no
computation with it: past frames are concatenated, all padding is made before the convolution, SiLU
is a sigmoid and a product, pooling in time goes by ``avg_pool3d``, and tensors are contiguous.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.autoencoder_3d import Encoder3D
from tokpipe.models.blocks import DownSample3D, ResnetBlock3D
from tokpipe.models.causal_conv import CausalConv3d
from tokpipe.models.group_norm import FrameGroupNorm, GroupNorm
from tokpipe.models.levels import Level


def encode_eagerly(encoder: Encoder3D, x: Tensor) -> Tensor:
    """The result of ``encoder(x)``, for an encoder without attention, with ``pad_mode="first"``."""
    h = _causal_conv(encoder.conv_in, x)
    for level in encoder.down:
        assert isinstance(level, Level)
        for block in level.block:
            assert isinstance(block, ResnetBlock3D)
            h = _resnet_block(block, h)
        if isinstance(level.downsample, DownSample3D):
            h = _downsample(level.downsample, h)
    for block in (encoder.mid.block_1, encoder.mid.block_2):
        assert isinstance(block, ResnetBlock3D)
        h = _resnet_block(block, h)
    return _causal_conv(encoder.conv_out, _swish(_norm(encoder.norm_out, h)))


def _swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _norm(norm: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(norm, GroupNorm)
    parameters = (norm.num_groups, norm.weight, norm.bias, norm.eps)
    if not isinstance(norm, FrameGroupNorm):
        return F.group_norm(x, *parameters)
    frames = F.group_norm(x.transpose(1, 2).flatten(0, 1), *parameters)
    return frames.view(len(x), -1, *frames.shape[1:]).transpose(1, 2)


def _causal_conv(layer: CausalConv3d, x: Tensor) -> Tensor:
    _, rows, columns = (int(size) for size in layer.conv.padding)
    first = torch.cat([x[:, :, :1]] * layer.past_frames, dim=2)
    x = F.pad(torch.cat([first, x], dim=2), (columns, columns, rows, rows, 0, 0))
    return F.conv3d(x, layer.conv.weight.contiguous(), layer.conv.bias)


def _resnet_block(block: ResnetBlock3D, x: Tensor) -> Tensor:
    h = _causal_conv(block.conv1, _swish(_norm(block.norm1, x)))
    h = _causal_conv(block.conv2, _swish(_norm(block.norm2, h)))
    if block.nin_shortcut is not None:
        x = F.conv3d(x, block.nin_shortcut.weight.contiguous(), block.nin_shortcut.bias)
    return x + h


def _downsample(layer: DownSample3D, x: Tensor) -> Tensor:
    if layer.compress_time and x.shape[2] > 1:
        pairs = F.avg_pool3d(x[:, :, 1:], (2, 1, 1), (2, 1, 1))
        x = torch.cat([x[:, :, :1], pairs], dim=2)
    assert layer.conv is not None
    frames = F.pad(x, (0, 1, 0, 1)).transpose(1, 2).flatten(0, 1)
    y = F.conv2d(frames, layer.conv.weight.contiguous(), layer.conv.bias, stride=2)
    return y.view(len(x), -1, *y.shape[1:]).transpose(1, 2)
