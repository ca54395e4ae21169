"""Pictures and videos in one output: run, streamed, exported, decoded back and audited."""

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.jobs import (
    WITH_DECODER,
    assert_complete,
    codes_of,
    run_well,
    run_without_ray,
    write_job,
    write_video,
)
from tests.pictures import drawn, write_picture
from tests.sources.reading import tar
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.trust import Trust
from tokpipe.errors import PlanMismatch
from tokpipe.media.quality import Quality
from tokpipe.reader import ClipStream, CodeCache, open_output
from tokpipe.reconstruct.frames import SideBySide
from tokpipe.runtime.assemble import JobOutput

NUM_PICTURES, NUM_VIDEOS = 12, 3
EXTENSIONS = ("jpg", "png", "webp", "avif", "gif")


def write_sources(folder: Path, num_pictures: int, num_videos: int) -> list[dict[str, Any]]:
    """Half of the pictures and the videos in a folder, the others in a tar and in a table."""
    for number in range(num_pictures):
        kind = ("files", "files", "tar", "table")[number % 4]
        extension = EXTENSIONS[number % len(EXTENSIONS)]
        size = ((48, 64), (64, 48), (300, 200))[number % 3]
        write_picture(folder / f"{kind}/{number:03}.{extension}", drawn(number, *size))
    for number in range(num_videos):
        write_video(folder / f"files/video{number}.mp4", num_frames=20, seed=number)
    in_tar = sorted((folder / "tar").iterdir())
    (folder / "x.tar").write_bytes(tar({one.name: one.read_bytes() for one in in_tar}))
    values = [one.read_bytes() for one in sorted((folder / "table").iterdir())]
    pq.write_table(pa.table({"image": values}), folder / "t.parquet")
    return [
        {"kind": "files", "uri": f"{folder}/files/", "media": "both", "animation_as_picture": True},
        {"kind": "webdataset", "uri": f"{folder}/x.tar", "media": "image"},
        {
            "kind": "table",
            "uri": f"{folder}/t.parquet",
            "uri_column": "image",
            "media": "image",
        },
    ]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, ray_address: str) -> Path:
    folder: Path = tmp_path_factory.mktemp("pictures")
    sources = write_sources(folder, NUM_PICTURES, NUM_VIDEOS)
    path = write_job(
        folder / "job.yaml",
        sources,
        str(folder / "out"),
        tokenizer=WITH_DECODER,
        frames={"buckets": [[32, 32], [32, 48]]},
        sampling={"fps": 8, "max_clip_frames": 9, "min_clip_frames": 2},
    )
    run_well(path, ray_address)
    return path


@pytest.mark.ray
def test_pictures_and_videos_are_clips_of_one_output(job: Path) -> None:
    assert_complete(job)
    output = open_output(load_job(job).output.uri)
    pictures = [clip for clip in output.clips() if "picture" in clip.marks]
    videos = [clip for clip in output.clips() if "picture" not in clip.marks]
    assert (len(pictures), len(videos)) == (NUM_PICTURES, 3 * NUM_VIDEOS)
    for clip in pictures:
        assert clip.codes.shape[0] == 1
        (chunk,) = clip.chunks
        assert (chunk.n_frames, clip.fps, clip.num_segments) == (1, 8.0, 1)
        assert (chunk.start_pts_s, chunk.end_pts_s) == (0.0, 0.0)
    assert {sum(chunk.n_frames for chunk in clip.chunks) for clip in videos} == {9, 2}


@pytest.mark.ray
def test_a_job_has_the_codes_of_each_picture_alone(job: Path, tmp_path: Path) -> None:
    settings = json.loads(job.read_text())
    settings["output"] |= {"uri": str(tmp_path / "alone")}
    (tmp_path / "alone.yaml").write_text(json.dumps(settings))
    run_without_ray(load_job(tmp_path / "alone.yaml"))
    assert codes_of(tmp_path / "alone.yaml") == codes_of(job)


@pytest.mark.ray
def test_pictures_are_streamed_exported_listed_and_audited(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = load_job(job).output.uri
    output = open_output(uri)
    seen = [item["codes"].shape[0] for item in ClipStream(CodeCache(output, tmp_path / "cache"))]
    assert len(seen) == NUM_PICTURES + 3 * NUM_VIDEOS
    assert seen.count(1) >= NUM_PICTURES
    assert main(["audit", str(job), "--sample", "5"]) == 0
    assert main(["ls", uri, "--mark", "picture"]) == 0
    assert (
        f"{NUM_PICTURES} of {NUM_PICTURES + 3 * NUM_VIDEOS} clips match" in capsys.readouterr().out
    )
    for kind in ("webdataset", "huggingface", "litdata"):
        assert main(["export", uri, "--to", kind, "-o", str(tmp_path / kind)]) == 0


@pytest.mark.ray
def test_a_picture_comes_back_as_a_picture(job: Path, tmp_path: Path) -> None:
    output = open_output(load_job(job).output.uri, trust=Trust(uris=True))
    clip = next(clip for clip in output.clips() if clip.source_uri.endswith("/000.jpg"))
    path = tmp_path / "a.png"
    assert main(["decode", str(job), "--clip", clip.clip_id, "-o", str(path)]) == 0
    with av.open(str(path)) as container:
        (frame,) = [one.to_ndarray(format="rgb24") for one in container.decode(video=0)]
    with SideBySide(output, "cpu") as both:
        (shown,) = both.shown(clip, Quality())
    source, block = np.split(shown, 2, axis=1)
    assert np.array_equal(frame, block[0])
    assert source.shape == block.shape == (1, 32, 48, 3)


@pytest.mark.ray
def test_an_output_is_not_resumed_with_other_media(job: Path, tmp_path: Path) -> None:
    settings = json.loads(job.read_text())
    settings["sources"][0] |= {"media": "image"}
    (tmp_path / "job.yaml").write_text(json.dumps(settings))
    with pytest.raises(PlanMismatch, match="'media': 'both'"):
        JobOutput(load_job(tmp_path / "job.yaml"))
