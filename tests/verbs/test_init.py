"""``tokpipe init`` writes job files that pass ``tokpipe check`` for whatever a folder holds."""

import json
import os
import tarfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.conftest import S3Bucket
from tests.end_to_end.jobs import assert_complete, output_of, run_without_ray, write_video
from tests.pictures import drawn, write_animation, write_picture
from tokpipe.cli import main
from tokpipe.config import JobConfig, load_job
from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import TableSource
from tokpipe.errors import ConfigError
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import Store
from tokpipe.types import WorkItem
from tokpipe.verbs import check as check_module
from tokpipe.verbs import init as init_module
from tokpipe.verbs.check import check
from tokpipe.verbs.init import write_job


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty project. The tokenizer is always the same one, so it is not tried."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(check_module, "find_spec", lambda name: name != "torch" and find_spec(name))
    return tmp_path


def checked(target: str, path: Path | None = None) -> JobConfig:
    """Write a job file for ``target``; return its job, which passes its check."""
    written, _ = write_job(target, path)
    job = load_job(written)
    lines = [one.text for one in check(job)]
    assert not [line for line in lines if "warning" in line or "rejected" in line]
    return job


def uris(job: JobConfig) -> list[tuple[str, str]]:
    return [(source.kind, source.uri) for source in job.sources]


def test_a_folder_of_phone_videos_gets_buckets_of_its_shapes(here: Path) -> None:
    for name, size in (("a.MP4", (72, 128)), ("x/ü b.mov", (128, 72)), ("x/y/c.m4v", (64, 64))):
        path = here / "my videos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path.with_suffix(".mp4"), 20, size=size)
        path.with_suffix(".mp4").rename(path)
    job = checked("my videos/")
    assert uris(job) == [("files", str(here / "my videos"))]
    assert (job.dataset, job.output.uri) == ("my-videos", str(here / "out/my-videos"))
    assert job.frames.buckets == ((128, 224), (224, 128), (128, 128))
    written = (here / "jobs/my-videos.yaml").read_text()
    assert "uri: my videos/\n" in written, "paths in the project stay relative"
    assert written.count("#") > 8
    job = job.model_copy(update={"encode": job.encode.model_copy(update={"device": "cpu"})})
    run_without_ray(job)
    assert_complete(job)
    assert output_of(job).totals.num_clips == 3


def test_a_folder_of_pictures_gets_a_source_of_pictures(here: Path) -> None:
    for name, size in (("a.JPG", (96, 128)), ("x/b.png", (128, 96)), ("x/c.gif", (96, 96))):
        path = write_picture(here / "p" / name.lower(), drawn(0, *size))
        path.rename(here / "p" / name)
    job = checked("p/")
    assert uris(job) == [("files", str(here / "p"))]
    assert job.sources[0].media == "image"
    assert job.frames.buckets == ((128, 168), (168, 128), (128, 128))
    assert checked("p/*.JPG", here / "glob.yaml").sources[0].media == "image"
    assert checked("p/x/b.png", here / "one.yaml").sources[0].media == "image"


def test_pictures_beside_videos_are_left_out(here: Path) -> None:
    write_video(here / "v/a.mp4", 20)
    write_picture(here / "v/a.jpg", drawn())
    path, (note,) = write_job("v")
    assert load_job(path).sources[0].media == "video"
    assert "left out: 1 file: 1 .jpg (a.jpg)" in note
    (here / "g").mkdir()
    write_animation(here / "g/a.gif", 20)
    assert checked("g").sources[0].media == "video"


def test_videos_of_one_shape_get_one_size_and_no_more_frames_than_they_have(here: Path) -> None:
    write_video(here / "v/a.mp4", 20, size=(96, 128))
    assert checked("v").frames.size == (128, 168)
    assert checked("v", here / "other.yaml").sampling.fps == 8


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "csv.gz", "CSV"])
def test_a_table_beside_its_videos_is_the_source(kind: str, here: Path) -> None:
    write_video(here / "data/clips/a.mp4", 20)
    rows = [
        {"id": n, "thumb": f"{n}.jpg", "file": "clips/a.mp4", "start": n, "end_s": n + 1}
        for n in (0, 1)
    ]
    write_table(here / f"data/meta.{kind}", rows)
    job = checked("data") if kind == "csv" else load_job(write_job("data")[0])
    alone = load_job(write_job(f"data/meta.{kind}", here / "alone.yaml")[0])
    assert alone.sources[0].uri == str(here / f"data/meta.{kind}")
    (source,) = job.sources
    assert source.kind == "table"
    columns = source.uri_column, source.start_column, source.end_column
    assert columns == ("file", "start", "end_s")


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
        return
    mark = "\t" if path.suffix == ".tsv" else ","
    lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
    if path.suffix == ".jsonl":
        lines = [json.dumps(row) for row in rows]
    text = ("\n".join(lines) + "\n").encode()
    if path.suffix == ".gz":
        import gzip

        text = gzip.compress(text)
    path.write_bytes(text)


