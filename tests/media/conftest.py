from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel

from tests.videos import FASTSTART, FRAGMENTED, HEVC, VP9, VideoFolder
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.media.decoder import VideoDecoder

MakeDecoder = Callable[..., VideoDecoder]
"""The fixture ``make_decoder``, which takes settings of a job as keywords."""

M = TypeVar("M", bound=BaseModel)

FORMATS: dict[str, dict[str, Any]] = {
    "index-first.mp4": FASTSTART,
    "index-last.mp4": {},
    "fragmented.mp4": FRAGMENTED,
    "clip.mkv": {},
    "clip.webm": VP9,
    "clip.ts": {},
    "clip.avi": {"codec": "mpeg4"},
    "hevc.mp4": HEVC,
}
"""Settings of ``write_video``, by file name."""

DEFAULTS: dict[str, Any] = {
    "deadline_s": 300.0,
    "memory_bytes": 2**31,
    "fps": None,
    "max_clip_frames": 1000,
    "min_clip_frames": 1,
    "fit": "stretch",
    "size": (48, 64),
}


def section(model: type[M], settings: dict[str, Any]) -> M:
    """The settings that belong to one section of a job."""
    return model.model_validate({k: v for k, v in settings.items() if k in model.model_fields})


@pytest.fixture(scope="module")
def make_decoder() -> Iterator[MakeDecoder]:
    """Make decoders that keep every frame by default; equal settings share one per module."""
    made: dict[str, VideoDecoder] = {}

    def make(*, backends: Sequence[str] | None = None, **changes: Any) -> VideoDecoder:
        settings = {**DEFAULTS, **changes}
        key = f"{backends} {settings}"
        if key not in made:
            made[key] = VideoDecoder(
                section(DecodeConfig, settings),
                section(SamplingConfig, settings),
                section(FramesConfig, settings),
                backends=backends,
            )
        return made[key]

    yield make
    for decoder in made.values():
        decoder.close()


@dataclass(frozen=True)
class Lab(VideoFolder):
    """A folder for the videos of one test, and decoders for them."""

    decoder: MakeDecoder


@pytest.fixture
def lab(tmp_path: Path, make_decoder: MakeDecoder) -> Lab:
    return Lab(tmp_path, make_decoder)
