"""FSQ and LFQ: the arithmetic of their codes, and what trains them."""

import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokpipe.models import FSQ, LFQ
from tokpipe.models.quantizers.scalar import entropy_of_mean

pytestmark = pytest.mark.usefixtures("one_thread")

LEVEL_SETS = [
    *((a,) for a in range(2, 65)),
    *((a, b) for a in range(2, 65) for b in range(2, 65)),
    *((1000,), (1001,), (1002,), (4096,), (4097,), (2, 3, 4, 5, 6, 7), (7, 5, 5, 5, 5)),
    *((8, 8, 8, 5, 5, 5), (8, 8, 8, 6, 5), (8, 5, 5, 5), (8, 6, 5), (2,) * 16, (3,) * 10),
]


@cache
def middles(levels: int) -> Tensor:
    """(levels,) latents, each in the middle of its level, by the published formula."""
    half, offset = (levels - 1) * 1.001 / 2, 0.5 * (levels % 2 == 0)
    target = (torch.arange(levels).double() - levels // 2 + offset) / half
    # From 1,001 levels on the outermost middles lie beyond the squashing's reach.
    target = target.clamp(-1 + 1e-7, 1 - 1e-7)
    return (target.atanh() - math.atanh(offset / half)).float()


def codes_of_vectors(levels: Sequence[int], vectors: Tensor) -> Tensor:
    """(N, channels) -> (N,): the first channel is the lowest digit."""
    halves = torch.tensor(levels) // 2
    digits = (vectors * halves).round().long() + halves
    places = torch.tensor([math.prod(levels[:channel]) for channel in range(len(levels))])
    return (digits * places).sum(-1)


def test_every_fsq_code_survives_the_round_trip_for_every_level_set() -> None:
    for levels in LEVEL_SETS:
        fsq = FSQ(levels)
        assert fsq.codebook_size == math.prod(levels)
        codes = torch.arange(fsq.codebook_size)
        vectors = fsq.vectors_of(codes)
        assert torch.equal(codes_of_vectors(levels, vectors), codes), levels
        # The first channel is the lowest digit, and so the last one here.
        grid = torch.cartesian_prod(*(middles(n) for n in reversed(levels)))
        latents = grid.view(len(codes), len(levels)).flip(1)
        assert torch.equal(fsq.codes_of(latents), codes), levels
        assert vectors.abs().max() == 1, levels


def test_two_to_the_twenty_levels_of_one_channel_survive_as_vectors() -> None:
    fsq, codes = FSQ([2**20]), torch.arange(2**20)
    assert torch.equal(codes_of_vectors([2**20], fsq.vectors_of(codes)), codes)


def test_the_first_fsq_channel_is_the_lowest_digit_and_an_even_one_reaches_no_1() -> None:
    vectors = FSQ((4, 3)).vectors_of(torch.arange(6))
    assert vectors.tolist() == [[-1, -1], [-0.5, -1], [0, -1], [0.5, -1], [-1, 0], [-0.5, 0]]


@pytest.mark.parametrize("levels", [[2], [3], [8, 5], [1000], [4096, 4097]], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e3, 1e30, 3e38])
def test_every_finite_latent_has_an_fsq_code(levels: list[int], size: float) -> None:
    """From 1,001 levels on, the published rounding leaves the codebook at both ends."""
    fsq = FSQ(levels)
    ends = torch.tensor([-size, size]).expand(len(levels), 2).T
    codes = fsq.codes_of(ends)
    assert 0 <= codes.min() <= codes.max() < fsq.codebook_size
    if size > 1:
        assert codes.tolist() == [0, fsq.codebook_size - 1]


