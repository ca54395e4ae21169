import itertools
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokpipe.config.job import ChunkingConfig, JobConfig
from tokpipe.config.traits import TokenizerTraits
from tokpipe.stages.chunks import pieces_of, plan_chunks
from tokpipe.types import ChunkSpan, Cut

Policy = Literal["independent", "overlap", "streaming"]

WHOLE = ChunkingConfig(policy="whole")

# (temporal stride r, latent frames after a chunk's first k, overlap m < k)
GRIDS = [
    (r, k, m) for r, k, m in itertools.product((1, 2, 4, 8), (1, 2, 4, 5), (0, 1, 2, 4)) if m < k
]


def traits(r: int, *, groups: bool = False, chunk_frames: int | None = None) -> TokenizerTraits:
    """A tokenizer whose first latent frame covers one frame, or ``r`` frames like the others."""
    return TokenizerTraits(
        temporal_stride=r, first_frames=r if groups else 1, chunk_frames=chunk_frames,
        spatial_stride=8, codebook_size=10, why_not_streamable=None,
    )  # fmt: skip


def chunking(policy: Policy, tokenizer: TokenizerTraits, k: int, m: int = 0) -> ChunkingConfig:
    frames = tokenizer.num_frames(1 + k)
    return ChunkingConfig(policy=policy, chunk_frames=frames, overlap_latents=m)


def kept_groups(
    span: ChunkSpan, policy: str, tokenizer: TokenizerTraits, num_frames: int
) -> list[list[int]]:
    """The frames that each kept latent frame of a chunk covers, without padding.

    As in the encoder, the first latent frame covers the first frames and each later one the next
    ``r`` frames. A continued stream has no first latent frame.
    """
    first, r = tokenizer.first_frames, tokenizer.temporal_stride
    sizes = [] if policy == "streaming" and span.index else [first]
    others, lost = divmod(span.num_input_frames - sum(sizes), r)
    assert lost == 0, "the encoder would lose frames"
    frames = iter(range(span.first_frame - span.num_context_frames, 10**9))
    groups = [list(itertools.islice(frames, size)) for size in [*sizes, *[r] * others]]
    kept = groups[span.num_dropped_latents :]
    return [[frame for frame in group if frame < num_frames] for group in kept]


def check_plan(
    num_frames: int, config: ChunkingConfig, tokenizer: TokenizerTraits
) -> list[list[int]]:
    """Check what holds under every policy, and return the kept groups of the whole clip."""
    spans = plan_chunks(num_frames, config, tokenizer)
    assert [span.index for span in spans] == list(range(len(spans)))
    kept = []
    for span in spans:
        groups = kept_groups(span, config.policy, tokenizer, num_frames)
        assert span.num_frames >= 1
        assert 0 <= span.num_pad_frames < max(tokenizer.temporal_stride, tokenizer.first_frames)
        assert all(groups), "a kept latent frame covers only padding"
        assert list(itertools.chain(*groups)) == list(
            range(span.first_frame, span.first_frame + span.num_frames)
        )
        is_first = config.policy == "independent" or span.index == 0
        assert span.first_is_image == (is_first and tokenizer.first_frames == 1)
        assert span.num_pad_frames == 0 or span is spans[-1]
        kept += groups
    assert list(itertools.chain(*kept)) == list(range(num_frames)), "a frame is lost or repeated"
    return kept


