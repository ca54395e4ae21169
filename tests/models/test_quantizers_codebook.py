"""Quantizers with a learned codebook: search, losses, moving averages, sampling, remapping."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.models.checks import assert_same_bits
from tests.models.quantizer_cases import random_vq
from tokpipe.models import EMAVectorQuantizer, GumbelQuantizer, VectorQuantizer
from tokpipe.models.quantizers.base import first_least

pytestmark = pytest.mark.usefixtures("one_thread")

USED = [7, 3, 11, 0, 38]


@pytest.mark.parametrize(("n_e", "e_dim"), [(1, 4), (7, 1), (64, 4), (1000, 6), (8192, 16)])
def test_every_vq_code_survives_the_round_trip(n_e: int, e_dim: int) -> None:
    quantizer, codes = random_vq(n_e, e_dim), torch.arange(n_e)
    assert torch.equal(quantizer.codes_of(quantizer.vectors_of(codes)), codes)


def test_vq_codes_are_the_nearest_by_brute_force() -> None:
    quantizer, latent = random_vq(1000, 6), torch.randn(2, 6, 3, 20, 20)
    z = latent.movedim(1, -1).reshape(-1, 6).double()
    brute = torch.cdist(z, quantizer.embedding.weight.double()).argmin(1)
    assert torch.equal(quantizer.codes_of(latent).flatten(), brute)


@given(
    rows=st.integers(1, 130),
    entries=st.lists(st.integers(-2, 2), min_size=1, max_size=40),
    max_distances=st.integers(1, 4000),
)
def test_of_equally_near_code_vectors_the_first_wins_across_blocks(
    rows: int, entries: Sequence[int], max_distances: int
) -> None:
    """Small integers: distances are exact, and ties frequent."""
    codebook = torch.tensor(entries, dtype=torch.float32).unsqueeze(1)
    latents = torch.arange(rows, dtype=torch.float32).remainder(9).sub(4).unsqueeze(1)
    found = first_least(latents, codebook, codebook.square().sum(1), -2, max_distances)
    distances = (latents - codebook.T).square()
    first = [row.index(min(row)) for row in distances.tolist()]
    assert found.tolist() == first


@pytest.fixture
def distances(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What every search computes."""
    found, addmm = [], torch.addmm

    def watched(*args: Tensor, alpha: float) -> Tensor:
        found.append(addmm(*args, alpha=alpha))
        return found[-1]

    monkeypatch.setattr(torch, "addmm", watched)
    return found


def test_search_never_holds_more_distances_than_allowed(distances: list[Tensor]) -> None:
    first_least(torch.randn(300, 4), torch.randn(5000, 4), torch.zeros(5000), -2, 30_000)
    assert len(distances) == 50
    assert max(block.numel() for block in distances) <= 30_000


@pytest.mark.parametrize("positions", [1, 3, 5, 7, 64, 100])
@pytest.mark.parametrize(
    "quantizer",
    [random_vq(333, 5), random_vq(100, 256), GumbelQuantizer(256, 4, 333).eval()],
    ids=["vq", "wide vq", "wide gumbel"],
)
def test_distances_have_the_same_bits_in_any_batch_on_any_number_of_threads(
    quantizer: VectorQuantizer | GumbelQuantizer, positions: int, distances: list[Tensor]
) -> None:
    """Distances are compared, since codes would show a difference too rarely."""
    latents = torch.randn(4, quantizer.latent_dim, positions)

    def run(batch: list[int]) -> list[Tensor]:
        distances.clear()
        quantizer.codes_of(latents[batch])
        return distances[:]

    assert_same_bits(run)


@pytest.mark.parametrize("beta", [0.25, 2.0])
@pytest.mark.parametrize("legacy", [True, False, None])
def test_beta_weights_the_commitment_or_as_published_the_pull(
    legacy: bool | None, beta: float
) -> None:
    chosen: dict[str, Any] = {} if legacy is None else {"legacy": legacy}
    quantizer = VectorQuantizer(2, 1, beta=beta, **chosen)
    quantizer.embedding.weight.data = torch.tensor([[0.0], [10.0]])
    latent = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    loss = quantizer(latent).loss
    assert loss.item() == pytest.approx((1 + beta) * (1 + 4) / 2)
    loss.backward()
    commitment, pull = (beta, 1) if legacy is False else (1, beta)
    assert latent.grad is not None
    assert latent.grad.flatten().tolist() == pytest.approx([commitment * 1, commitment * 2])
    assert quantizer.embedding.weight.grad is not None
    assert quantizer.embedding.weight.grad.flatten().tolist() == pytest.approx([pull * -3, 0])


