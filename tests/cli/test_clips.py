"""``tokpipe ls`` lists clips, and ``decode --source`` picks one of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.test_named_outputs import Capture, one_line
from tests.end_to_end.jobs import files, run_without_ray, write_job, write_video
from tests.formats.formats_helpers import encoded_clip
from tests.reader.reader_helpers import store_with
from tests.videos import spoil_end
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.reader import Output, open_output
from tokpipe.reader.search import source_matcher
from tokpipe.verbs.clips import clip_lines


def listed(capsys: Capture, *arguments: str) -> list[dict[str, Any]]:
    assert main(["ls", *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_ls_lists_each_clip_once_with_what_the_reader_finds(project: Path, capsys: Capture) -> None:
    found = {one.pop("clip_id"): one for one in listed(capsys, str(project / "out/demo"))}
    clips = {clip.clip_id: clip for clip in open_output(str(project / "out/demo")).clips()}
    assert found.keys() == clips.keys()
    for clip_id, clip in clips.items():
        one = found[clip_id]
        assert one["source_uri"] == clip.source_uri
        assert one["n_frames"] == sum(chunk.n_frames for chunk in clip.chunks)
        assert one["duration_s"] == one["n_frames"] / 8
        assert one["start_pts_s"] == clip.chunks[0].start_pts_s
        assert one["end_pts_s"] == clip.chunks[-1].end_pts_s
        assert (one["segment"], one["n_segments"]) == (clip.segment, clip.num_segments)
        assert one["marks"] == []


def test_ls_reads_one_side_table_at_a_time_and_nothing_else() -> None:
    store = store_with([encoded_clip(0, (17, 5))], [encoded_clip(1, (9,))])
    for key in [key for key in store.objects if key.startswith("shards/")]:
        del store.objects[key]
    output = Output(store)
    second = output.shards[1].side_table
    table = store.objects.pop(second)
    clips = map(json.loads, clip_lines(output, as_json=True))
    assert next(clips)["n_frames"] == 22
    store.objects[second] = table
    assert next(clips)["n_frames"] == 9


def test_ls_is_sorted_by_source_and_time_and_aligned(project: Path, capsys: Capture) -> None:
    assert main(["ls", str(project / "jobs/demo.yaml")]) == 0
    total, heading, *lines = capsys.readouterr().out.splitlines()
    assert total == (
        f"{project}/out/demo: 7 clips, 1 rejected (tokpipe rejected {project}/out/demo)"
    )
    column = heading.index("source")
    sources = [line[column:] for line in lines]
    videos = project / "videos"
    assert sources == [
        *[f"{videos}/Beach 1.mp4"] * 3,
        *[f"{videos}/beach [2].mp4"] * 3,
        f"{videos}/deep/katze-ä.mp4",
    ]
    starts = [float(line[:column].split()[3].partition("-")[0]) for line in lines]
    assert starts == pytest.approx([0.0, 1.125, 2.25, 0.0, 1.125, 2.25, 0.0], abs=0.01)


@pytest.mark.parametrize(
    ("pattern", "number"),
    [
        ("BEACH", 6),
        ("beach [2]", 3),
        ("Beach ?.mp4", 3),
        ("*.MP4", 7),
        ("deep/*", 1),
        ("*/videos/*", 7),
        ("katze-a\N{COMBINING DIAERESIS}", 1),
        ("*.mov", 0),
        ("each*1", 0),
    ],
)
def test_a_pattern_chooses_clips_by_their_sources(
    pattern: str, number: int, project: Path, capsys: Capture
) -> None:
    out = str(project / "out/demo")
    assert len(listed(capsys, out, "--source", pattern)) == number
    assert main(["ls", out, "--source", pattern]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{number} of 7 clips match"


def test_a_pattern_finds_members_of_tars() -> None:
    uri = "s3://bucket/part-1.tar#clips/a.MP4"
    for pattern in ("part-1.tar", "*.mp4", "a.mp4", "clips/*", "s3://bucket/*", "#clips"):
        assert source_matcher(pattern)(uri), pattern
    assert source_matcher("b.*")("s3://x/t.tar#b.mp4")
    assert not source_matcher("b.*")("s3://x/t.tar#ab.mp4")


def test_a_limit_says_whether_there_is_more(project: Path, capsys: Capture) -> None:
    out = str(project / "out/demo")
    assert len(listed(capsys, out, "--limit", "2")) == 2
    for limit, last in (("2", "only 2 listed (--limit); there are more"), ("7", "katze-ä.mp4")):
        assert main(["ls", out, "--limit", limit]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(last)


def test_ls_shows_marks_and_chooses_by_them(tmp_path: Path, capsys: Capture) -> None:
    write_video(tmp_path / "videos/a.mp4", 40)
    write_video(tmp_path / "videos/whole.mp4", 9, seed=1)
    spoil_end(tmp_path / "videos/a.mp4")
    job = write_job(
        tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"),
        decode={"on_damage": "mark"},
    )  # fmt: skip
    run_without_ray(load_job(job))
    damaged = listed(capsys, str(job), "--mark", "damaged")
    assert damaged
    assert {Path(one["source_uri"]).name for one in damaged} == {"a.mp4"}
    assert all(one["marks"] == ["damaged"] for one in damaged)
    assert main(["ls", str(job)]) == 0
    marked = [line for line in capsys.readouterr().out.splitlines() if "[damaged]" in line]
    assert len(marked) == len(damaged)
    assert listed(capsys, str(job), "--mark", "unknown") == []


def test_decode_takes_the_first_clip_of_a_source(
    project: Path, tmp_path: Path, capsys: Capture
) -> None:
    def decode(pattern: str, *options: str) -> int:
        options = ("--source", pattern, "-o", str(tmp_path / "a.png"), "--device", "cpu", *options)
        return main(["decode", str(project / "jobs/demo.yaml"), *options])

    first, *_ = listed(capsys, str(project / "out/demo"), "--source", "beach [2]")
    assert decode("BEACH [2]") == 0
    printed = capsys.readouterr().out
    assert f"clip {first['clip_id']} of {first['source_uri']}\n" in printed
    (tmp_path / "a.png").unlink()
    assert decode("ketze.mp4") == 2
    lacks = "has no clip whose source matches 'ketze.mp4'. See tokpipe ls "
    assert lacks in one_line(capsys)
    assert not (tmp_path / "a.png").exists()
