"""``tokpipe diff``: what it says of clips is what making them again shows."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.jobs import (
    WITH_DECODER,
    files,
    output_of,
    run_without_ray,
    shard_rows,
    side_rows,
    write_job,
    write_video,
)
from tests.pictures import drawn, write_picture
from tests.videos import encode, spoil_packet
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.errors import ConfigError
from tokpipe.reader import Clip
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import EncodedClip
from tokpipe.verbs.diff import diff

LENGTHS = (3, 9, 12, 20)
BUCKETS = [[32, 48], [48, 32]]

Key = tuple[str, float, int]
Made = dict[Key, bytes]
Changes = dict[str, Any]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Videos of these lengths and several shapes, a damaged one, an interlaced one, a picture."""
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate(LENGTHS):
        size = ((48, 64), (64, 48), (48, 48))[number % 3]
        write_video(folder / f"{number}.mp4", frames, seed=number, size=size)
    write_video(folder / "damaged.mkv", 14)
    spoil_packet(folder / "damaged.mkv", 12)
    pictures = (drawn(number, 64, 64) for number in range(6))
    options = {"x264-params": "interlaced=1"}
    encode(folder / "interlaced.mp4", pictures, (64, 64), fps=8, options=options)
    write_picture(folder / "picture.png", drawn())
    return folder


def made_by(changes: Changes, videos: Path, root: Path) -> tuple[Path, Made]:
    """Run a job once; return its file and the codes of each clip by its source and frames."""
    name = "".join(one for one in json.dumps(changes) if one.isalnum()) or "default"
    path = root / f"{name}.yaml"
    if not path.exists():
        source = {"kind": "files", "uri": str(videos), "media": "both"}
        changes = {"max_rejected_fraction": 1.0, **changes}
        write_job(path, source, str(root / name), **changes)
        run_without_ray(load_job(path))
    return path, {key_of(clip): clip.codes.tobytes() for clip in output_of(path).clips()}


def key_of(clip: Clip) -> Key:
    start_s, num_frames = clip.chunks[0].start_pts_s, sum(one.n_frames for one in clip.chunks)
    return clip.source_uri, start_s, num_frames


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jobs")


def sampled(fps: float = 8, most: int = 9, least: int = 1) -> Changes:
    return {"sampling": {"fps": fps, "max_clip_frames": most, "min_clip_frames": least}}


MARK = {"decode": {"on_damage": "mark"}}
STREAMED: Changes = {"policy": "streaming", "chunk_frames": 9}
STREAMED = {"tokenizer": WITH_DECODER, "chunking": STREAMED, **sampled(most=33)}

EXACT: dict[str, tuple[Changes, Changes]] = {
    "shorter clips": ({}, sampled(most=5)),
    "longer clips of damaged videos": (MARK, {**MARK, **sampled(most=18)}),
    "half as long": (sampled(most=18), {}),
    "longer than before": ({}, sampled(least=4)),
    "another size": ({}, {"frames": {"size": [48, 48]}}),
    "one bucket less": (
        {"frames": {"buckets": [*BUCKETS, [32, 32]]}},
        {"frames": {"buckets": BUCKETS}},
    ),
    "no damaged videos": (MARK, {}),
    "damaged videos": ({}, MARK),
    "one field": ({}, {"frames": {"size": [32, 32], "deinterlace": True}}),
    "whole": ({}, {"chunking": {"policy": "whole"}}),
    "another name": ({}, {"dataset": "other"}),
}
ALL_OR_NONE = ("another size", "damaged videos", "whole", "another name")
UP_TO: dict[str, tuple[Changes, Changes]] = {
    "more frames": ({}, sampled(fps=12)),
    "one bucket more": ({}, {"frames": {"buckets": [[32, 32], [48, 32]]}}),
    "padded": ({}, {"frames": {"size": [32, 32], "fit": "pad"}}),
    "shorter chunks": ({}, {"chunking": {"chunk_frames": 5}}),
    "streaming": ({"tokenizer": WITH_DECODER}, STREAMED),
    "another tokenizer": ({}, {"tokenizer": WITH_DECODER}),
}


@pytest.mark.parametrize("name", [*EXACT, *UP_TO])
def test_clips_that_are_said_to_keep_their_codes_do(name: str, videos: Path, root: Path) -> None:
    changed = {**EXACT, **UP_TO}[name]
    (before, was), (after, now) = (made_by(one, videos, root) for one in changed)
    *differences, clips, _ = diff(load_job(after), output_of(before))
    num_same = sum(now.get(key) == codes for key, codes in was.items())
    assert clips.facts["num_clips"] == len(was)
    num_kept = clips.facts["num_kept"]
    assert num_kept == num_same if name in EXACT else num_kept <= num_same
    assert ("up to" in differences[0].text) or name in EXACT
    assert 0 < num_same < len(was) or name in ALL_OR_NONE