@pytest.mark.parametrize("grid", [(5,), (2, 3), (2, 3, 4)])
def test_vq_codes_are_flat_or_a_column_or_in_the_sane_shape(grid: tuple[int, ...]) -> None:
    latent, num = torch.randn(2, 4, *grid), 2 * math.prod(grid)
    assert VectorQuantizer(40, 4)(latent).codes.shape == (num,)
    assert VectorQuantizer(40, 4, remap=USED)(latent).codes.shape == (num, 1)
    assert EMAVectorQuantizer(40, 4, 0.25)(latent).codes.shape == (num,)
    for remap in (None, USED):
        quantizer = VectorQuantizer(40, 4, remap=remap, sane_index_shape=True)
        found = quantizer(latent)
        assert found.codes.shape == (2, *grid)
        assert torch.equal(found.codes, quantizer.codes_of(latent))


def test_get_codebook_entry_takes_the_shape_with_channels_last() -> None:
    quantizer, codes = random_vq(40, 3), torch.arange(24)
    rows = quantizer.embedding.weight[:24]
    assert torch.equal(quantizer.get_codebook_entry(codes), rows)
    assert torch.equal(quantizer.get_codebook_entry(codes.view(2, 12)), rows.view(2, 12, 3))
    wanted = rows.view(2, 3, 4, 3).permute(0, 3, 1, 2)
    assert torch.equal(quantizer.get_codebook_entry(codes, (2, 3, 4, 3)), wanted)
    column = quantizer.get_codebook_entry(codes.view(24, 1), (2, 3, 4, 3))
    assert torch.equal(column, wanted)
    with pytest.raises(ValueError, match="codes from 0 to 40, but the codebook has 0 to 39"):
        quantizer.get_codebook_entry(torch.tensor([0, 40]), (1, 1, 2, 3))


def published_remap(entries: Tensor, used: Tensor, unknown_index: int) -> Tensor:
    match = (entries[..., None] == used).long()
    new = match.argmax(-1)
    new[match.sum(-1) < 1] = unknown_index
    return new


@pytest.mark.parametrize("unknown_index", [0, 4, "extra", "random"])
@pytest.mark.parametrize("cls", [VectorQuantizer, EMAVectorQuantizer])
def test_remapped_codes_are_the_published_ones(
    cls: type[VectorQuantizer | EMAVectorQuantizer], unknown_index: Any
) -> None:
    latent = torch.randn(2, 3, 20, 20)
    whole = cls(40, 3, 0.25).eval()
    quantizer = cls(40, 3, 0.25, remap=USED, unknown_index=unknown_index).eval()
    used = torch.tensor(USED)
    quantizer.load_state_dict({**whole.state_dict(), "used": used}, strict=True)
    whole_codes, codes = whole.codes_of(latent), quantizer.codes_of(latent)
    extra = unknown_index == "extra"
    assert quantizer.codebook_size == 5 + extra
    known = torch.isin(whole_codes, used)
    assert 0 < known.sum() < known.numel()
    if unknown_index == "random":
        assert torch.equal(codes[known], published_remap(whole_codes, used, 0)[known])
        assert torch.equal(codes[~known], whole_codes[~known] % 5)
        assert torch.equal(codes, quantizer.codes_of(latent))
    else:
        position = 5 if extra else unknown_index
        assert torch.equal(codes, published_remap(whole_codes, used, position))
    found = quantizer(latent)
    assert torch.equal(found.codes, codes.view(-1, 1))
    assert torch.equal(found.vectors, whole(latent).vectors)  # the nearest, used or not
    entries = used[codes.where(codes < 5, 0)]  # an extra code stands for the first used entry
    assert torch.equal(quantizer.vectors_of(codes), whole.vectors_of(entries))
    shape = (2, 20, 20, 3)
    assert torch.equal(quantizer.get_codebook_entry(found.codes, shape), whole.vectors_of(entries))


def test_the_entries_in_use_come_from_a_file_as_published_or_from_memory(tmp_path: Path) -> None:
    path = tmp_path / "used.npy"
    np.save(path, np.array(USED))
    for remap in (path, str(path), USED, np.array(USED, np.uint16), torch.tensor(USED)):
        quantizer = VectorQuantizer(40, 3, remap=remap)
        assert quantizer.state_dict()["used"].tolist() == USED
        assert quantizer.state_dict()["used"].dtype == torch.int64
    assert "used" not in VectorQuantizer(40, 3).state_dict()


