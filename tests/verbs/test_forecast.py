"""``tokpipe plan`` against what a job's stages make of the same videos."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.end_to_end.jobs import WITH_DECODER, files, run_without_ray, write_job, write_video
from tests.pictures import drawn, write_picture
from tests.stages.test_fit import PUBLISHED
from tokpipe.config import JobConfig, load_job
from tokpipe.errors import ConfigError
from tokpipe.reader import open_output
from tokpipe.stages.fit import SHOWN
from tokpipe.telemetry.human import json_line
from tokpipe.verbs.forecast import Estimate, Forecast

LENGTHS = (1, 2, 8, 9, 10, 18, 21, 30)
"""Frames of each video: one or several clips of at most nine, and remainders of every kind."""

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
    write_picture(folder / "picture.png", drawn()).rename(folder / "picture.mp4")
    return folder


def job_of(videos: Path, folder: Path, **changes: Any) -> JobConfig:
    source = {**files(videos), "media": "both"}
    return load_job(write_job(folder / "job.yaml", source, str(folder / "out"), **changes))


@pytest.mark.parametrize("least", [1, 3])
@pytest.mark.parametrize("chunking", POLICIES, ids=lambda one: one["policy"])
def test_a_forecast_from_all_videos_is_what_the_stages_make(
    chunking: dict[str, Any], least: int, videos: Path, tmp_path: Path
) -> None:
    sampling = {"fps": 8, "max_clip_frames": 9, "min_clip_frames": least}
    changes = {"chunking": chunking, "sampling": sampling, "tokenizer": WITH_DECODER}
    job = job_of(videos, tmp_path, max_rejected_fraction=1.0, **changes)
    found = Forecast(job)
    assert found.reasons["not_a_video"] == 1
    assert not list((tmp_path / "out").glob("*")), "a forecast writes nothing"
    run_without_ray(job)
    made = open_output(job.output.uri).totals
    assert (found.clips.value, found.rejected.value) == (made.num_clips, made.num_rejected)
    assert (found.frames.value, found.chunks.value) == (made.num_frames, made.num_rows)
    assert found.codes.value == made.num_codes


def test_the_margin_of_a_sample_usually_holds_the_truth(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos, tmp_path)
    truth = Forecast(job).codes.value
    found = [Forecast(job, num_sampled=5, seed=seed).codes for seed in range(12)]
    assert len({one.value for one in found}) > 1
    assert np.mean([abs(one.value - truth) <= one.margin for one in found]) >= 0.7
    assert all(one.margin > 0 and "±" in one.text() for one in found)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50), st.integers(0, 10**8))
def test_estimates_are_exact_if_every_row_is_sampled(values: list[int], more: int) -> None:
    assert Estimate.of(values, len(values)).value == sum(values)
    assert Estimate.of(values, len(values)).margin == 0
    estimate = Estimate.of(values, len(values) + more)
    assert estimate.value == pytest.approx(sum(values) / len(values) * (len(values) + more))


def test_time_and_cost_follow_the_speed_of_an_encoder(videos: Path, tmp_path: Path) -> None:
    job = job_of(videos, tmp_path)
    found = Forecast(job, codes_per_s=8, price_per_hour=2)
    assert found.encoder_s == pytest.approx(found.codes.value / 8)
    assert found.cost == pytest.approx(found.codes.value / 8 / 3600 * 2)
    assert "at 2 per hour" in "\n".join(found.lines())
    assert (Forecast(job).encoder_s, Forecast(job).cost) == (None, None)


def test_a_decoder_that_is_not_installed_is_explained(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decord.py").write_text("raise ImportError('not for this machine')")
    monkeypatch.syspath_prepend(tmp_path)
    job = job_of(videos, tmp_path, decode={"backend": "decord"})
    with pytest.raises(ConfigError, match="decord does not load"):
        Forecast(job)


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_job_for_gpus_is_told_what_they_hold(device: str, videos: Path, tmp_path: Path) -> None:
    changes = {"tokenizer": PUBLISHED, "frames": {"buckets": [[32, 32], [1080, 1920]]}}
    clips = {"sampling": {"max_clip_frames": 17}, "chunking": {"chunk_frames": 17}}
    job = job_of(videos, tmp_path, **changes, **clips, encode={"device": device})
    found = Forecast(job, num_sampled=1)
    lines = [line.strip() for line in found.lines() if "of a GPU" in line]
    if device == "cpu":
        assert not lines
        assert not found.memory
        return
    small, large = json.loads(json_line(found.to_dict()))["memory"]
    assert lines == [small["text"], large["text"]]
    assert small["batch_chunks"] == dict.fromkeys(SHOWN, 8)
    assert (large["shape"], large["batch_chunks"]["L4"]) == ([17, 1080, 1920], 0)
    assert "L4 none, but chunks of 17x" in large["text"]
