"""Norm and SiLU in one pass: PyTorch's values, with the same bits on any number of threads."""

import pytest
import torch
import torch.nn.functional as F

from tests.models.checks import assert_same_bits
from tokpipe.models.group_norm import FrameGroupNorm, GroupNorm
from tokpipe.models.rows import norm_rows

Shape = tuple[int, ...]
SHAPES = [(1, 32, 1, 1, 1), (2, 64, 5, 7, 9), (1, 96, 3, 33, 31), (1, 32, 17, 64, 64)]


def filled(norm: GroupNorm) -> GroupNorm:
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    torch.nn.init.uniform_(norm.bias, -1, 1)
    return norm


@pytest.mark.parametrize("kind", [GroupNorm, FrameGroupNorm])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_values_agree_with_pytorch(kind: type[GroupNorm], shape: Shape, dtype: torch.dtype) -> None:
    norm = filled(kind(32, shape[1], eps=1e-6)).to(dtype)
    x = (torch.randn(shape) * 3 + 40).to(dtype)  # far from zero, where sums of squares cancel
    wanted = norm.double()(x.double())
    norm.to(dtype)
    tolerance = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 3e-2}[dtype]
    with torch.inference_mode():
        y = norm(x)
        activated = torch.empty_like(x, memory_format=torch.channels_last_3d)
        norm.write(x, activated, with_silu=True)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), wanted, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(activated.double(), F.silu(wanted), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [GroupNorm, FrameGroupNorm])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_bit_depends_on_threads_or_neighbours(kind: type[GroupNorm], shape: Shape) -> None:
    norm, x = filled(kind(32, shape[1], eps=1e-6)), torch.randn(3, *shape[1:])

    def run(batch: list[int]) -> torch.Tensor:
        y = torch.empty((len(batch), *shape[1:]), memory_format=torch.channels_last_3d)
        norm.write(x[batch], y, with_silu=True)
        return y

    assert_same_bits(run, ([0], [0, 1], [2, 0, 1]), threads=(1, 2, 3, 5))
    if kind is FrameGroupNorm:
        with torch.no_grad():
            together, alone = norm(x), norm(x[1:2, :, -1:])
        assert torch.equal(together[1:2, :, -1:], alone)


def test_samples_of_the_target_need_not_be_adjacent() -> None:
    x = torch.randn(2, 3, 4, 5, 32)
    whole, wide = torch.empty_like(x), torch.zeros(2, 5, 4, 5, 32)
    norm = torch.nn.GroupNorm(32, 32, 1e-6).requires_grad_(False)
    for out in (whole, wide[:, 2:]):
        norm_rows(x, out, norm, sample_dims=2, with_silu=True)
    assert torch.equal(wide[:, 2:], whole)
    assert not wide[:, :2].any()
