"""``tokpipe decode``: from a job's output back to pixels."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.end_to_end.jobs import WITH_DECODER, files, run_without_ray, write_job, write_video
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.trust import Trust
from tokpipe.media.quality import psnr_db, structural_similarity
from tokpipe.reader import open_output
from tokpipe.reconstruct.frames import Reconstructor, SideBySide


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a job that streamed a video of four pieces."""
    folder: Path = tmp_path_factory.mktemp("decode")
    write_video(folder / "videos/video.mp4", num_frames=30)
    job = write_job(
        folder / "job.yaml",
        files(folder / "videos"),
        str(folder / "out"),
        tokenizer=WITH_DECODER,
        chunking={"policy": "streaming", "chunk_frames": 5},
    )
    run_without_ray(load_job(job))
    return folder


def decode(folder: Path, *arguments: str) -> int:
    return main(["decode", str(folder / "job.yaml"), *arguments])


def size_and_length(path: Path) -> tuple[int, int, int]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return (len(frames), *frames[0].shape[:2])


def test_a_clip_comes_back_beside_its_source(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decode(folder, "-o", str(tmp_path / "clip.mp4"), "--compare", "--json") == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert size_and_length(tmp_path / "clip.mp4") == (30, 32, 64)

    output = open_output(str(folder / "out"), trust=Trust(uris=True))
    (clip,) = output.clips()
    blocks = Reconstructor(output.trusted_job(), output.tokenizer, "cpu").frames(clip.chunks)
    found = np.concatenate(list(blocks))
    with SideBySide(output, "cpu") as both:
        wanted = np.concatenate([piece.frames for piece in both.decoded(clip)])
    assert found.shape == wanted.shape == (30, 32, 32, 3)
    assert said["clip_id"] == clip.clip_id
    assert said["num_frames"] == 30
    assert said["quality"]["psnr_db"] == pytest.approx(psnr_db(wanted, found).mean())
    assert said["quality"]["ssim"] == pytest.approx(structural_similarity(wanted, found).mean())


def test_a_clip_is_shown_as_a_picture_of_its_frames(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (clip,) = open_output(str(folder / "out")).clips()
    assert decode(folder, "--clip", clip.clip_id, "-o", str(tmp_path / "grid.png")) == 0
    assert size_and_length(tmp_path / "grid.png") == (1, 2 * 32, 4 * 32)
    printed = capsys.readouterr().out
    assert clip.clip_id in printed
    assert "30 frames of 32x32 from 576 codes" in printed
    assert "PSNR" not in printed


def test_what_cannot_be_decoded_is_explained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def complaint(*arguments: str) -> str:
        assert decode(folder, *arguments) == 2
        return capsys.readouterr().err.replace("\n", " ")

    path = str(tmp_path / "clip.mp4")
    video = folder / "videos/video.mp4"
    kept = video.rename(tmp_path / "kept.mp4")
    try:
        write_video(video, num_frames=20)
        assert "is not what was planned" in complaint("-o", path, "--compare")
        video.unlink()
        assert "does not decode any more" in complaint("-o", path, "--compare")
    finally:
        kept.rename(video)
    assert list(tmp_path.iterdir()) == []


def test_an_audit_encodes_a_streamed_clip_to_the_same_codes(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", str(folder / "job.yaml"), "--sample", "3"]) == 0
    assert "100.00% of its codes are the same, PSNR" in capsys.readouterr().out
