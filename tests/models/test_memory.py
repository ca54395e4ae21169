"""The memory that is predicted for a GPU, by running encoders on tensors without data."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.stage import tokenizer_config
from tests.models.adapter_helpers import small_native
from tests.models.test_adapters_emu3 import CONFIG as EMU3
from tests.models.test_adapters_movqgan import CONFIG as MOVQGAN
from tests.models.test_adapters_vidtok import vidtok
from tests.models.test_adapters_vqgan import LFQ, SMALL, VIDEO, vqgan
from tokpipe.config.native_parts import (
    Encoder3DConfig,
    FSQConfig,
    GumbelConfig,
    LFQConfig,
    VQConfig,
)
from tokpipe.config.tokenizer import NativeConfig, TokenizerConfig
from tokpipe.models.group_norm import MetaKernels
from tokpipe.models.memory import LiveBytes, peak_bytes
from tokpipe.models.operations import attention
from tokpipe.models.tokenizers import build_on_meta

FSQ = FSQConfig(kind="fsq", levels=(8, 8, 8, 8))
CODEBOOK: dict[str, Any] = {"codebook_size": 300, "codebook_dim": 8}
WITH_ATTENTION = NativeConfig(
    encoder=Encoder3DConfig(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, temporal_compress_times=2,
        resolution=64, attn_resolutions=(64, 32),
    ),
    quantizer=FSQ,
)  # fmt: skip
KINDS: dict[str, tuple[TokenizerConfig, int]] = {
    "fsq": (small_native(FSQ), 9),
    "lfq": (small_native(LFQConfig(kind="lfq", dim=10)), 9),
    "vq": (small_native(VQConfig(kind="vq", **CODEBOOK)), 9),
    "ema_vq": (small_native(VQConfig(kind="ema_vq", **CODEBOOK)), 9),
    "gumbel": (small_native(GumbelConfig(kind="gumbel", **CODEBOOK, latent_dim=16)), 9),
    "frame norms": (small_native(FSQ, norm="frame"), 9),
    "patches": (small_native(FSQ, patch_size=2), 9),
    "attention": (WITH_ATTENTION, 9),
    "movqgan": (MOVQGAN, 3),
    "vqgan": (vqgan(quantizer="vq_cosine", **SMALL), 3),
    "open-magvit2": (vqgan(**LFQ), 3),
    "open-magvit2 video": (vqgan(**VIDEO), 5),
    "vidtok": (vidtok(), 9),
    "emu3": (EMU3, 4),
}
PUBLISHED = tokenizer_config(type("Setting", (), {"of": lambda self, full, tiny: full})())


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_bytes_are_counted_while_something_refers_to_them(device: str) -> None:
    given = torch.zeros(1000, device=device)
    with LiveBytes() as counted:
        counted.follow(given)
        assert counted.peak == 4000
        first = given + 1  # 8000 are held
        second = first.view(10, 100)[:5].T.mul_(2)
        assert counted.peak == 8000, "views, and what is computed in place, are no new memory"
        third = second.double()  # 4000 more
        assert counted.peak == 12_000
        del first
        third = third.sum()  # frees one of 4000 after it made one of 8
        assert counted.peak == 12_008, "a view keeps all of its memory"
        del second
        assert (given[:250] + third).numel() == 250
    assert counted.peak == 12_008


def test_the_count_is_that_of_pytorchs_own_profiler() -> None:
    layers = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 32), nn.Softmax(-1))
    x = torch.randn(50, 64)
    with torch.inference_mode(), LiveBytes() as counted:
        layers(x)
    with (
        torch.inference_mode(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
    ):
        layers(x)
    live = peak = 0
    for event in profiled.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    assert counted.peak == peak > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_kind_is_predicted_and_grows_with_the_batch(
    kind: str, dtype: torch.dtype
) -> None:
    config, frames = KINDS[kind]
    tokenizer = build_on_meta(config, dtype)
    one, two, eight = (peak_bytes(tokenizer, (rows, frames, 64, 64)) for rows in (1, 2, 8))
    assert eight - one == 7 * (two - one) > 0
    weights = sum(p.numel() * p.element_size() for p in tokenizer.parameters())
    assert one > weights + frames * 64 * 64 * 3 * 5, "pixels as integers and as floats"


def test_the_published_encoder_takes_what_a_gpu_was_seen_to_hold() -> None:
    tokenizer = build_on_meta(PUBLISHED, torch.bfloat16)
    found = [peak_bytes(tokenizer, (rows, 17, 256, 256)) / 1e9 for rows in (1, 4, 8)]
    assert found == pytest.approx([1.6, 6.0, 11.8], rel=0.05)


def test_a_streamed_chunk_holds_the_states_before_and_after_it() -> None:
    tokenizer = build_on_meta(small_native(FSQ, norm="frame"), torch.float32)
    whole, piece = (peak_bytes(tokenizer, (1, 9, 64, 64), in_pieces=one) for one in (False, True))
    with torch.device("meta"):
        _, state = tokenizer.encode_piece(torch.zeros(1, 9, 64, 64, 3, dtype=torch.uint8), None)
    num_bytes = sum(one.nbytes for one in state.tensors)
    assert whole < piece < whole + 2 * num_bytes


def test_attention_holds_no_scores() -> None:
    q = torch.empty(1, 1, 4096, 32, device="meta")
    with torch.inference_mode(), LiveBytes() as counted:
        counted.follow(q)
        assert attention(q, q, q).shape == q.shape
    assert counted.peak == 2 * q.nbytes


def test_a_meta_norm_is_in_the_place_of_the_kernels_for_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen, real = list[Tensor](), MetaKernels.add_triton

    def add(x: Tensor, h: Tensor, *rest: Any, **more: Any) -> tuple[Tensor, None]:
        seen.append(x)
        return real(x, h, *rest, **more)

    monkeypatch.setattr(MetaKernels, "add_triton", add)
    peak_bytes(build_on_meta(small_native(FSQ), torch.bfloat16), (1, 9, 64, 64))
    assert len(seen) == 4, "every residual block"
