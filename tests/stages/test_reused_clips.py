"""Which clips of another output are taken for those of a job, and that no other ever is."""

import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tests.end_to_end.jobs import (
    WITH_DECODER,
    files,
    output_of,
    run_without_ray,
    write_job,
    write_video,
)
from tests.pictures import drawn
from tests.videos import encode
from tokpipe.config import load_job
from tokpipe.errors import ConfigError, NotFound
from tokpipe.runtime.assemble import JobOutput, Run
from tokpipe.stages.decode import DecodeStage
from tokpipe.stages.encode import EncodeStage
from tokpipe.stages.reuse import ReusedOutput, reused_outputs
from tokpipe.types import DecodedClip, EncodedClip, Failed, Media, Rejected, WorkItem
from tokpipe.verbs.forecast import Forecast

NUM_MUTATIONS = int(os.environ.get("TOKPIPE_TEST_MUTATIONS", "60"))
SPANS = [(None, None), (0.5, 2.0), (0.0, None), (None, 1.5)]


class Lab:
    """An output with a clip of each span of some videos, and what else may be in the same place."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.video = folder, folder / "a.mp4"
        write_video(self.video, 24)
        write_video(folder / "b.mp4", 12, seed=1, size=(64, 48))
        pictures = (drawn(number, 64, 64) for number in range(20))
        options = {"x264-params": "interlaced=1"}
        encode(folder / "c.mp4", pictures, (64, 64), fps=8, options=options)
        self.videos = [folder / f"{name}.mp4" for name in "abc"]
        rows = [
            f"{video},{'' if a is None else a},{'' if b is None else b}"
            for video in self.videos
            for a, b in SPANS
        ]
        (folder / "clips.csv").write_text("\n".join(["url,start,end", *rows]) + "\n")
        self.table = {"kind": "table", "uri": str(folder / "clips.csv"), "uri_column": "url"}
        self.table |= {"start_column": "start", "end_column": "end"}
        self.job = load_job(write_job(folder / "job.yaml", self.table, str(folder / "out")))
        run_without_ray(self.job)
        self.output = output_of(self.job)
        self.weights = Run(JobOutput(self.job), Console(quiet=True)).weights
        self.bench = self.bench_of("{}")
        self.stage = self.bench.stage

    @cache  # noqa: B019 - there is one lab
    def bench_of(self, changes: str) -> "Bench":
        return Bench(self, json.loads(changes))

    def item(self, path: Path, span: int = 0, **changes: Any) -> WorkItem:
        start_s, end_s = SPANS[span]
        return replace(WorkItem(7, "0" * 32, str(path), None, start_s, end_s), **changes)

    def find(self, path: Path, **changes: Any) -> EncodedClip | None:
        (found,) = self.stage.process([self.item(path, **changes)])
        return found if isinstance(found, EncodedClip) else None


class Bench:
    """The stages of a job that reuses the lab's output."""

    def __init__(self, lab: Lab, changes: dict[str, Any]) -> None:
        folder = Path(tempfile.mkdtemp(dir=lab.folder))
        changes |= {"reuse": [str(lab.folder / "out")]}
        job = load_job(write_job(folder / "job.yaml", lab.table, str(folder / "out"), **changes))
        self.reused = [ReusedOutput(job, *one) for one in reused_outputs(job)]
        self.stage = DecodeStage(job.sampling, job.frames, job.decode, job.storage)
        self.stage.setup(self.reused)
        alone = job.encode.model_copy(update={"batch_chunks": 1})
        self.encode = EncodeStage(job.tokenizer, job.chunking, alone, None)
        self.encode.setup("cpu", lab.weights)

    def made(self, item: WorkItem, *, reuses: bool) -> EncodedClip | Rejected | Failed:
        self.stage.reuses = self.reused if reuses else []
        (clip,) = self.stage.process([item])
        return self.encode.process([clip])[0] if isinstance(clip, DecodedClip) else clip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(tmp_path_factory.mktemp("lab"))
    yield lab
    lab.stage.close()


