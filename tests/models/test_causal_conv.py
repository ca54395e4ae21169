from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.models.checks import changed_frames
from tokpipe.models.causal_conv import CausalConv3d, PadMode
from tokpipe.models.operations import Conv2d, conv3d, silu


@pytest.mark.parametrize("mode", ["first", "constant"])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (2, 1), (1, 2), (3, 1)])
def test_outputs_are_causal(mode: PadMode, stride: int, dilation: int) -> None:
    conv = CausalConv3d(3, 4, 3, mode, stride=stride, dilation=dilation)
    clip = torch.randn(1, 3, 9, 8, 8)
    with torch.no_grad():
        for frame in range(1, 9):
            assert changed_frames(conv, clip, frame) == list(range(frame // stride, 9 // stride))


def test_with_reflect_zeros_precede_too_few_mirrored_frames() -> None:
    conv = CausalConv3d(2, 3, (3, 1, 1), "reflect")
    for frames in (1, 2, 3):
        x = torch.randn(1, 2, frames, 4, 4)
        zero = torch.zeros(1, 2, 1, 4, 4)
        past = {1: [zero, zero], 2: [zero, x[:, :, 1:2]], 3: [x[:, :, 2:3], x[:, :, 1:2]]}
        wanted = F.conv3d(torch.cat([*past[frames], x], 2), conv.conv.weight, conv.conv.bias)
        with torch.no_grad():
            torch.testing.assert_close(conv(x), wanted)


@pytest.mark.parametrize("mode", ["first", "constant", "reflect"])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [3, (3, 1, 1), (3, 3, 5)])
def test_strides_divide_the_frames(mode: PadMode, frames: int, stride: int, kernel: Any) -> None:
    conv, clip = CausalConv3d(2, 3, kernel, mode, stride=stride), torch.zeros(1, 2, frames, 6, 7)
    with torch.no_grad():
        if frames < stride:
            with pytest.raises(ValueError, match=f"{frames} frames .* stride {stride}"):
                conv(clip)
        else:
            assert conv(clip).shape == (1, 3, frames // stride, 6, 7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_conv3d_agrees_with_pytorch(dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(2, 4, 5, 9, 8), torch.randn(6, 4, 3, 3, 3), torch.randn(6)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    steps: dict[str, Any] = {"stride": (1, 2, 2), "padding": (0, 1, 1)}
    wanted = F.conv3d(x.double(), weight.double(), bias.double(), **steps)
    found = conv3d(x, weight, bias, **steps)
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted.to(dtype), atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"padding": 1}, {"dilation": 2}])
def test_conv2d_agrees_with_pytorch(options: dict[str, Any]) -> None:
    conv, x = Conv2d(3, 5, 3, **options), torch.randn(2, 3, 9, 8)
    wanted = F.conv2d(x, conv.weight, conv.bias, **options)
    torch.testing.assert_close(conv(x), wanted)
    assert conv(x).is_contiguous(memory_format=torch.channels_last)


def test_conv3d_passes_gradients() -> None:
    x, weight = torch.randn(1, 2, 3, 4, 4), torch.randn(3, 2, 3, 3, 3, requires_grad=True)
    conv3d(x, weight, None, padding=(0, 1, 1)).square().sum().backward()
    found, weight.grad = weight.grad, None
    F.conv3d(x, weight, None, padding=(0, 1, 1)).square().sum().backward()
    torch.testing.assert_close(found, weight.grad, atol=1e-4, rtol=1e-4)


def test_conv3d_follows_autocast_and_leaves_float64_alone() -> None:
    x, weight, bias = torch.randn(1, 2, 3, 4, 4), torch.randn(3, 2, 3, 3, 3), torch.randn(3)
    narrow = conv3d(x.bfloat16(), weight.bfloat16(), bias.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(conv3d(x, weight, bias), narrow)
        assert conv3d(x.double(), weight.double(), bias.double()).dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_silu_agrees_with_pytorch_on_any_number_of_threads(dtype: torch.dtype) -> None:
    x = torch.randn(32, 33, 331, requires_grad=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = silu(x.to(dtype))
        torch.testing.assert_close(alone, F.silu(x.to(dtype)))
        gradients = (torch.autograd.grad(y.sum(), x)[0] for y in (alone, F.silu(x)))
        torch.testing.assert_close(*gradients, atol=1e-2, rtol=1e-2)
        for threads in (2, 3, 5, 7):
            torch.set_num_threads(threads)
            assert torch.equal(silu(x.to(dtype)), alone)
    finally:
        torch.set_num_threads(before)
    assert silu(torch.zeros(2, 0, 3)).shape == (2, 0, 3)
