import math
from functools import partial

import pytest
import torch

from tests.models.networks import small
from tokpipe.models import UNet, get_timestep_embedding

unet = partial(small, UNet)


@pytest.mark.parametrize("dim", [4, 5, 32, 33])
def test_an_embedding_is_sines_then_cosines_of_a_geometric_series(dim: int) -> None:
    half = dim // 2
    found = get_timestep_embedding(torch.tensor([0, 1, 977]), dim)
    rates = [10000 ** (-i / (half - 1)) for i in range(half)]
    wanted = [
        [*(f(t * rate) for f in (math.sin, math.cos) for rate in rates), *[0.0] * (dim % 2)]
        for t in (0, 1, 977)
    ]
    # float32 angles near 977 are 3e-5 apart.
    torch.testing.assert_close(found, torch.tensor(wanted), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32, torch.float64])
def test_an_embedding_is_float32_of_any_timesteps(dtype: torch.dtype) -> None:
    wanted = get_timestep_embedding(torch.tensor([3, 977]), 32)
    found = get_timestep_embedding(torch.tensor([3, 977]).to(dtype), 32)
    assert found.dtype == torch.float32
    assert torch.equal(found, wanted)


def test_embeddings_need_room_for_a_series_and_one_timestep_per_image() -> None:
    for dim in range(4):
        with pytest.raises(ValueError, match=rf"embedding_dim={dim} leaves room .* use 4 or more"):
            get_timestep_embedding(torch.tensor([1]), dim)
    for timesteps in (torch.tensor(3), torch.tensor([[3], [4]])):
        with pytest.raises(ValueError, match=r"timesteps have shape .* pass \(B,\)"):
            get_timestep_embedding(timesteps, 32)


@pytest.mark.parametrize(
    ("ch_mult", "blocks", "with_conv"),
    [((1,), 1, True), ((1, 2), 1, False), ((2, 1), 2, True), ((1, 3, 2), 1, True)],
)
def test_images_keep_their_size(ch_mult: tuple[int, ...], blocks: int, with_conv: bool) -> None:
    network = unet(ch_mult=ch_mult, num_res_blocks=blocks, resamp_with_conv=with_conv, out_ch=5)
    stride = 2 ** (len(ch_mult) - 1)
    for rows, columns in ((1, 2), (3, 2), (4, 5)):
        x = torch.randn(2, 3, rows * stride, columns * stride)
        with torch.no_grad():
            y = network(x, torch.tensor([0, 5]))
        assert y.shape == (2, 5, rows * stride, columns * stride)
        assert y.isfinite().all()


def test_each_timestep_only_affects_its_image() -> None:
    network, x = unet(), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        before = network(x, torch.tensor([3, 50, 977]))
        after = network(x, torch.tensor([3, 51, 977]))
        alike = network(x, torch.tensor([50]))
    assert torch.equal(before[0], after[0])
    assert torch.equal(before[2], after[2])
    assert not torch.allclose(before[1], after[1], atol=1e-4)
    torch.testing.assert_close(alike[1], before[1])


def test_without_timesteps_t_is_ignored_and_the_blocks_keep_their_keys() -> None:
    blind, x = unet(use_timestep=False), torch.randn(1, 3, 8, 8)
    keys = set(unet().state_dict())
    assert set(blind.state_dict()) == {key for key in keys if not key.startswith("temb.")}
    with torch.no_grad():
        assert torch.equal(blind(x), blind(x, torch.tensor([5])))


def test_context_is_appended_to_the_channels_of_x() -> None:
    network = unet(in_channels=5)
    x, context, t = torch.randn(2, 3, 8, 8), torch.randn(2, 2, 8, 8), torch.tensor([1, 2])
    with torch.no_grad():
        joined = network(torch.cat([x, context], dim=1), t)
        assert torch.equal(network(x, t, context), joined)
        assert torch.equal(network(x, t=t, context=context), joined)


@pytest.mark.parametrize("size", [(31, 16), (16, 33), (18, 16)])
def test_sizes_that_do_not_halve_evenly_are_rejected(size: tuple[int, int]) -> None:
    network = unet(ch_mult=(1, 1, 1))
    with pytest.raises(ValueError, match=rf"images of {size[0]}x{size[1]} .* multiples of 4"):
        network(torch.randn(1, 3, *size), torch.tensor([3]))


def test_inputs_that_do_not_fit_each_other_are_rejected() -> None:
    network, x, t = unet(), torch.randn(2, 3, 8, 8), torch.tensor([1, 2])
    for given, problem in (
        ([], r"t is None, but this network needs .* use_timestep=False"),
        ([torch.tensor([1, 2, 3])], r"t is \(3,\), .* one timestep for each image \(2,\)"),
        ([torch.tensor(1)], r"t is \(\), "),
        ([t, torch.randn(1, 2, 8, 8)], r"context has shape \(1, 2, 8, 8\)"),
        ([t, torch.randn(2, 2, 4, 8)], r"context has shape \(2, 2, 4, 8\)"),
        ([t, torch.randn(2, 2, 8, 8)], r"x with context is .* of \(2, 5, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=problem):
            network(x, *given)
    with pytest.raises(TypeError, match="timesteps"):
        network(x, timesteps=t)