@pytest.mark.parametrize("span", range(len(SPANS)))
def test_a_clip_is_found_under_any_name_with_everything_that_shards_store(
    span: int, lab: Lab
) -> None:
    copy = shutil.copy(lab.video, lab.folder / "other name.MP4")
    found = lab.find(Path(copy), span=span)
    assert found is not None
    assert (found.ref.source_uri, found.ref.row, found.ref.segment) == (str(copy), 7, 0)
    num_segments = found.ref.num_segments
    # Rows of one video are planned in order of their start.
    row = sorted(range(len(SPANS)), key=lambda one: SPANS[one][0] or 0.0).index(span)
    for segment in range(num_segments):
        taken = lab.find(Path(copy), span=span, segment=segment, num_segments=num_segments)
        assert taken is not None
        (clip,) = [
            one for one in lab.output.clips() if (one.plan_row, one.segment) == (row, segment)
        ]
        assert [block.tobytes() for block in taken.codes] == [
            chunk.codes.tobytes() for chunk in clip.chunks
        ]
        ends = [
            (taken.pts_s[one.first_frame], taken.pts_s[one.first_frame + one.num_frames - 1])
            for one in taken.chunks
        ]
        assert ends == [(chunk.start_pts_s, chunk.end_pts_s) for chunk in clip.chunks]
        assert (taken.fps, taken.marks) == (clip.fps, clip.marks)
        assert not np.isnan(taken.pts_s[[0, -1]]).any()


def test_other_bytes_names_spans_and_media_are_not_taken(lab: Lab) -> None:
    changed = lab.folder / "changed.mp4"
    changed.write_bytes(lab.video.read_bytes() + b"\0\0\0\x08free")
    shutil.copy(lab.video, lab.folder / "a.m4v")
    assert lab.find(lab.video) is not None
    assert lab.find(changed) is None
    assert lab.find(lab.folder / "a.m4v") is None  # FFmpeg considers the extension
    assert lab.find(lab.video, start_s=0.25) is None
    assert lab.find(lab.video, media=Media("both")) is None
    total = lab.find(lab.video).ref.num_segments  # type: ignore[union-attr]
    assert lab.find(lab.video, num_segments=total + 1) is None
    assert lab.find(lab.video, segment=total - 1, num_segments=total) is not None