@pytest.mark.parametrize(
    ("remap", "problem"),
    [
        ([], r"remap: \[\] of float64, .* at least one of the integers 0 to 39, each once"),
        ([[1, 2]], r"remap: \[\[1, 2\]\] of int64, .* the entries in use are a list"),
        ([0.5], r"remap: \[0.5\] of float64"),
        ([0, 40], r"remap: \[0, 40\] of int64, .* the integers 0 to 39"),
        ([-1, 4], r"remap: \[-1, 4\]"),
        ([4, 5, 4], r"remap: \[4, 5, 4\] .* each once"),
    ],
)
def test_invalid_entries_in_use_are_rejected(remap: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        VectorQuantizer(40, 3, remap=remap)
    path = tmp_path / "used.npy"
    np.save(path, np.array(remap))
    with pytest.raises(ValueError, match=rf"used\.npy: .*{problem.removeprefix('remap: ')}"):
        GumbelQuantizer(4, 3, 40, remap=path)
    for damaged in (b"0 1 2 3", b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"used\.npy: not a \.npy file of integers"):
            EMAVectorQuantizer(40, 3, 0.25, remap=path)


@pytest.mark.parametrize("unknown_index", ["any", -1, 5, 2.5])
def test_an_unknown_index_outside_the_list_is_rejected(unknown_index: Any) -> None:
    with pytest.raises(ValueError, match=f"unknown_index={unknown_index!r}: use 'random'"):
        VectorQuantizer(40, 3, remap=USED, unknown_index=unknown_index)


def test_one_ema_step_is_the_published_formula() -> None:
    quantizer = EMAVectorQuantizer(6, 3, beta=0.5, decay=0.9, eps=1e-3).train()
    codebook = quantizer.embedding
    codebook.cluster_size.copy_(torch.rand(6))
    weight, sizes, averages = (value.clone() for value in quantizer.state_dict().values())
    latent = torch.randn(2, 3, 4, 4, requires_grad=True)
    found = quantizer(latent)
    rows = latent.detach().movedim(1, -1).reshape(-1, 3)
    named = torch.cdist(rows, weight).argmin(1)
    assert torch.equal(found.codes, named)
    before = weight[named].view(2, 4, 4, 3).movedim(-1, 1)
    assert torch.equal(found.vectors, before)
    torch.testing.assert_close(found.loss, 0.5 * F.mse_loss(before, latent))
    one_hot = F.one_hot(named, 6).float()
    sizes = 0.9 * sizes + 0.1 * one_hot.sum(0)
    averages = 0.9 * averages + 0.1 * one_hot.T @ rows
    smoothed = (sizes + 1e-3) / (sizes.sum() + 6 * 1e-3) * sizes.sum()
    torch.testing.assert_close(codebook.cluster_size.data, sizes)
    torch.testing.assert_close(codebook.embed_avg.data, averages)
    torch.testing.assert_close(codebook.weight.data, averages / smoothed[:, None])
    found.loss.backward()
    assert not any(parameter.requires_grad for parameter in quantizer.parameters())
    torch.testing.assert_close(latent.grad, (latent.detach() - before) * (2 * 0.5 / 96))


def test_ema_finds_the_centres_of_a_mixture_and_eval_moves_nothing() -> None:
    centres = torch.tensor([[2.0, 0.0], [0.0, 2.0], [-2.0, 0.0], [0.0, -2.0]])

    def draw() -> Tensor:
        return (centres[torch.randint(4, (256,))] + 0.05 * torch.randn(256, 2)).T.unsqueeze(0)

    quantizer = EMAVectorQuantizer(4, 2, 0.25, decay=0.9).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(300):
            quantizer(draw())
    found = quantizer.embedding.weight
    assert found.dtype == torch.float32
    assert torch.cdist(centres, found).min(1).values.max() < 0.02
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    quantizer.eval()
    for _ in range(3):
        quantizer(draw())
        quantizer.codes_of(draw())
    quantizer.train().codes_of(draw())
    assert all(torch.equal(value, before[key]) for key, value in quantizer.state_dict().items())
    assert list(before) == ["embedding.weight", "embedding.cluster_size", "embedding.embed_avg"]


def test_latents_that_are_not_finite_do_not_affect_the_averages() -> None:
    latent = torch.randn(1, 3, 50)
    spoiled = latent.clone()
    spoiled[0, 1, 7], spoiled[0, 0, 8] = torch.nan, torch.inf
    codebooks = []
    for seen in (spoiled, latent[:, :, [i for i in range(50) if i not in (7, 8)]]):
        torch.manual_seed(1)
        quantizer = EMAVectorQuantizer(8, 3, 0.25).train()
        quantizer(seen)
        codebooks.append(quantizer.state_dict())
    for key in codebooks[0]:
        torch.testing.assert_close(codebooks[0][key], codebooks[1][key])


def test_averages_in_reduced_precision_are_rejected() -> None:
    quantizer = EMAVectorQuantizer(8, 3, 0.25).bfloat16()
    with pytest.raises(RuntimeError, match=r"averages are torch\.bfloat16, in which steps of"):
        quantizer.train()(torch.randn(1, 3, 5))
    assert quantizer.eval()(torch.randn(1, 3, 5)).vectors.dtype == torch.float32
    EMAVectorQuantizer(8, 3, 0.25).double().train()(torch.randn(1, 3, 5))


RANK = """
import sys, torch
from tokpipe.models import EMAVectorQuantizer
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
quantizer, latent = EMAVectorQuantizer(8, 3, 0.25).train(), torch.randn(4, 3, 50)
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
)
for _ in range(3):
    quantizer(latent[2 * rank : 2 * rank + 2])
torch.save(quantizer.state_dict(), f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_ranks_move_their_codebooks_as_one_rank_with_all_latents_would(tmp_path: Path) -> None:
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([sys.executable, "-c", RANK, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    torch.manual_seed(0)
    alone, latent = EMAVectorQuantizer(8, 3, 0.25).train(), torch.randn(4, 3, 50)
    for _ in range(3):
        alone(latent)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for key, value in alone.state_dict().items():
        assert torch.equal(states[0][key], states[1][key])
        torch.testing.assert_close(states[0][key], value)


def test_gumbel_draws_noise_only_in_a_training_forward() -> None:
    quantizer, latent = GumbelQuantizer(8, 4, 64), torch.randn(2, 8, 3, 10, 10)
    wanted = quantizer.proj(latent.flatten(2, 3)).argmax(1).view(2, 3, 10, 10)
    state = torch.get_rng_state()
    for training in (True, False):
        assert torch.equal(quantizer.train(training).codes_of(latent), wanted)
    found = quantizer(latent)
    assert torch.equal(found.codes, wanted)
    assert torch.equal(found.vectors, quantizer.vectors_of(wanted))
    assert torch.equal(torch.get_rng_state(), state)
    quantizer.train()
    first, second = quantizer(latent), quantizer(latent)
    assert not torch.equal(first.codes, second.codes)
    assert torch.equal(first.vectors, quantizer.vectors_of(first.codes))


@pytest.mark.parametrize("straight_through", [True, False])
def test_gumbel_gradients_are_those_of_the_softmax(straight_through: bool) -> None:
    """Against PyTorch's own function, which draws the same noise from the same state."""
    quantizer = GumbelQuantizer(3, 2, 5, straight_through=straight_through, temp_init=0.7).train()
    latent, weights = torch.randn(1, 3, 40), torch.randn(1, 2, 40)
    for temp in (None, 2.0):
        quantizer.zero_grad()
        torch.manual_seed(3)
        found = quantizer(latent, temp=temp)
        (found.vectors * weights).sum().backward()
        gradients = [p.grad.clone() for p in quantizer.parameters() if p.grad is not None]
        quantizer.zero_grad()
        torch.manual_seed(3)
        logits = quantizer.logits_of(latent).movedim(1, -1)
        chosen = F.gumbel_softmax(logits, tau=temp or 0.7, hard=straight_through, dim=-1)
        vectors = (chosen @ quantizer.embed.weight).movedim(-1, 1)
        (vectors * weights).sum().backward()
        torch.testing.assert_close(found.vectors, vectors)
        assert torch.equal(found.codes, chosen.argmax(-1))
        assert len(gradients) == 3
        for gradient, parameter in zip(gradients, quantizer.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)


@pytest.mark.parametrize("training", [True, False])
def test_remapped_gumbel_only_uses_the_entries_in_use(training: bool) -> None:
    quantizer = GumbelQuantizer(8, 4, 40, remap=USED).train(training)
    latent, used = torch.randn(2, 8, 10, 10), torch.tensor(USED)
    codes = quantizer.codes_of(latent)
    logits = quantizer.proj(latent)[:, used]
    assert torch.equal(codes, logits.argmax(1))
    found = quantizer(latent)
    entries = quantizer.embed.weight[used[found.codes]].movedim(-1, 1)
    assert torch.equal(found.vectors, entries)
    shares = logits.softmax(1)
    wanted = 5e-4 * (shares * (shares * 40 + 1e-10).log()).sum(1).mean()
    torch.testing.assert_close(found.loss, wanted)
    assert quantizer.codebook_size == 5
    found.vectors.sum().backward()
    assert quantizer.embed.weight.grad is not None
    assert set(quantizer.embed.weight.grad.abs().sum(1).nonzero().flatten().tolist()) <= set(USED)