@pytest.mark.parametrize("name", [*EXACT, *UP_TO])
def test_a_new_output_reuses_the_clips_that_keep_their_codes(
    name: str, videos: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but those of damaged videos: these are made again."""
    changed = {**EXACT, **UP_TO}[name]
    (before, was), (after, now) = (made_by(one, videos, root) for one in changed)
    *_, clips, todo = diff(load_job(after), output_of(before))
    settings = json.loads(after.read_text())
    settings["reuse"] = [json.loads(before.read_text())["output"]["uri"]]
    settings["output"]["uri"] = str(tmp_path / "out")
    (job := tmp_path / "job.yaml").write_text(json.dumps(settings))
    if "no clip can be reused" in todo.text:
        with pytest.raises(ConfigError, match="reuse"):
            run_without_ray(load_job(job))
        assert clips.facts["num_kept"] == 0
        return
    taken = set[str]()
    known = DecodeStage._known

    def noting(*arguments: Any, **span: Any) -> EncodedClip | None:
        if clip := known(*arguments, **span):
            taken.add(clip.ref.clip_id)
        return clip

    monkeypatch.setattr(DecodeStage, "_known", noting)
    run_without_ray(load_job(job))
    assert side_rows(job) == side_rows(after)
    assert shard_rows(job) == shard_rows(after)
    damaged = {key_of(clip) for clip in output_of(after).clips() if "damaged" in clip.marks}
    num_same = sum(now.get(key) == codes for key, codes in was.items() if key not in damaged)
    # Of clips that are equal by chance, none is taken.
    assert len(taken) == num_same if name in EXACT else len(taken) <= num_same
    assert name != "one bucket more" or len(taken) == num_same > 0


@pytest.fixture
def finished(videos: Path, tmp_path: Path) -> Path:
    """The file of a finished job of two videos that carry a column."""
    for number in (1, 2):
        shutil.copy(videos / f"{number}.mp4", tmp_path)
    (tmp_path / "table.csv").write_text(f"url,caption\n{tmp_path}/1.mp4,a\n{tmp_path}/2.mp4,b\n")
    job = write_job(tmp_path / "job.yaml", source_at(tmp_path), str(tmp_path / "out"))
    run_without_ray(load_job(job))
    return job


def source_at(folder: Path) -> Changes:
    return {"kind": "table", "uri": str(folder / "table.csv"), "uri_column": "url"}


def said(job: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["diff", str(job), str(job.parent / "out")]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_it_says_what_to_do(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From nothing to the largest change, each on top of the one before."""
    table, out = tmp_path / "table.csv", tmp_path / "out"
    printed = said(finished, capsys)
    assert printed == (
        "at least 3 of 3 clips keep their codes next: nothing is to be done: rows that are gone "
        "or changed keep their clips"
    )

    job = json.loads(finished.read_text())
    job["output"]["shard_bytes"] = 2048
    finished.write_text(json.dumps(job))
    printed = said(finished, capsys)
    assert "output.shard_bytes: 1024 -> 2048 (no code depends on it" in printed
    assert "next: nothing" in printed

    # A folder of one more video after the table, and one row less in it.
    (tmp_path / "more").mkdir()
    shutil.copy(tmp_path / "1.mp4", tmp_path / "more")
    table.write_text(f"url,caption\n{tmp_path}/1.mp4,a\n")
    write_job(finished, [source_at(tmp_path), files(tmp_path / "more")], str(out))
    printed = said(finished, capsys)
    assert "at least 1 of 3 clips keep their codes" in printed
    assert f"rows: 1 row new (such as {tmp_path}/more/1.mp4), 1 row gone" in printed
    assert "(2 of 3 clips are of rows that are gone or changed)" in printed
    assert f"next: tokpipe run --extend, with output.uri: {out}, adds the new rows" in printed

    table.write_text(f"url,score\n{tmp_path}/1.mp4,1\n")
    printed = said(finished, capsys)
    assert "column caption: 'string' -> (not set) (no code depends on it" in printed
    assert f"next: use a new output prefix, with reuse: [{out}]" in printed

    write_job(finished, files(tmp_path / "more"), str(tmp_path / "other"), dataset="other")
    printed = said(finished, capsys)
    assert "dataset: 'test' -> 'other' (no code depends on it" in printed
    assert "sources.0.kind: 'table' -> 'files' (no code depends on it" in printed
    assert f"next: use a new output prefix, with reuse: [{out}]" in printed

    write_job(finished, files(tmp_path / "more"), str(out), chunking={"chunk_frames": 5})
    printed = said(finished, capsys)
    assert "chunking.chunk_frames: 9 -> 5 (up to 2 of 3 clips get other codes" in printed
    assert f"next: use a new output prefix, with reuse: [{out}]" in printed

    assert main(["diff", str(finished), str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["subject"] for one in found[-3:]] == ["difference", "clips", "next"]
    assert found[0]["num_clips"] == 2
    assert found[-2]["num_clips"] == 3

    write_job(finished, files(tmp_path / "more"), str(out), sampling={"fps": 4})
    assert "or use a new output prefix, for which no clip can be reused" in said(finished, capsys)


def test_an_unfinished_output_is_to_be_finished(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for entry in (finished.parent / "out/manifest").glob("*2.json"):
        entry.unlink()
    assert "next: tokpipe run settles what is left, 1 plan row" in said(finished, capsys)
