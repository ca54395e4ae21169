from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.media.media_helpers import MakeDecoder
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.media.decoder import VideoDecoder


@pytest.fixture(scope="module")
def make_decoder() -> Iterator[MakeDecoder]:
    """Decoders that keep every frame unless told otherwise; one of a kind for a whole module."""
    made: dict[Any, VideoDecoder] = {}

    def make(
        *,
        backends: Sequence[str] | None = None,
        backend: str = "auto",
        on_damage: str = "reject",
        fps: float | None = None,
        max_clip_frames: int = 1000,
        min_clip_frames: int = 1,
        fit: str = "stretch",
        size: tuple[int, int] | None = (48, 64),
        buckets: tuple[tuple[int, int], ...] | None = None,
        deadline_s: float = 20.0,
        memory_bytes: int = 2**31,
    ) -> VideoDecoder:
        key = tuple(
            sorted((name, str(value)) for name, value in locals().items() if name != "made")
        )
        if key not in made:
            made[key] = VideoDecoder(
                DecodeConfig.model_validate(
                    {
                        "backend": backend,
                        "on_damage": on_damage,
                        "deadline_s": deadline_s,
                        "memory_bytes": memory_bytes,
                    }
                ),
                SamplingConfig(
                    fps=fps, max_clip_frames=max_clip_frames, min_clip_frames=min_clip_frames
                ),
                FramesConfig.model_validate({"size": size, "buckets": buckets, "fit": fit}),
                backends=backends,
            )
        return made[key]

    yield make
    for decoder in made.values():
        decoder.close()
