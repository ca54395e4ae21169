"""Policy ``streaming``: films in pieces, each from the state that the one before left."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.end_to_end.jobs import (
    Table,
    assert_complete,
    codes_of,
    files,
    finish,
    kill,
    rejections_of,
    run,
    run_well,
    start,
    wait_until,
    write_job,
    write_video,
)
from tests.end_to_end.processes import pids_of
from tokpipe.config import load_job
from tokpipe.formats.manifest import iter_entries
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import open_store
from tokpipe.types import Cut, DecodedClip, WorkItem

FILM_FRAMES = {"film0": 150, "film1": 121, "film2": 62}
SHORT_FRAMES = {"short0": 20, "short1": 1, "short2": 9}


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for seed, (name, frames) in enumerate({**FILM_FRAMES, **SHORT_FRAMES}.items()):
        write_video(folder / f"{name}.mp4", frames, seed)
    return folder


def job(path: Path, videos: Path, max_clip_frames: int = 17, **changes: Any) -> Path:
    """Pieces of two chunks; 17 frames in the first and 16 in each later one."""
    tokenizer = {
        "encoder": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 4},
        "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 8]},
        "norm": "frame",
    }
    settings: dict[str, Any] = {
        "sampling": {"fps": 8, "max_clip_frames": max_clip_frames},
        "tokenizer": tokenizer,
        "chunking": {"policy": "streaming", "chunk_frames": 9},
        **changes,
    }
    return write_job(path, files(videos), str(path.parent / path.stem), **settings)


@pytest.fixture(scope="module")
def undisturbed(videos: Path, ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job, run once in peace."""
    done = job(tmp_path_factory.mktemp("undisturbed") / "job.yaml", videos)
    run_well(done, ray_address)
    assert_complete(done)
    return done


def clip_ids(job: Path) -> dict[str, str]:
    """Name of the video -> id of its one clip."""
    config = load_job(job)
    store = open_store(config.output.uri, config.storage)
    refs = [ref for entry in iter_entries(store) for ref in entry.refs()]
    ids = {Path(ref.source_uri).stem: ref.clip_id for ref in refs}
    assert len(ids) == len(refs), "a video gave more than one clip"
    return ids


@pytest.mark.ray
def test_codes_are_those_of_the_clip_encoded_whole(
    undisturbed: Path, videos: Path, tmp_path: Path
) -> None:
    config, table = load_job(undisturbed), codes_of(undisturbed)
    tokenizer = build_tokenizer(config.tokenizer, None)
    stage = DecodeStage(
        config.sampling, config.frames, config.decode, config.storage, Cut(1000, 1000)
    )
    stage.setup(tmp_path)
    try:
        for name, clip_id in clip_ids(undisturbed).items():
            (clip,) = stage.process([WorkItem(0, clip_id, str(videos / f"{name}.mp4"))])
            assert isinstance(clip, DecodedClip)
            assert len(clip.frames) == {**FILM_FRAMES, **SHORT_FRAMES}[name]
            padding = -(len(clip.frames) - 1) % 4
            whole = np.concatenate([clip.frames, *[clip.frames[-1:]] * padding])
            wanted = tokenizer.encode(torch.from_numpy(whole).unsqueeze(0))[0].numpy()
            chunks = sorted((key, value) for key, value in table.items() if key[0] == clip_id)
            found = [np.frombuffer(data, np.uint16).reshape(shape) for _, (shape, data) in chunks]
            np.testing.assert_array_equal(np.concatenate(found), wanted)
    finally:
        stage.close()


def by_name(job: Path) -> dict[str, Table]:
    """The codes of each video, under its name instead of its clip's id."""
    ids, table = clip_ids(job), codes_of(job)
    return {
        name: {("", k): value for (one, k), value in table.items() if one == clip_id}
        for name, clip_id in ids.items()
    }


@pytest.mark.ray
def test_codes_depend_neither_on_the_length_of_pieces_nor_on_a_film_that_is_damaged(
    undisturbed: Path, videos: Path, ray_address: str, tmp_path: Path
) -> None:
    folder = tmp_path / "videos"
    shutil.copytree(videos, folder)
    damaged = folder / "film1.mp4"
    data = bytearray(damaged.read_bytes())
    begin, end = data.index(b"mdat"), data.index(b"moov")
    at = begin + (end - begin) * 3 // 4
    data[at : at + 200] = b"\xff" * 200
    damaged.write_bytes(data)
    tried = job(tmp_path / "job.yaml", folder, max_clip_frames=60, max_rejected_fraction=1.0)
    run_well(tried, ray_address)
    assert_complete(tried)
    assert rejections_of(tried) == {str(damaged): "corrupt"}
    assert by_name(tried) == {**by_name(undisturbed), "film1": {}}

    again = job(undisturbed, videos, max_clip_frames=30)
    assert "done" in run_well(again, ray_address), "it is no part of the fingerprint"


def await_piece(driver: subprocess.Popen[str], dead: Sequence[int] = ()) -> list[int]:
    """Wait until a piece is being encoded, and not by one of the ``dead``; return all encoders.

    Ray names a process after the method that it runs.
    """
    wait_until(
        lambda: (
            not set(pids_of("EncodeActor.work_piece")) <= set(dead) or driver.poll() is not None
        ),
        timeout_s=200.0,
        every_s=0.01,
    )
    assert driver.poll() is None, f"ended too early: {finish(driver)}"
    return pids_of("EncodeActor")


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_killed_workers_and_drivers_change_no_code(
    undisturbed: Path, videos: Path, ray_address: str, tmp_path: Path
) -> None:
    tried = job(tmp_path / "job.yaml", videos)
    driver = start(tried, ray_address)
    encoders = await_piece(driver)
    kill_all(encoders)
    await_piece(driver, dead=encoders)
    decoders = pids_of("DecodeActor")
    assert decoders, "no decoder runs"
    kill_all(decoders)
    wait_until(lambda: not set(pids_of("DecodeActor")) <= set(decoders), timeout_s=200.0)
    await_piece(driver)
    kill(driver)
    run_well(tried, ray_address)
    assert_complete(tried)
    assert codes_of(tried) == codes_of(undisturbed)


def kill_all(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_tokenizer_that_sees_the_future_is_refused_with_the_reason(
    videos: Path, tmp_path: Path
) -> None:
    tokenizer = {
        "encoder": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 4},
        "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 8]},
    }
    code, printed = run(job(tmp_path / "job.yaml", videos, tokenizer=tokenizer))
    assert code == 2, printed
    assert "chunking.policy streaming" in printed
    assert "no frame's codes are known before the last frame" in printed
