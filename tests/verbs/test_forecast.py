"""What ``tokpipe plan`` says before a job, against what its stages then make of the same videos."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.end_to_end.jobs import files, write_job, write_video
from tests.formats.formats_helpers import encoded_clip, receipt_of
from tests.formats.test_job_record import record
from tokpipe.cli import main
from tokpipe.config import JobConfig, load_job
from tokpipe.errors import ConfigError
from tokpipe.formats.job_record import write_once
from tokpipe.formats.manifest import ManifestEntry, append
from tokpipe.stages.chunks import pieces_of
from tokpipe.stages.decode import DecodeStage
from tokpipe.stages.encode import EncodeStage
from tokpipe.storage import open_store
from tokpipe.telemetry.account import Account
from tokpipe.types import DecodedClip, EncodedClip, Failed, Rejected, WorkItem
from tokpipe.verbs.forecast import Forecast, _estimate, forecast

LENGTHS = (1, 2, 8, 9, 10, 18, 21, 30)
"""Frames of the videos: one and several clips of at most nine, and rests of every kind."""

POLICIES: list[dict[str, Any]] = [
    {"policy": "independent", "chunk_frames": 5},
    {"policy": "overlap", "chunk_frames": 9, "overlap_latents": 1},
    {"policy": "whole"},
    {"policy": "streaming", "chunk_frames": 5},
]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number, num_frames in enumerate(LENGTHS):
        write_video(folder / f"{number}.mp4", num_frames, seed=number)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def job_of(videos: Path, folder: Path, **changes: Any) -> JobConfig:
    return load_job(write_job(folder / "job.yaml", files(videos), str(folder / "out"), **changes))


def tokenized(job: JobConfig, videos: Path, scratch: Path) -> dict[str, int]:
    """What the stages make of all videos, clip by clip and piece by piece."""
    scratch.mkdir()
    decode = DecodeStage(job.sampling, job.frames, job.decode, job.storage, pieces_of(job))
    decode.setup(scratch)
    encode = EncodeStage(job.tokenizer, job.chunking, job.encode)
    encode.setup("cpu", None)
    seen = dict.fromkeys(("clips", "rejected", "frames", "chunks", "codes"), 0)
    for row, path in enumerate(sorted(videos.iterdir())):
        part, state, is_last = 0, None, False
        while not is_last:
            streams = decode.pieces is not None
            item = WorkItem(row, f"{row:032x}", str(path))
            item = replace(item, piece=part) if streams else replace(item, segment=part)
            (clip,) = decode.process([item])
            if not isinstance(clip, DecodedClip):
                assert isinstance(clip, Rejected)
                seen["rejected"] += 1
                is_last = clip.ref.num_segments <= part + 1
            else:
                codes: EncodedClip | Rejected | Failed
                if streams:
                    codes, state = encode.process_piece(clip, state)
                    is_last = clip.piece.is_last
                    seen["clips"] += is_last
                else:
                    codes = encode.process([clip])[0]
                    is_last = clip.ref.num_segments == part + 1
                    seen["clips"] += 1
                assert isinstance(codes, EncodedClip)
                seen["frames"] += len(clip.frames)
                seen["chunks"] += len(codes.chunks)
                seen["codes"] += codes.num_codes
            part += 1
    decode.close()
    return seen


def told(found: Forecast) -> dict[str, int]:
    names = ("clips", "rejected", "frames", "chunks", "codes")
    return {name: int(getattr(found, name).value) for name in names}


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("chunking", POLICIES, ids=lambda one: one["policy"])
def test_what_is_told_is_what_the_stages_make(
    chunking: dict[str, Any], least: int, videos: Path, tmp_path: Path
) -> None:
    job = job_of(
        *(videos, tmp_path),
        chunking=chunking,
        sampling={"fps": 8, "max_clip_frames": 9, "min_clip_frames": least},
        tokenizer={
            "norm": "frame",
            "encoder": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 4},
            "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 8]},
        },
    )
    found = forecast(job)
    assert told(found) == tokenized(job, videos, tmp_path / "scratch")
    assert found.reasons["not_a_video"] == 1
    assert not list((tmp_path / "out").glob("*")), "nothing is written"


def test_a_sample_is_enough_for_a_good_guess(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos, tmp_path)
    truth = forecast(job).codes.value
    guesses = [forecast(job, num_sampled=5, seed=seed).codes for seed in range(12)]
    assert len({guess.value for guess in guesses}) > 1
    sure = [abs(guess.value - truth) <= guess.margin for guess in guesses]
    assert np.mean(sure) >= 0.7
    assert all(guess.margin > 0 and "±" in guess.text() for guess in guesses)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50), st.integers(0, 10**8))
def test_estimates_are_exact_where_every_row_was_seen(values: list[int], more: int) -> None:
    assert _estimate(values, len(values)).value == sum(values)
    assert _estimate(values, len(values)).margin == 0
    guess = _estimate(values, len(values) + more)
    assert guess.value == pytest.approx(sum(values) / len(values) * (len(values) + more))


def finished(uri: str, job: JobConfig) -> None:
    """An output of one clip of 32 codes, which took an encoder 4 s."""
    store = open_store(uri, job.storage)
    write_once(store, record(num_rows=1))
    receipt = receipt_of("s", [encoded_clip(0, [5, 5], (2, 4))], b"x" * 64)
    use = Account(paid_s=4, useful_s=3)
    assert append(
        store, ManifestEntry(0, "d", "2026-01-01T00:00:00+00:00", (receipt,), account=use)
    )


def test_cost_is_that_of_an_output_like_it(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos, tmp_path)
    finished(str(tmp_path / "trial"), job)
    found = forecast(job, like=str(tmp_path / "trial"), price_per_hour=2)
    assert found.speed is not None
    assert found.encoder_s == pytest.approx(found.codes.value / (32 / 4))
    assert found.size_bytes == pytest.approx(2 * found.codes.value)
    assert found.cost == pytest.approx(found.codes.value / 8 / 3600 * 2)
    assert forecast(job, codes_per_s=10).encoder_s == pytest.approx(found.codes.value / 10)
    assert forecast(job).encoder_s is None
    with pytest.raises(ConfigError, match="no codes whose cost is known"):
        forecast(job, like=str(tmp_path / "nothing"))


def test_of_a_job_that_is_done_the_error_is_told(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = job_of(videos, tmp_path)
    finished(job.output.uri, job)
    assert main(["plan", str(tmp_path / "job.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "the error of this prediction" in printed
    assert "1 clips (+1400.0%)" in printed
    assert main(["plan", str(tmp_path / "job.yaml"), "--json", "--sample", "3"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert (line["num_sampled"], line["actual"]["num_codes"]) == (3, 32)