@pytest.mark.parametrize("levels", [[2, 3], [8, 5], [64, 63]], ids=str)
def test_fsq_gradients_are_those_of_the_bounded_value(levels: list[int]) -> None:
    latent = (torch.randn(2, 2, 50) * 2).requires_grad_()
    weights = torch.randn(2, 2, 50)
    fsq = FSQ(levels)
    found = fsq(latent).vectors
    (found * weights).sum().backward()
    half = torch.tensor([(n - 1) * 1.001 / 2 for n in levels]).view(2, 1)
    offset = torch.tensor([0.5 * (n % 2 == 0) for n in levels]).view(2, 1)
    width = torch.tensor([n // 2 for n in levels]).view(2, 1)
    tanh = (latent.detach() + (offset / half).atanh()).tanh()
    torch.testing.assert_close(latent.grad, weights * (1 - tanh**2) * half / width)
    assert torch.equal(found, fsq.vectors_of(fsq.codes_of(latent)))  # to the bit
    torch.testing.assert_close(fsq.bounded(latent), tanh * half - offset)


def test_bounded_is_rounded_to_the_code_and_its_distance_can_be_trained_down() -> None:
    fsq, latent = FSQ((8, 5, 5)), torch.randn(2, 3, 4, 4).requires_grad_()
    codes = fsq.codes_of(latent)
    digits = fsq.bounded(latent).round() + torch.tensor([4, 2, 2]).view(3, 1, 1)
    assert torch.equal((digits * torch.tensor([1, 8, 40]).view(3, 1, 1)).sum(1).long(), codes)
    optimizer, distances = torch.optim.Adam([latent], lr=0.05), []
    for _ in range(150):
        bounded = fsq.bounded(latent)
        distance = (bounded - bounded.detach().round()).square().mean()
        distances.append(distance.item())
        optimizer.zero_grad()
        distance.backward()
        optimizer.step()
    assert distances[-1] < 0.02 * distances[0]
    assert torch.equal(fsq.codes_of(latent), codes)
    assert torch.equal(fsq.codes_of(latent.bfloat16()), codes)


@pytest.mark.parametrize("bit_order", ["big", "little"])
@pytest.mark.parametrize("dim", range(1, 63))
def test_every_lfq_width_survives_the_round_trip(dim: int, bit_order: str) -> None:
    lfq = LFQ(dim, bit_order=bit_order)  # type: ignore[arg-type]
    assert lfq.codebook_size == 2**dim
    codes = torch.arange(2 ** min(dim, 14))
    if dim > 14:
        torch.manual_seed(dim)
        edges = torch.tensor([0, 1, 2 ** (dim - 1), 2**dim - 1])
        codes = torch.cat([edges, torch.randint(0, 2**dim, (2000,))])
    powers = [2**bit for bit in range(dim)]
    assert lfq.state_dict()["mask"].tolist() == powers[:: 1 if bit_order == "little" else -1]
    vectors = lfq.vectors_of(codes)
    assert set(vectors.unique().tolist()) == {-1.0, 1.0}
    assert torch.equal(lfq.codes_of(vectors), codes)


@pytest.mark.parametrize("dim", [1, 2, 7, 18, 31, 62])
def test_little_endian_codes_are_the_big_endian_ones_with_their_bits_reversed(dim: int) -> None:
    latent = torch.randn(3, dim, 40)
    big = LFQ(dim).codes_of(latent).flatten().tolist()
    little = LFQ(dim, bit_order="little").codes_of(latent).flatten().tolist()
    assert little == [int(f"{code:0{dim}b}"[::-1], 2) for code in big]
    assert LFQ(2).codes_of(torch.tensor([[0.0, -0.0]])).item() == 0  # zero counts as negative
    assert big[0] == int("".join("1" if x > 0 else "0" for x in latent[0, :, 0]), 2)


def published_entropies(latent: Tensor, inv_temperature: float) -> tuple[Tensor, Tensor]:
    """(N, dim) float64 -> both entropies, by listing all codes."""
    dim = latent.shape[1]
    bits = torch.arange(2**dim)[:, None] >> torch.arange(dim) & 1
    shares = (2 * inv_temperature * latent @ (bits * 2.0 - 1).double().T).softmax(-1)
    return torch.special.entr(shares).sum(-1).mean(), torch.special.entr(shares.mean(0)).sum()


@pytest.mark.parametrize("dim", [1, 2, 3, 8, 11])
def test_lfq_loss_is_the_published_one(dim: int) -> None:
    latent = (torch.randn(2, dim, 5, 6) * 0.02).requires_grad_()
    exact = latent.detach().double().requires_grad_()
    lfq = LFQ(dim, entropy_loss_weight=0.3, commitment_loss_weight=0.7, diversity_gamma=2.5)
    loss = lfq(latent, inv_temperature=80.0).loss
    rows = exact.movedim(1, -1).reshape(-1, dim)
    per_sample, of_mean = published_entropies(rows, 80.0)
    signs = torch.where(exact > 0, 1.0, -1.0)
    wanted = 0.3 * (per_sample - 2.5 * of_mean) + 0.7 * F.mse_loss(exact, signs.double())
    torch.testing.assert_close(loss.double(), wanted, atol=1e-4, rtol=1e-4)
    loss.backward()
    wanted.backward()
    assert latent.grad is not None
    torch.testing.assert_close(latent.grad.double(), exact.grad, atol=1e-5, rtol=1e-3)
    assert lfq.eval()(latent).loss.item() == 0


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_lfq_loss_and_its_gradient_stay_finite(scale: float) -> None:
    latent = (torch.randn(1, 20, 30) * scale).requires_grad_()
    loss = LFQ(20)(latent).loss
    loss.backward()
    assert loss.isfinite()
    assert latent.grad.isfinite().all()  # type: ignore[union-attr]


def test_the_entropy_of_wide_codes_is_that_of_their_groups_summed() -> None:
    logits = torch.randn(50, 40)
    groups = logits.tensor_split(3, dim=1)  # 14, 13 and 13 bits
    wanted = torch.stack([entropy_of_mean(group) for group in groups]).sum()
    torch.testing.assert_close(entropy_of_mean(logits), wanted)
    # Of one latent the bits are independent, so groups lose nothing.
    each = torch.distributions.Bernoulli(logits=logits[:1]).entropy().sum()
    torch.testing.assert_close(entropy_of_mean(logits[:1]), each)


def test_even_use_of_eighteen_bits_has_eighteen_bits_of_entropy() -> None:
    """The published cut at 1e-5 underestimates it by 0.96 nats."""
    found = entropy_of_mean(torch.zeros(3, 18))
    assert found.item() == pytest.approx(18 * math.log(2), rel=1e-5)


@settings(max_examples=40)
@given(dim=st.integers(1, 6), num=st.integers(1, 4), grid=st.lists(st.integers(1, 3), max_size=3))
def test_several_codebooks_have_their_codes_in_a_last_dimension(
    dim: int, num: int, grid: list[int]
) -> None:
    torch.manual_seed(0)
    latent = torch.randn(2, dim * num, *grid)
    levels = [3, 2, 5, 4, 2, 7][:dim]
    for many, one in (
        (FSQ(levels, num_codebooks=num, keep_num_codebooks_dim=True), FSQ(levels)),
        (LFQ(codebook_size=2**dim, num_codebooks=num, keep_num_codebooks_dim=True), LFQ(dim)),
    ):
        found = many(latent)
        assert found.codes.shape == (2, *grid, num)
        parts = latent.split(dim, dim=1)
        assert torch.equal(found.codes, torch.stack([one.codes_of(part) for part in parts], -1))
        assert torch.equal(found.codes, many.codes_of(latent))
        assert torch.equal(found.vectors, torch.cat([one(part).vectors for part in parts], 1))
        assert torch.equal(found.vectors, many.vectors_of(found.codes))


def test_projections_have_the_published_keys_and_convert_both_ways() -> None:
    latent = torch.randn(2, 5, 3, 4, 4)
    for quantizer, inner in (
        (FSQ([8, 5, 5], dim=5), FSQ([8, 5, 5])),
        (LFQ(dim=5, codebook_size=8), LFQ(3)),
    ):
        keys = {"project_in.weight", "project_in.bias", "project_out.weight", "project_out.bias"}
        assert set(quantizer.state_dict()) - {"mask"} == keys
        rows = F.linear(latent.movedim(1, -1), *quantizer.project_in.parameters())
        wanted = inner(rows.movedim(-1, 1))
        found = quantizer(latent)
        assert torch.equal(found.codes, wanted.codes)
        back = F.linear(wanted.vectors.movedim(1, -1), *quantizer.project_out.parameters())
        torch.testing.assert_close(found.vectors, back.movedim(-1, 1))
        assert torch.equal(found.vectors, quantizer.vectors_of(found.codes))


def test_the_codebook_scale_is_that_of_the_vectors() -> None:
    lfq, latent = LFQ(4, codebook_scale=0.5), torch.randn(2, 4, 6)
    found = lfq(latent)
    assert torch.equal(found.vectors, latent.sign() * 0.5)
    assert torch.equal(found.codes, LFQ(4).codes_of(latent))
