from copy import deepcopy
from functools import partial

import pytest
import torch
from torch import nn

from tests.models.networks import small
from tokpipe.models.autoencoder_3d import Encoder3D
from tokpipe.models.blocks import DownSample3D
from tokpipe.models.group_norm import Norm

small_encoder = partial(small, Encoder3D)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_every_length_gives_the_published_latents_or_says_what_fits(stride: int) -> None:
    """The published pooling keeps frame 0 and halves the rest, rounding down, level by level.
    Rows and columns beyond a multiple of the stride get no latent."""
    encoder = small_encoder(temporal_compress_times=stride)
    for frames in range(1, 11):
        clip = torch.zeros(1, 3, frames, 9, 14)
        if 1 < frames <= stride:
            with pytest.raises(
                ValueError, match=rf"^{frames} frames .* 1 frame plus .* of {stride}$"
            ):
                encoder(clip)
        else:
            assert encoder(clip).shape == (1, 4, 1 + (frames - 1) // stride, 2, 3)


def test_a_clip_that_is_not_finite_does_not_affect_the_others() -> None:
    encoder, clips = small_encoder(), torch.rand(2, 3, 5, 8, 8)
    broken = clips.clone()
    broken[0, 0, 0, 0, 0] = torch.nan
    with torch.no_grad():
        before, after = encoder(clips), encoder(broken)
    assert torch.equal(before[1], after[1])
    assert after[0].isnan().any()


def test_downsampling_by_averaging_has_no_weights() -> None:
    encoder = small_encoder(resamp_with_conv=False)
    assert not [key for key in encoder.state_dict() if "downsample" in key]
    x = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).view(1, 2, 3, 4, 4)
    space = DownSample3D(2, with_conv=False, compress_time=False)(x)
    torch.testing.assert_close(space, nn.functional.avg_pool3d(x, (1, 2, 2)))
    both = DownSample3D(2, with_conv=False, compress_time=True)(x)
    torch.testing.assert_close(both[:, :, 0], space[:, :, 0])
    torch.testing.assert_close(both[:, :, 1], (space[:, :, 1] + space[:, :, 2]) / 2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", ["clip", "frame"])
def test_narrow_branches_alone_are_more_accurate(norm: Norm, dtype: torch.dtype) -> None:
    encoder = small_encoder(attn_resolutions=(8,), norm=norm)
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.inference_mode():
        wide = encoder(clip)
        all_narrow = deepcopy(encoder).to(dtype)(clip.to(dtype)).float()
    encoder.compute_in(dtype)
    with torch.inference_mode():
        mixed = encoder(clip)
    narrow = {key for key, value in encoder.state_dict().items() if value.dtype == dtype}
    branches = (".conv1.", ".conv2.", ".q.", ".k.", ".v.", ".proj_out.")
    assert narrow == {key for key in encoder.state_dict() if any(b in key for b in branches)}
    assert mixed.dtype == torch.float32
    assert (mixed - wide).norm() < 0.85 * (all_narrow - wide).norm()
    encoder.requires_grad_(True)
    with_gradients = encoder(clip)  # by PyTorch's own norms
    assert (with_gradients - mixed).norm() < 0.02 * wide.norm()


def test_narrow_branches_stream_to_the_same_bits() -> None:
    encoder, clip = small_encoder(norm="frame"), torch.rand(2, 3, 13, 16, 16) * 2 - 1
    encoder.compute_in(torch.bfloat16)
    with torch.inference_mode():
        whole = encoder(clip)
        first, state = encoder.stream(clip[:, :, :5], None)
        second, _ = encoder.stream(clip[:, :, 5:], state)
    assert torch.equal(torch.cat([first, second], dim=2), whole)


@pytest.mark.parametrize("size", [(3, 8), (8, 3), (1, 1)])
def test_frames_smaller_than_one_latent_are_rejected(size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=rf"frames of {size[0]}x{size[1]} .* covers 4x4"):
        small_encoder()(torch.zeros(1, 3, 1, *size))
