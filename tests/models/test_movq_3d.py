from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.models import golden_fixtures as golden
from tests.models.networks import small
from tokpipe.models.autoencoder_3d import MOVQDecoder3D
from tokpipe.models.blocks import AttnBlock2D, ResnetBlock3D, Upsample3D
from tokpipe.models.causal_conv import PadMode
from tokpipe.models.group_norm import FrameGroupNorm, GroupNorm, Norm, group_norm
from tokpipe.models.spatial_norm import SpatialNorm3D


def small_decoder(**changes: Any) -> MOVQDecoder3D:
    """Three levels, r = 4, s = 4; the same weights every time."""
    decoder: MOVQDecoder3D = small(MOVQDecoder3D, **changes).requires_grad_(False)
    golden.fill(decoder)
    return decoder


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_the_first_latent_gives_one_frame_and_each_later_one_a_stride(stride: int) -> None:
    decoder = small_decoder(temporal_compress_times=stride)
    for latents in range(1, 5):
        frames = decoder(torch.zeros(2, 4, latents, 3, 1))
        assert frames.shape == (2, 3, 1 + stride * (latents - 1), 12, 4)


def test_time_is_doubled_at_the_coarsest_levels() -> None:
    decoder = small_decoder(temporal_compress_times=2)
    doubles = [layer.compress_time for layer in decoder.modules() if isinstance(layer, Upsample3D)]
    assert doubles == [False, True]  # from the finest level, which has none, to the coarsest


def test_give_pre_end_returns_the_input_of_the_last_norm() -> None:
    z = torch.rand(1, 4, 2, 2, 2)
    whole, features = small_decoder(), small_decoder(give_pre_end=True)(z)
    assert features.shape == (1, 32, 5, 8, 8)
    assert torch.equal(whole.conv_out(F.silu(whole.norm_out(features, z))), whole(z))


def test_a_post_quant_convolution_does_not_affect_the_latent_of_the_norms() -> None:
    decoder = small_decoder(z_channels=6, zq_ch=4, post_quant_conv=True)
    inner = small_decoder(z_channels=4)
    z = torch.rand(1, 4, 2, 2, 2)
    assert decoder(z).shape == inner(z).shape
    assert decoder.conv_in.conv.in_channels == 6
    assert isinstance(decoder.norm_out, SpatialNorm3D)
    assert decoder.norm_out.conv_y.conv.in_channels == 4
    nn.init.zeros_(decoder.post_quant_conv.conv.weight)  # type: ignore[union-attr]
    assert not torch.equal(decoder(z), decoder(-z))


def test_frame_norms_are_group_norms_of_each_frame() -> None:
    clips = torch.randn(2, 64, 3, 5, 7, requires_grad=True)
    ours, theirs = group_norm(64, "frame"), nn.GroupNorm(32, 64, eps=1e-6)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    golden.fill(ours)
    golden.fill(theirs)
    found = ours(clips)
    wanted = torch.stack([theirs(frame) for frame in clips.unbind(2)], dim=2)
    torch.testing.assert_close(found, wanted)
    weight = torch.randn_like(found)
    (gradient,) = torch.autograd.grad((found * weight).sum(), clips)
    (wanted_gradient,) = torch.autograd.grad((wanted * weight).sum(), clips)
    torch.testing.assert_close(gradient, wanted_gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("norm", ["clip", "frame"])
def test_a_group_of_a_single_value_becomes_the_bias_in_any_batch(norm: Norm) -> None:
    """``nn.GroupNorm`` raises for a batch of one here, and accepts a batch of two."""
    layer = group_norm(32, norm)
    golden.fill(layer)
    for batch in (1, 2):
        found = layer(torch.randn(batch, 32, 1, 1, 1))
        wanted = layer.bias.expand(batch, -1)
        torch.testing.assert_close(found.flatten(1), wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("mode", ["constant", "constant_published", "first"])
def test_the_convolutions_of_spatial_norms_have_a_pad_mode_of_their_own(mode: PadMode) -> None:
    """As published, where it is ``constant`` whatever the pad mode of the decoder."""
    more: dict[str, Any] = {} if mode == "constant" else {"add_conv_pad_mode": mode}
    shape: dict[str, Any] = {"in_channels": 32, "zq_ch": 4, "add_conv": True}
    decoder = small_decoder(add_conv=True, pad_mode="reflect", attn_resolutions=(32,), **more)
    for part in (
        decoder,
        AttnBlock2D(**shape, **more),
        ResnetBlock3D(**shape, dropout=0.0, pad_mode="reflect", **more),
    ):
        norms = [one for one in part.modules() if isinstance(one, SpatialNorm3D)]
        assert norms
        assert {one.conv.pad_mode for one in norms if one.conv is not None} == {mode}


def test_a_spatial_norm_accepts_any_norm_and_checks_its_arguments() -> None:
    frozen = SpatialNorm3D(64, 4, FrameGroupNorm, freeze_norm_layer=True, num_groups=16)
    assert not any(parameter.requires_grad for parameter in frozen.norm_layer.parameters())
    assert all(parameter.requires_grad for parameter in frozen.conv_y.parameters())
    plain = SpatialNorm3D(64, 4, num_groups=16, affine=False)
    assert isinstance(plain.norm_layer, GroupNorm)
    assert not list(plain.norm_layer.parameters())
    with pytest.raises(TypeError, match="momentum"):
        SpatialNorm3D(64, 4, num_groups=16, momentum=0.1)
    with pytest.raises(ValueError, match="3 frames for the single frame of f"):
        plain(torch.zeros(1, 64, 1, 2, 2), torch.zeros(1, 4, 3, 2, 2))


@pytest.mark.parametrize("compress_time", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_upsampling_repeats_every_position_and_every_frame_but_the_first(
    compress_time: bool, frames: int
) -> None:
    x = torch.randn(2, 3, frames, 2, 3)
    found = Upsample3D(3, with_conv=False, compress_time=compress_time)(x)
    source = [0, *(j for j in range(1, frames) for _ in range(2 if compress_time else 1))]
    wanted = x[:, :, source].repeat_interleave(2, 3).repeat_interleave(2, 4)
    assert torch.equal(found, wanted)
