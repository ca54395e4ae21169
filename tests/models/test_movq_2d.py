from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokpipe.models.blocks_2d import SpatialNorm
from tokpipe.models.movq_2d import MOVQDecoder
from tokpipe.models.vqvae_2d import Decoder

SMALL: dict[str, Any] = {
    "ch": 32,
    "out_ch": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "attn_resolutions": (8,),
    "resolution": 16,
    "z_channels": 4,
}


def small_decoder(**changes: Any) -> MOVQDecoder:
    """Two levels, attention at the coarser; random weights from the current seed."""
    return MOVQDecoder(**(SMALL | changes)).eval()


@pytest.mark.parametrize("add_conv", [False, True])
@pytest.mark.parametrize("size", [(3, 3), (6, 7), (9, 14), (5, 20)])
def test_a_spatial_norm_scales_and_shifts_by_the_resized_latent(
    add_conv: bool, size: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    norm = SpatialNorm(32, 3, add_conv=add_conv, num_groups=8, eps=1e-3)
    f, zq = torch.randn(2, 32, 6, 7), torch.randn(2, 3, *size)
    state = norm.state_dict()
    with torch.no_grad():
        found = norm(f, zq)
        zq = F.interpolate(zq, size=(6, 7), mode="nearest")
        if add_conv:
            zq = F.conv2d(zq, state["conv.weight"], state["conv.bias"], padding=1)
        scale = F.conv2d(zq, state["conv_y.weight"], state["conv_y.bias"])
        shift = F.conv2d(zq, state["conv_b.weight"], state["conv_b.bias"])
        torch.testing.assert_close(found, F.group_norm(f, 8, eps=1e-3) * scale + shift)


def test_only_the_frozen_norm_is_left_out_of_training() -> None:
    norm = SpatialNorm(32, 3, freeze_norm_layer=True, num_groups=32)
    frozen = {name for name, p in norm.named_parameters() if not p.requires_grad}
    assert frozen == {"norm_layer.weight", "norm_layer.bias"}
    norm(torch.randn(1, 32, 4, 4), torch.randn(1, 3, 2, 2)).sum().backward()
    assert norm.conv_y.weight.grad is not None
    assert all(p.requires_grad for p in SpatialNorm(32, 3, num_groups=32).parameters())


def test_another_norm_layer_gets_its_arguments() -> None:
    def batch_norm(num_channels: int, momentum: float) -> nn.Module:
        return nn.BatchNorm2d(num_channels, momentum=momentum)

    norm = SpatialNorm(32, 3, batch_norm, momentum=0.5)
    assert isinstance(norm.norm_layer, nn.BatchNorm2d)
    assert norm.norm_layer.momentum == 0.5
    with pytest.raises(TypeError, match="num_group"):
        SpatialNorm(32, 3, num_group=32)


def test_zq_ch_defaults_to_z_channels() -> None:
    keys = {
        key: tuple(value.shape)
        for key, value in small_decoder().state_dict().items()
        if "conv_y.weight" in key
    }
    assert {shape[1] for shape in keys.values()} == {4}
    torch.manual_seed(0)
    wide = small_decoder(zq_ch=6)
    with torch.no_grad():
        assert wide(torch.randn(2, 4, 5, 7), torch.randn(2, 6, 5, 7)).shape == (2, 3, 10, 14)


def test_with_scale_one_and_no_shift_it_is_the_plain_decoder() -> None:
    torch.manual_seed(0)
    movq, plain = small_decoder(), Decoder(**SMALL).eval()
    weights = {
        key.replace(".norm_layer", ""): value
        for key, value in movq.state_dict().items()
        if ".conv_y." not in key and ".conv_b." not in key
    }
    plain.load_state_dict(weights)
    with torch.no_grad():
        for norm in movq.modules():
            if isinstance(norm, SpatialNorm):
                for conv, value in ((norm.conv_y, 1.0), (norm.conv_b, 0.0)):
                    conv.weight.zero_()
                    conv.bias.fill_(value)  # type: ignore[union-attr]
        z = torch.randn(2, 4, 5, 7)
        torch.testing.assert_close(movq(z, torch.randn(2, 4, 5, 7)), plain(z))


@pytest.mark.parametrize(
    ("z", "zq", "problem"),
    [
        (torch.zeros(1, 4, 4, 4), torch.zeros(1, 3, 4, 4), r"zq is .*\(1, 3, 4, 4\).*\(B, 4, H"),
        (torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 0), r"zq is .* of \(1, 4, 4, 0\)"),
        (torch.zeros(2, 4, 4, 4), torch.zeros(1, 4, 4, 4), "z has 2 images and zq 1"),
        (torch.zeros(1, 4, 4, 4), torch.zeros(1, 4, 4, 4).half(), "zq is torch.float16"),
    ],
)
@pytest.mark.parametrize("add_conv", [False, True])
def test_latents_that_do_not_fit_are_rejected(
    z: Tensor, zq: Tensor, problem: str, add_conv: bool
) -> None:
    with pytest.raises(ValueError, match=problem):
        small_decoder(add_conv=add_conv)(z, zq)
