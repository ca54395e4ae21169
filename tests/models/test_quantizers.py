from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.models import golden_fixtures as golden
from tokpipe.models.quantizers import FSQ, LFQ, Quantizer, VectorQuantizer, nearest


def random_vq(n_e: int, e_dim: int) -> VectorQuantizer:
    """A codebook spread as widely as the latents of these tests, from a fixed seed."""
    quantizer = VectorQuantizer(n_e, e_dim)
    generator = torch.Generator().manual_seed(1)
    quantizer.embedding.weight.data = torch.randn(n_e, e_dim, generator=generator)
    return quantizer.requires_grad_(False)


@pytest.mark.parametrize("cls", [VectorQuantizer, FSQ, LFQ])
def test_matches_the_published_values(cls: type[Quantizer]) -> None:
    case = {VectorQuantizer: "vector_quantizer", FSQ: "fsq", LFQ: "lfq"}[cls]
    # FSQ and LFQ were fed three times the input, as the fixtures' notes say.
    scale = 3 if "note" in golden.spec(case) else 1
    with torch.no_grad():
        found = golden.build(case, cls)(*(x * scale for x in golden.inputs(case)))
    wanted = golden.outputs(case)
    golden.assert_agree(found.vectors, wanted["z_q" if cls is VectorQuantizer else "quantized"])
    assert torch.equal(found.codes, wanted["indices"].long())
    if cls is VectorQuantizer:
        golden.assert_agree(found.loss, wanted["loss"])


def check_round_trip(quantizer: Quantizer) -> None:
    codes = torch.arange(quantizer.codebook_size)
    vectors = quantizer.vectors_of(codes)
    assert vectors.shape == (quantizer.codebook_size, quantizer.dim)
    assert vectors.dtype == torch.float32
    assert torch.equal(quantizer.codes_of(vectors), codes)


@pytest.mark.parametrize(
    "levels",
    [[n] for n in range(2, 65)]
    + [[n, n] for n in range(2, 33)]
    + [[1000], [1001], [1002], [4096], [4097], [2, 3, 4, 5, 6, 7], [7, 5, 5, 5, 5]]
    + [[8, 8, 8, 5, 5, 5], [8, 8, 8, 6, 5], [8, 5, 5, 5], [8, 6, 5]],
    ids=str,
)
def test_every_fsq_code_survives_the_round_trip(levels: list[int]) -> None:
    fsq = FSQ(levels)
    assert fsq.codebook_size == math.prod(levels)
    check_round_trip(_Unsquashed(levels))
    assert fsq.vectors_of(torch.arange(fsq.codebook_size)).abs().max() <= 1