def test_a_file_that_changes_while_it_is_decoded_has_no_hash(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(path := tmp_path / "new.mp4", 9, seed=5)
    (still,) = lab.stage.process([lab.item(path)])
    assert isinstance(still, DecodedClip)
    assert len(still.source_sha256) == 64
    decode = lab.stage._decoder.decode

    def changing(*arguments: Any, **settings: Any) -> Any:
        video, status = decode(*arguments, **settings), path.stat()
        path.write_bytes(path.read_bytes()[:-1] + b"x")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return video

    monkeypatch.setattr(lab.stage._decoder, "decode", changing)
    (moved,) = lab.stage.process([lab.item(path)])
    assert isinstance(moved, DecodedClip)
    assert moved.source_sha256 == ""


def test_a_damaged_shard_is_not_taken_from(lab: Lab, tmp_path: Path) -> None:
    shutil.copytree(lab.folder / "out", tmp_path / "a")
    output = lab.job.output.model_copy(update={"uri": str(tmp_path / "a")})
    moved = output_of(lab.job.model_copy(update={"output": output}))
    content = lab.find(lab.video).source_sha256  # type: ignore[union-attr]
    found = (lab.item(lab.video), content, pytest.fail)
    assert ReusedOutput(lab.job, moved, set()).find(*found) is not None
    for shard in (tmp_path / "a/shards").iterdir():
        data = bytearray(shard.read_bytes())
        data[100:110] = bytes(byte ^ 255 for byte in data[100:110])
        shard.write_bytes(data)
    moved = output_of(lab.job.model_copy(update={"output": output}))
    assert ReusedOutput(lab.job, moved, set()).find(*found) is None


CHANGES: list[dict[str, Any]] = [
    {"sampling": {"fps": 4, "max_clip_frames": 9}},
    {"frames": {"size": [32, 32], "fit": "pad"}},
    {"encode": {"device": "cpu", "dtype": "bfloat16"}},
    {"tokenizer": WITH_DECODER},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_an_output_of_other_settings_is_refused(
    change: dict[str, Any], lab: Lab, tmp_path: Path
) -> None:
    uri = str(lab.folder / "out")
    job = write_job(
        tmp_path / "b.yaml", files(lab.folder), str(tmp_path / "b"), reuse=[uri], **change
    )
    with pytest.raises(ConfigError, match=r"reuse: .* settings differ \(.* -> "):
        JobOutput(load_job(job)).start(Console(quiet=True))
    assert not list((tmp_path / "b").glob("*")), "nothing was planned"


@pytest.mark.parametrize("change", CHANGES[:2], ids=str)
def test_a_forecast_refuses_what_a_run_would(
    change: dict[str, Any], lab: Lab, tmp_path: Path
) -> None:
    source, uri = files(lab.folder), str(lab.folder / "out")
    job = write_job(tmp_path / "b.yaml", source, str(tmp_path / "b"), reuse=[uri], **change)
    with pytest.raises(ConfigError, match=r"reuse: .* settings differ \(.* -> "):
        Forecast(load_job(job))


def test_the_own_output_and_what_is_none_are_refused(lab: Lab, tmp_path: Path) -> None:
    source = files(lab.folder)
    own = write_job(
        tmp_path / "a.yaml", source, str(lab.folder / "out"), reuse=[f"{lab.folder}/out/"]
    )
    with pytest.raises(ConfigError, match="the job's own output"):
        reused_outputs(load_job(own), lab.output.record.settings)
    none = write_job(tmp_path / "b.yaml", source, str(tmp_path / "b"), reuse=[str(tmp_path / "c")])
    with pytest.raises(NotFound):
        JobOutput(load_job(none)).start(Console(quiet=True))
    chunking = {"policy": "streaming", "chunk_frames": 5}
    streaming = {"chunking": chunking, "tokenizer": WITH_DECODER, "reuse": ["s3://a"]}
    with pytest.raises(ConfigError, match=r"reuse does not work with chunking\.policy=streaming"):
        load_job(write_job(tmp_path / "s.yaml", source, str(tmp_path / "s"), **streaming))


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "sampling": st.fixed_dictionaries(
            {"fps": st.just(8), "max_clip_frames": st.sampled_from([9, 5, 18, 20, 27])},
            optional={"min_clip_frames": st.sampled_from([2, 5])},
        ),
        "frames": st.fixed_dictionaries(
            {"buckets": st.lists(st.sampled_from([(32, 32), (48, 32), (32, 48)]), min_size=1)},
            optional={"hdr": st.just("mark"), "deinterlace": st.booleans()},
        ),
        "chunking": st.sampled_from(
            [{"chunk_frames": 5}, {"chunk_frames": 17}, {"policy": "whole"}]
        ),
        "decode": st.just({"on_damage": "mark"}),
    },
)
MUTATIONS = st.fixed_dictionaries(
    {
        "video": st.integers(0, 2),
        "how": st.sampled_from(["flip", "cut", "append", *["none"] * 5]),
        "at": st.integers(0, 10**9),
        "start_s": st.sampled_from([None, 0.0, -0.0, 0.5, 0.25]),
        "end_s": st.sampled_from([None, 1.5, 2.0, 1.75]),
        "segment": st.integers(0, 2),
        "num_segments": st.sampled_from([None, 1, 2, 3]),
        "extension": st.sampled_from([".mp4", ".MP4", ".m4v", ""]),
    }
)


@settings(max_examples=NUM_MUTATIONS, deadline=None)
@given(changes=SETTINGS, mutation=MUTATIONS)
def test_what_is_taken_is_what_would_be_made(
    changes: dict[str, Any], mutation: dict[str, Any], lab: Lab
) -> None:
    """Of any bytes, name, span and segment, under any settings."""
    data = bytearray(lab.videos[mutation.pop("video")].read_bytes())
    how, at, extension = (mutation.pop(name) for name in ("how", "at", "extension"))
    if how == "flip":
        data[at % len(data)] ^= 1 + at % 255
    elif how == "cut":
        del data[len(data) - 1 - at % len(data) :]
    elif how == "append":
        data += struct.pack("<Q", at)
    (path := lab.folder / f"mutated{extension}").write_bytes(data)
    bench, item = lab.bench_of(json.dumps(changes)), lab.item(path, **mutation)
    found, wanted = (bench.made(item, reuses=reuses) for reuses in (True, False))
    assert type(found) is type(wanted)
    if isinstance(found, EncodedClip) and isinstance(wanted, EncodedClip):
        assert stored(found) == stored(wanted)


def stored(clip: EncodedClip) -> dict[str, Any]:
    """What shards and side tables have of a clip."""
    firsts = [one.first_frame for one in clip.chunks]
    lasts = [one.first_frame + one.num_frames - 1 for one in clip.chunks]
    return {
        **{field.name: getattr(clip, field.name) for field in fields(clip)},
        "chunks": [replace(one, num_dropped_latents=0) for one in clip.chunks],
        "codes": [(block.shape, block.tobytes()) for block in clip.codes],
        "pts_s": clip.pts_s[[*firsts, *lasts]].tolist(),
        "version": None,  # A receipt has it
    }