@pytest.mark.parametrize("groups", [False, True], ids=["image first", "groups"])
@pytest.mark.parametrize(("r", "k", "m"), GRIDS)
def test_chunks_cover_each_frame_once_and_overlapping_ones_start_on_the_stride(
    r: int, k: int, m: int, groups: bool
) -> None:
    tokenizer = traits(r, groups=groups)
    spans = plan_chunks(100, chunking("overlap", tokenizer, k, m), tokenizer)
    starts = [span.first_frame - span.num_context_frames for span in spans]
    assert starts == [index * r * (k - m) for index in range(len(spans))]
    for num_frames in range(1, 101):
        check_plan(num_frames, chunking("independent", tokenizer, k), tokenizer)
        whole = check_plan(num_frames, WHOLE, tokenizer)
        for policy in ("overlap", "streaming"):
            found = check_plan(num_frames, chunking(policy, tokenizer, k, m), tokenizer)
            assert found == whole, f"{policy} and whole differ"
        assert len(whole) == 1 + -(-max(num_frames - tokenizer.first_frames, 0) // r)


def job(config: ChunkingConfig, tokenizer: TokenizerTraits, max_clip_frames: int) -> JobConfig:
    custom = {"kind": "custom", "implementation": "a:B", "declares": tokenizer.model_dump()}
    return JobConfig.model_validate(
        {
            "dataset": "test",
            "sources": ({"kind": "files", "uri": "*.mp4"},),
            "output": {"uri": "out"},
            "sampling": {"max_clip_frames": max_clip_frames},
            "frames": {"size": (64, 64)},
            "tokenizer": custom,
            "chunking": config.model_dump(),
        }
    )


@given(
    *(st.integers(1, 500), st.sampled_from([1, 2, 4]), st.booleans()),
    *(st.integers(1, 8), st.integers(0, 60)),
)
def test_chunks_of_pieces_equal_those_of_the_clip(
    num_frames: int, r: int, groups: bool, k: int, more: int
) -> None:
    tokenizer = traits(r, groups=groups)
    config = chunking("streaming", tokenizer, k)
    cut = pieces_of(job(config, tokenizer, config.chunk_frames + more))
    assert cut is not None
    assert max(cut.first, cut.later) <= config.chunk_frames + more
    bounds = [cut.bounds(part) for part in range(cut.num_parts(num_frames))]
    found = [
        span
        for start, stop in bounds
        for span in plan_chunks(min(stop, num_frames) - start, config, tokenizer, first_frame=start)
    ]
    assert tuple(found) == plan_chunks(num_frames, config, tokenizer)


def test_a_tokenizer_with_one_chunk_length_gets_only_that_length() -> None:
    config, exact = ChunkingConfig(chunk_frames=17), traits(4, chunk_frames=17)
    for num_frames in range(1, 60):
        spans = plan_chunks(num_frames, config, exact)
        assert {span.num_input_frames for span in spans} == {17}
        assert sum(span.num_frames for span in spans) == num_frames


@pytest.mark.parametrize(
    ("num_frames", "config", "groups", "spans"),
    [
        (20, {"chunk_frames": 17}, False, [(0, 0, 17, 0, 0, 0, True), (1, 17, 3, 2, 0, 0, True)]),
        (
            20, {"policy": "overlap", "chunk_frames": 17, "overlap_latents": 1}, False,
            [(0, 0, 17, 0, 0, 0, True), (1, 17, 3, 1, 5, 2, False)],
        ),
        (
            36, {"policy": "streaming", "chunk_frames": 17}, False,
            [(0, 0, 17, 0, 0, 0, True), (1, 17, 16, 0, 0, 0, False), (2, 33, 3, 1, 0, 0, False)],
        ),
        (20, {"policy": "whole"}, False, [(0, 0, 20, 1, 0, 0, True)]),
        (6, {"chunk_frames": 4}, True, [(0, 0, 4, 0, 0, 0, False), (1, 4, 2, 2, 0, 0, False)]),
    ],
)  # fmt: skip
def test_examples_of_every_policy(
    num_frames: int, config: dict[str, Any], groups: bool, spans: list[Any]
) -> None:
    found = plan_chunks(num_frames, ChunkingConfig.model_validate(config), traits(4, groups=groups))
    assert found == tuple(ChunkSpan(*span) for span in spans)


def test_only_streamed_clips_have_pieces_and_those_hold_a_chunk() -> None:
    tokenizer = traits(4)
    assert pieces_of(job(chunking("independent", tokenizer, 4), tokenizer, 65)) is None
    streaming = chunking("streaming", tokenizer, 4)
    with pytest.raises(ValueError, match=r"frames=16 is less than .*chunk_frames=17: use 17"):
        job(streaming, tokenizer, 16)
    assert pieces_of(job(streaming, tokenizer, 17)) == Cut(17, 16)
    with pytest.raises(ValueError, match=r"chunk_frames=1 leaves no frames .* use 5 or more"):
        job(chunking("streaming", tokenizer, 0), tokenizer, 17)
