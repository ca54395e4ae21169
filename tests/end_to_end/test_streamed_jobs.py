"""Policy ``streaming``: long videos in pieces, each encoded from the state of the one before."""

import contextlib
import os
import signal
import subprocess
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.end_to_end.jobs import (
    TOKENIZER,
    WITH_DECODER,
    assert_complete,
    files,
    finish,
    rejections_of,
    run,
    run_well,
    start,
    stop,
    wait_until,
    write_job,
    write_video,
)
from tests.end_to_end.processes import pids_of
from tokpipe.config import load_job
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.reader import open_output
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import Cut, DecodedClip, WorkItem

NUM_FRAMES = {"long0": 150, "long1": 121, "long2": 62, "short0": 20, "short1": 1, "short2": 9}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, frames) in enumerate(NUM_FRAMES.items()):
        write_video(folder / f"{name}.mp4", frames, seed)
    return folder


def job(path: Path, videos: Path, max_clip_frames: int = 17, **changes: Any) -> Path:
    """Pieces of two chunks; 17 frames in the first and 16 in each later one."""
    settings: dict[str, Any] = {
        "sampling": {"fps": 8, "max_clip_frames": max_clip_frames},
        "tokenizer": WITH_DECODER,
        "chunking": {"policy": "streaming", "chunk_frames": 9},
        **changes,
    }
    return write_job(path, files(videos), str(path.parent / path.stem), **settings)


Codes = dict[str, NDArray[Any]]
"""(t, h, w) codes by the name of the video."""


@pytest.fixture(scope="module")
def whole(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Codes:
    """The codes of each video, encoded in one go."""
    folder = tmp_path_factory.mktemp("whole")
    config = load_job(job(folder / "job.yaml", videos))
    tokenizer = build_tokenizer(config.tokenizer, None)
    cut = Cut(1000, 1000)
    stage = DecodeStage(config.sampling, config.frames, config.decode, config.storage, cut)
    codes = {}
    with contextlib.closing(stage):
        stage.setup()
        for name, num_frames in NUM_FRAMES.items():
            (clip,) = stage.process([WorkItem(0, name, str(videos / f"{name}.mp4"))])
            assert isinstance(clip, DecodedClip)
            assert len(clip.frames) == num_frames
            padding = -(num_frames - 1) % 4
            frames = np.concatenate([clip.frames, *[clip.frames[-1:]] * padding])
            codes[name] = tokenizer.encode(torch.from_numpy(frames).unsqueeze(0))[0].numpy()
    return codes


def codes_by_name(job: Path) -> Codes:
    found = defaultdict(list)
    for clip in open_output(load_job(job).output.uri).clips():
        found[Path(clip.source_uri).stem].append(clip.codes)
    assert all(len(clips) == 1 for clips in found.values()), "a video became more than one clip"
    return {name: clips[0] for name, clips in found.items()}


def assert_same(found: Codes, wanted: Codes) -> None:
    assert found.keys() == wanted.keys()
    for name, codes in wanted.items():
        np.testing.assert_array_equal(found[name], codes)


@pytest.mark.ray
def test_codes_depend_neither_on_the_length_of_pieces_nor_on_a_video_that_is_damaged(
    whole: Codes, videos: Path, ray_address: str, tmp_path: Path
) -> None:
    damaged = videos / "long1.mp4"
    good = damaged.read_bytes()
    begin, end = good.index(b"mdat"), good.index(b"moov")
    at = begin + (end - begin) * 3 // 4
    damaged.write_bytes(good[:at] + b"\xff" * 200 + good[at + 200 :])
    tried = job(tmp_path / "job.yaml", videos, max_clip_frames=60, max_rejected_fraction=1.0)
    try:
        run_well(tried, ray_address)
    finally:
        damaged.write_bytes(good)
    assert_complete(tried)
    assert rejections_of(tried) == {str(damaged): "corrupt"}
    assert_same(codes_by_name(tried), {k: v for k, v in whole.items() if k != "long1"})

    # The length of pieces is not part of the fingerprint.
    again = job(tried, videos, max_clip_frames=30, max_rejected_fraction=1.0)
    assert "done" in run_well(again)


def await_piece(driver: subprocess.Popen[str], dead: Sequence[int] = ()) -> list[int]:
    """Wait until a piece is being encoded, and not by one of the ``dead``; return all encoders.

    Ray names a process after the method that it runs.
    """

    def is_encoding() -> bool:
        return not set(pids_of("EncodeActor.work")) <= set(dead)

    wait_until(lambda: is_encoding() or driver.poll() is not None, every_s=0.01)
    assert driver.poll() is None, f"ended too early: {finish(driver)}"
    return pids_of("EncodeActor")


@pytest.mark.ray
def test_killed_workers_and_drivers_change_no_code(
    whole: Codes, videos: Path, ray_address: str, tmp_path: Path
) -> None:
    tried = job(tmp_path / "job.yaml", videos)
    driver = start(tried, ray_address)
    encoders = await_piece(driver)
    kill_all(encoders)
    await_piece(driver, dead=encoders)
    decoders = pids_of("DecodeActor")
    assert decoders, "no decoder runs"
    kill_all(decoders)
    wait_until(lambda: not set(pids_of("DecodeActor")) <= set(decoders))
    await_piece(driver)
    stop(driver, signal.SIGKILL)
    run_well(tried, ray_address)
    assert_complete(tried)
    assert_same(codes_by_name(tried), whole)


def kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_tokenizer_that_sees_the_future_is_rejected_with_the_reason(
    videos: Path, tmp_path: Path
) -> None:
    code, printed = run(job(tmp_path / "job.yaml", videos, tokenizer=TOKENIZER))
    assert code == 2, printed
    assert "chunking.policy streaming" in printed
    assert "codes depend on later frames, which may not be decoded yet" in printed
