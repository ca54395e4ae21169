from __future__ import annotations

import itertools
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokpipe.chunks import plan_chunks
from tokpipe.config.job import ChunkingConfig
from tokpipe.types import ChunkSpan

WHOLE = ChunkingConfig(policy="whole")

# (temporal stride r, latent frames after a chunk's first k, overlap m < k)
GRIDS = [
    (r, k, m) for r, k, m in itertools.product((1, 2, 4, 8), (1, 2, 4, 5), (0, 1, 2, 4)) if m < k
]


def chunking(policy: Literal["independent", "overlap"], r: int, k: int, m: int) -> ChunkingConfig:
    return ChunkingConfig(policy=policy, chunk_frames=1 + r * k, overlap_latents=m)


def kept_groups(span: ChunkSpan, r: int, num_frames: int) -> list[list[int]]:
    """The frames that each kept latent frame of a chunk stands for, repeats left out.

    This is what the encoder does: its first latent frame is its first frame, latent frame j the
    r frames that end with its frame r * j.
    """
    start = span.first_frame - span.num_context_frames
    latents = 1 + (span.num_input_frames - 1) // r
    groups = [[start]] + [
        list(range(start + r * (j - 1) + 1, start + r * j + 1)) for j in range(1, latents)
    ]
    kept = groups[span.num_dropped_latents :]
    return [[frame for frame in group if frame < num_frames] for group in kept]


def check_plan(num_frames: int, config: ChunkingConfig, r: int) -> list[list[int]]:
    """Check what holds under every policy; return the kept groups of the whole clip."""
    spans = plan_chunks(num_frames, config, r)
    assert [span.index for span in spans] == list(range(len(spans)))
    kept = []
    for span in spans:
        groups = kept_groups(span, r, num_frames)
        assert (span.num_input_frames - 1) % r == 0
        assert span.num_frames >= 1
        assert 0 <= span.num_pad_frames < r
        assert all(groups), "a kept latent frame stands for repeats alone"
        assert list(itertools.chain(*groups)) == list(
            range(span.first_frame, span.first_frame + span.num_frames)
        ), "kept latent frames and the real frames of the span differ"
        assert span.first_is_image == (span.num_dropped_latents == 0)
        assert span.num_pad_frames == 0 or span is spans[-1]
        kept += groups
    assert list(itertools.chain(*kept)) == list(range(num_frames)), (
        "a frame is lost or stands twice"
    )
    return kept


@pytest.mark.parametrize(("r", "k", "m"), GRIDS)
def test_every_clip_up_to_200_frames_is_cut_without_loss_or_repetition(
    r: int, k: int, m: int
) -> None:
    for num_frames in range(1, 201):
        check_plan(num_frames, chunking("independent", r, k, m), r)
        overlapping = check_plan(num_frames, chunking("overlap", r, k, m), r)
        whole = check_plan(num_frames, WHOLE, r)
        assert overlapping == whole, "overlap must give the grid that whole gives"
        assert len(whole) == 1 + -(-(num_frames - 1) // r)


@settings(deadline=None)
@given(
    num_frames=st.integers(1, 3_000),
    r=st.sampled_from([1, 2, 4, 8, 16]),
    k=st.integers(1, 40),
    data=st.data(),
)
def test_long_clips_are_cut_without_loss_or_repetition(
    num_frames: int, r: int, k: int, data: st.DataObject
) -> None:
    m = data.draw(st.integers(0, k - 1))
    check_plan(num_frames, chunking("independent", r, k, m), r)
    overlapping = check_plan(num_frames, chunking("overlap", r, k, m), r)
    assert overlapping == check_plan(num_frames, WHOLE, r)


@pytest.mark.parametrize(("r", "k", "m"), GRIDS)
def test_overlapping_chunks_start_on_multiples_of_the_stride(r: int, k: int, m: int) -> None:
    spans = plan_chunks(200, chunking("overlap", r, k, m), r)
    starts = [span.first_frame - span.num_context_frames for span in spans]
    assert starts == [index * r * (k - m) for index in range(len(spans))]
    assert {span.num_input_frames for span in spans[:-1]} <= {1 + r * k}
    for span in spans[1:]:
        assert (span.num_context_frames, span.num_dropped_latents) == (1 + r * m, 1 + m)


def test_a_tail_is_filled_to_the_next_length_the_encoder_takes() -> None:
    config = ChunkingConfig(chunk_frames=17)
    tails = [plan_chunks(17 + n, config, 4)[-1].num_input_frames for n in range(1, 18)]
    assert tails == [1] + [5] * 4 + [9] * 4 + [13] * 4 + [17] * 4


def test_plans_read_as_the_design_says() -> None:
    assert plan_chunks(20, ChunkingConfig(chunk_frames=17), 4) == (
        ChunkSpan(0, 0, 17, 0, 0, 0, True),
        ChunkSpan(1, 17, 3, 2, 0, 0, True),
    )
    overlap = ChunkingConfig(policy="overlap", chunk_frames=17, overlap_latents=1)
    assert plan_chunks(20, overlap, 4) == (
        ChunkSpan(0, 0, 17, 0, 0, 0, True),
        ChunkSpan(1, 17, 3, 1, 5, 2, False),
    )
    assert plan_chunks(20, WHOLE, 4) == (ChunkSpan(0, 0, 20, 1, 0, 0, True),)


def test_settings_that_leave_the_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"chunk_frames=16 .* stride 4.* use 13 or 17"):
        plan_chunks(20, ChunkingConfig(chunk_frames=16), 4)
    with pytest.raises(ValueError, match=r"overlap_latents=4 leaves nothing new"):
        plan_chunks(20, ChunkingConfig(policy="overlap", chunk_frames=17, overlap_latents=4), 4)
    with pytest.raises(ValueError, match="0 frames has no chunks"):
        plan_chunks(0, WHOLE, 4)
    with pytest.raises(ValueError, match="temporal_stride=0"):
        plan_chunks(5, WHOLE, 0)