class _Unsquashed(FSQ):
    """An FSQ fed by latents that its squashing takes to the given vectors exactly."""

    def codes_of(self, latent: Tensor) -> Tensor:
        half = (self.levels - 1) * 1.001 / 2
        offset = (self.levels % 2 == 0) * 0.5
        target = latent.movedim(1, -1).double() * (self.levels // 2)
        z = ((target + offset) / half).clamp(-1 + 1e-7, 1 - 1e-7).atanh()
        z = z - (offset / half).double().atanh()
        return super().codes_of(z.movedim(-1, 1))


@pytest.mark.parametrize("dim", range(1, 17))
def test_every_lfq_code_survives_the_round_trip(dim: int) -> None:
    check_round_trip(LFQ(dim))


@pytest.mark.parametrize(("n_e", "e_dim"), [(1, 4), (7, 1), (64, 4), (1000, 6), (8192, 16)])
def test_every_vq_code_survives_the_round_trip(n_e: int, e_dim: int) -> None:
    check_round_trip(random_vq(n_e, e_dim))


def test_wide_lfq_codes_are_exact() -> None:
    lfq = LFQ(31)
    codes = torch.tensor([0, 1, 2**30, 2**31 - 1, 1_234_567_890])
    assert torch.equal(lfq.codes_of(lfq.vectors_of(codes)), codes)
    assert lfq.vectors_of(torch.tensor([2**30]))[0].tolist() == [1.0] + [-1.0] * 30


@pytest.mark.parametrize("levels", [[2], [3], [8, 5], [1000], [4096, 4097]], ids=str)
@pytest.mark.parametrize("size", [1.0, 1e3, 1e30, 3e38])
def test_every_finite_latent_has_an_fsq_code(levels: list[int], size: float) -> None:
    """From 1,001 levels on the published rounding leaves the codebook at both ends."""
    fsq = FSQ(levels)
    ends = torch.tensor([-size, size]).expand(len(levels), 2).T
    codes = fsq.codes_of(ends)
    assert 0 <= codes.min() <= codes.max() < fsq.codebook_size
    if size > 1:
        assert codes.tolist() == [0, fsq.codebook_size - 1]


@pytest.mark.parametrize("quantizer", [FSQ((8, 5, 5)), LFQ(3), random_vq(40, 3)])
@pytest.mark.parametrize("grid", [(), (7,), (2, 3), (2, 3, 4)])
def test_channels_stand_second_in_any_number_of_dimensions(
    quantizer: Quantizer, grid: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    latent = torch.randn(5, 3, *grid)
    codes = quantizer.codes_of(latent)
    assert codes.dtype == torch.int64
    flat = quantizer.codes_of(latent.movedim(1, -1).reshape(-1, 3))
    assert torch.equal(codes, flat.view(5, *grid))
    vectors = quantizer.vectors_of(codes.to(torch.int32))
    assert vectors.shape == latent.shape
    assert torch.equal(vectors.movedim(1, -1).reshape(-1, 3), quantizer.vectors_of(flat))


@pytest.mark.parametrize("quantizer", [FSQ((8, 5, 5)), LFQ(3), random_vq(40, 3)])
def test_bfloat16_latents_under_autocast_are_quantized_in_float32(quantizer: Quantizer) -> None:
    torch.manual_seed(0)
    latent = torch.randn(2, 3, 64, 64)
    narrow = latent.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, found_narrow = quantizer.codes_of(latent), quantizer.codes_of(narrow)
    assert torch.equal(found, quantizer.codes_of(latent))
    assert torch.equal(found_narrow, quantizer.codes_of(narrow.float()))


@pytest.mark.parametrize("quantizer", [FSQ((8, 5, 5)), LFQ(3), random_vq(40, 3)])
def test_another_default_dtype_changes_nothing(quantizer: Quantizer) -> None:
    latent = torch.randn(2, 3, 64, 64)
    codes = quantizer.codes_of(latent)
    vectors = quantizer.vectors_of(codes)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(quantizer.codes_of(latent), codes)
        found = quantizer.vectors_of(codes)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == torch.float32
    assert torch.equal(found, vectors)


def test_vq_codes_are_the_nearest_by_brute_force() -> None:
    torch.manual_seed(0)
    quantizer, latent = random_vq(1000, 6), torch.randn(2, 6, 3, 20, 20)
    z = latent.movedim(1, -1).reshape(-1, 6).double()
    brute = torch.cdist(z, quantizer.embedding.weight.double()).argmin(1)
    assert torch.equal(quantizer.codes_of(latent).flatten(), brute)


@settings(deadline=None)
@given(
    rows=st.integers(1, 130),
    entries=st.lists(st.integers(-2, 2), min_size=1, max_size=40),
    max_distances=st.integers(1, 4000),
)
def test_of_code_vectors_equally_near_the_first_is_named_across_blocks(
    rows: int, entries: Sequence[int], max_distances: int
) -> None:
    """Small integers: distances are exact, and ties plenty."""
    codebook = torch.tensor(entries, dtype=torch.float32).unsqueeze(1)
    latents = torch.arange(rows, dtype=torch.float32).remainder(9).sub(4).unsqueeze(1)
    found = nearest(latents, codebook, max_distances)
    distances = (latents - codebook.T).square()
    first = [row.index(min(row)) for row in distances.tolist()]
    assert found.tolist() == first


def test_search_never_holds_more_distances_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, addmm = [], torch.addmm

    def watched(*args: Tensor, alpha: float) -> Tensor:
        product = addmm(*args, alpha=alpha)
        sizes.append(product.numel())
        return product

    monkeypatch.setattr(torch, "addmm", watched)
    nearest(torch.randn(300, 4), torch.randn(5000, 4), max_distances=30_000)
    assert len(sizes) == 50
    assert max(sizes) <= 30_000


@pytest.mark.parametrize("positions", [1, 3, 5, 7, 64, 100])
def test_vq_distances_are_the_same_bits_in_any_batch_on_any_number_of_threads(
    positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compared before the minimum is taken: codes alone would show a difference too rarely."""
    products, addmm = [], torch.addmm

    def watched(*args: Tensor, alpha: float) -> Tensor:
        products.append(addmm(*args, alpha=alpha))
        return products[-1]

    monkeypatch.setattr(torch, "addmm", watched)
    torch.manual_seed(0)
    quantizer, latents = random_vq(333, 5), torch.randn(4, 5, positions)
    before, seen = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for batch in ([0], [1, 0], [3, 2, 0, 1]):
            products.clear()
            quantizer.codes_of(latents[batch])
            seen.append(products[batch.index(0)])
    torch.set_num_threads(before)
    assert all(torch.equal(product, seen[0]) for product in seen)


@pytest.mark.parametrize("quantizer", [LFQ(3), VectorQuantizer(40, 3)])
def test_gradients_pass_straight_through(quantizer: Quantizer) -> None:
    latent = torch.randn(2, 3, 4, 4, requires_grad=True)
    found = quantizer(latent)
    found.vectors.sum().backward()
    assert torch.equal(latent.grad, torch.ones_like(latent))  # type: ignore[arg-type]
    golden.assert_agree(found.vectors, quantizer.vectors_of(found.codes.view(2, 4, 4)))


def test_vq_loss_pulls_codebook_and_latent_together() -> None:
    quantizer = VectorQuantizer(2, 1, beta=0.25, legacy=False)
    quantizer.embedding.weight.data = torch.tensor([[0.0], [10.0]])
    latent = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    found = quantizer(latent)
    assert found.codes.tolist() == [0, 0]  # flat, as published, unless asked otherwise
    assert found.loss.item() == pytest.approx(1.25 * (1 + 4) / 2)
    found.loss.backward()
    assert latent.grad.flatten().tolist() == pytest.approx([0.25, 0.5])  # type: ignore[union-attr]
    assert quantizer.embedding.weight.grad.flatten().tolist() == pytest.approx([-3.0, 0.0])  # type: ignore[union-attr]


@pytest.mark.parametrize("quantizer", [FSQ((8, 5)), LFQ(5), random_vq(40, 3)])
@pytest.mark.parametrize("wrong", [-1, 40])
def test_codes_that_the_codebook_lacks_are_refused(quantizer: Quantizer, wrong: int) -> None:
    with pytest.raises(ValueError, match=r"codes from .* but the codebook has 0 to \d+:"):
        quantizer.vectors_of(torch.tensor([0, wrong]))


def test_arguments_that_cannot_be_honoured_are_refused() -> None:
    with pytest.raises(ValueError, match=r"levels=\[8, 1\]: each channel needs two"):
        FSQ([8, 1])
    with pytest.raises(ValueError, match="levels="):
        FSQ([])
    with pytest.raises(ValueError, match="dim=63"):
        LFQ(63)