@pytest.mark.parametrize("named", ["meta", "meta/t.{}", "meta/*.{}"])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_table_neither_opens_nor_allows_videos_elsewhere(
    kind: str, named: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(here / "meta/mine.mp4", 20)
    write_video(here / "diary.mp4", 20)
    elsewhere = [str(here / "diary.mp4"), "../diary.mp4", "/etc/hostname.mp4", "file:///etc/a.mp4"]
    elsewhere += ["http://10.0.0.1/a.mp4", "s3://bucket/a.mp4", "/a: #b.mp4"]
    write_table(here / f"meta/t.{kind}", [{"path": one} for one in ["mine.mp4", *elsewhere]])
    opened = record_probes(monkeypatch)
    path, (note, *_) = write_job(named.format(kind))
    assert "; videos outside the folder of the table were not opened" in note
    assert opened == [str(here / "meta/mine.mp4")]
    (source,) = load_job(path).sources
    assert isinstance(source, TableSource)
    assert source.allowed_prefixes is None
    prefixes = json.dumps([str(here), str(here / "meta")])
    assert f"    # allowed_prefixes: {prefixes}\n" in path.read_text()


def record_probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets the URI of each video that is opened."""
    opened: list[str] = []
    probe = DecodeStage.probe

    def recorded(stage: DecodeStage, item: WorkItem) -> Any:
        opened.append(item.source_uri)
        return probe(stage, item)

    monkeypatch.setattr(DecodeStage, "probe", recorded)
    return opened


@pytest.mark.parametrize("other", ["{}/far/away/a.mp4", "s3://bucket/a.mp4"])
def test_a_table_of_videos_elsewhere_needs_its_user_to_allow_them(
    other: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(here / "far/away/a.mp4", 20)
    (here / "meta").mkdir()
    write_table(here / "meta/t.csv", [{"path": other.format(here)}])
    opened = record_probes(monkeypatch)
    path, _ = write_job("meta/t.csv")
    assert not opened
    text = path.read_text()
    if other.startswith("{}"):
        path.write_text(text.replace("# allowed_prefixes", "allowed_prefixes"))
        assert not [line for line in check(load_job(path)) if "rejected" in line.text]
    else:
        assert "allowed_prefixes" not in text


def test_a_table_of_captions_does_not_replace_the_videos(here: Path) -> None:
    write_video(here / "v/a.mp4", 20)
    write_table(here / "v/captions.csv", [{"id": "a", "text": "a dog"}])
    assert uris(checked("v")) == [("files", str(here / "v"))]
    with pytest.raises(ConfigError, match=r"no column looks like .*The columns are id, text"):
        write_job("v/captions.csv", here / "other.yaml")


def test_tars_become_a_source_alone_or_beside_videos(here: Path) -> None:
    write_video(here / "v/a.mp4", 20)
    (here / "t/[x]").mkdir(parents=True)
    with tarfile.open(here / "t/[x]/0.tar", "w") as tar:
        tar.add(here / "v/a.mp4", "0.mp4")
    job = checked("t/[x]")
    assert [source.kind for source in job.sources] == ["webdataset"]
    assert uris(checked("t/[x]/0.tar", here / "one.yaml"))[0][0] == "webdataset"
    write_video(here / "t/b.mp4", 20, seed=1)
    assert [kind for kind, _ in uris(checked("t", here / "both.yaml"))] == ["files", "webdataset"]


def test_tars_without_videos_are_left_out_and_named(here: Path) -> None:
    write_video(here / "v/a.mp4", 20)
    with tarfile.open(here / "v/code.tar", "w") as tar:
        tar.add(__file__, "test.py")
    path, notes = write_job("v")
    assert [source.kind for source in load_job(path).sources] == ["files"]
    assert [note for note in notes if note.startswith("left out: ") and "webdataset" in note]


def test_tables_that_differ_do_not_hide_the_videos(here: Path) -> None:
    write_video(here / "data/videos/a.mp4", 20)
    write_table(here / "data/t.csv", [{"id": 1, "file": "videos/a.mp4"}])
    write_table(here / "data/wrong.csv", [{"x": 1}])
    write_table(here / "data/none.jsonl", [{"x": 1}])
    path, notes = write_job("data")
    assert uris(load_job(path)) == [("files", str(here / "data"))]
    assert [n for n in notes if n.startswith("left out: ") and "data/wrong.csv have diff" in n]


def test_tables_of_an_earlier_output_are_not_sources(here: Path) -> None:
    write_video(here / "v/a.mp4", 20)
    job = checked("v")
    run_without_ray(
        job.model_copy(update={"encode": job.encode.model_copy(update={"device": "cpu"})})
    )
    assert uris(checked(".", here / "again.yaml")) == [("files", str(here))]


def test_what_cannot_be_used_is_said(here: Path) -> None:
    write_video(here / "v/a.mp4", 20)
    (here / "v/b.mp4").touch()
    (here / "v/notes.txt").touch()
    _, (note,) = write_job("v")
    assert note.startswith("found 2 clips (files v/); left out: 1 file: 1 .txt (notes.txt); 1 of 2")


def test_another_job_of_one_folder_has_its_own_output(here: Path) -> None:
    write_video(here / "v/a.mp4", 20)
    job = checked("v", here / "jobs/my other.yaml")
    assert (job.dataset, job.output.uri) == ("my-other", str(here / "out/my-other"))


@pytest.mark.parametrize("glob", ["v/*.mp4", "v/{a,b}.mp4", "**/[ab].mp4"])
def test_a_glob_is_a_source(glob: str, here: Path) -> None:
    for name in "ab":
        write_video(here / f"v/{name}.mp4", 20, seed=ord(name))
    path, notes = write_job(glob)
    assert uris(load_job(path)) == [("files", str(here / glob))]
    assert notes == [f"found 2 clips (files {glob})"]
    with pytest.raises(ConfigError, match=r"x\*\.mp4"):
        write_job("v/x*.mp4")


def test_a_glob_of_tables_is_a_source(here: Path) -> None:
    write_video(here / "v/a.mp4", 20)
    write_table(here / "v/t1.csv", [{"file": "a.mp4"}])
    assert uris(checked("v/t*.csv")) == [("table", str(here / "v/t*.csv"))]


def test_one_video_is_a_source_and_its_job_is_named_after_it(here: Path) -> None:
    write_video(here / "holiday 2024.mp4", 20)
    job = checked("holiday 2024.mp4")
    assert job.dataset == "holiday-2024"
    assert uris(job) == [("files", str(here / "holiday 2024.mp4"))]


@pytest.mark.parametrize("project", [True, False])
def test_paths_hold_from_wherever_the_job_file_is(project: bool, here: Path) -> None:
    write_video(here / "data/[a]/v.mp4", 20)
    (here / "work/deep").mkdir(parents=True)
    if not project:
        (here / "pyproject.toml").unlink()
    os.chdir(here / "work/deep")
    assert uris(checked("../../data/[a]")) == [("files", str(here / "data/[a]"))]
    assert uris(checked(str(here / "data"), here / "else.yaml")) == [("files", str(here / "data"))]


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ((), "v: found no videos, pictures, tables or tars"),
        (("notes.txt", "b.heic"), "2 files: 1 .heic (b.heic), 1 .txt (notes.txt)"),
        (("a.mp4",), "none of 1 files can be opened, such as"),
        (("a.jpg",), "none of 1 files can be opened, such as"),
        (("a.csv",), "a.csv"),
        (("a.tar",), "a.tar"),
    ],
)
def test_a_folder_without_anything_to_tokenize_is_an_error(
    made: tuple[str, ...], said: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "v").mkdir()
    for name in made:
        (here / "v" / name).write_bytes(b"")
    assert main(["init", "v"]) == 2
    assert said in capsys.readouterr().err
    assert not (here / "jobs").exists()


def test_a_folder_that_does_not_exist_is_an_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "videos").mkdir()
    assert main(["init", "vidoes"]) == 2
    assert f"{here} exists, but has no vidoes." in capsys.readouterr().err


def test_a_job_file_is_never_overwritten_and_the_next_commands_are_printed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(here / "v/a.mp4", 20)
    assert main(["init", "v", "-o", "my job.yaml"]) == 0
    printed = capsys.readouterr().out
    assert "tokpipe check 'my job.yaml'" in printed
    assert "tokpipe run 'my job.yaml'" in printed
    before = (here / "my job.yaml").read_text()
    assert main(["init", "v", "-o", "my job.yaml"]) == 2
    assert (here / "my job.yaml").read_text() == before


def test_without_a_decoder_the_proposal_is_a_square(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(here / "v/a.mp4", 20, size=(72, 128))
    monkeypatch.setattr(init_module, "find_spec", lambda name: None)
    assert load_job(write_job("v")[0]).frames.size == (128, 128)


@pytest.mark.s3
def test_a_folder_in_a_store_is_a_source(here: Path, s3_bucket: S3Bucket) -> None:
    write_video(here / "a.mp4", 20)
    Store(s3_bucket.uri, StoreOptions()).put("raw/a.MP4", (here / "a.mp4").read_bytes())
    assert uris(checked(f"{s3_bucket.uri}/raw")) == [("files", f"{s3_bucket.uri}/raw/")]
    with pytest.raises(ConfigError, match="found no videos"):
        write_job(f"{s3_bucket.uri}/nothing")
