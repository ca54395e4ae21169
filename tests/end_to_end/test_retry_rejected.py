"""Rejected clips: listed with all that is known of them, and tried again once they are fixed."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    output_of,
    rejections_of,
    run,
    run_well,
    run_without_ray,
    write_job,
    write_video,
    write_videos,
)
from tokpipe.cli import main
from tokpipe.config import load_job


@pytest.mark.ray
def test_a_retry_tokenizes_fixed_videos_and_the_others_stay_rejected(
    tmp_path: Path, ray_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    write_videos(folder, 2)
    fixed, empty = folder / "fixed.mp4", folder / "empty.mp4"
    fixed.write_text("not a video yet")
    empty.touch()
    one_class = {"device": "cpu", "hardware": "same"}
    job = write_job(
        tmp_path / "job.yaml", files(folder), str(out), encode=one_class, max_rejected_fraction=1.0
    )
    run_without_ray(load_job(job))
    before, encoders = codes_of(job), output_of(job).totals.encoders

    assert main(["rejected", str(out), "--json", "--reason", "not_a_video"]) == 0
    (listed,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert listed["ref"]["source_uri"] == str(fixed)
    assert (listed["stage"], listed["attempts"]) == ("decode", 1)
    assert main(["rejected", str(out)]) == 0
    text = capsys.readouterr().out
    assert "2 rejected: " in text
    assert f"empty: {empty}" in text

    write_video(fixed, 20, seed=7)
    run_well(job)
    assert rejections_of(job).keys() == {str(fixed), str(empty)}

    printed = run_well(job, ray_address, "--retry-rejected", "--reason", "not_a_video")
    assert "1 rejected clips will be tried again" in printed
    printed = run_well(job, ray_address, "--retry-rejected")
    assert "1 rejected clips will be tried again" in printed
    assert_complete(job)
    assert rejections_of(job) == {str(empty): "empty"}
    after = codes_of(job)
    assert before.items() < after.items()
    assert output_of(job).totals.encoders.keys() == encoders.keys()
    assert len(encoders) == 1
    assert len({clip for clip, _ in after.keys() - before.keys()}) == 3  # cut into three clips


@pytest.mark.ray
def test_a_table_whose_videos_are_elsewhere_loses_none_of_its_clips(
    tmp_path: Path, ray_address: str
) -> None:
    write_video(tmp_path / "one.mp4", 9)
    there = tmp_path / "elsewhere"
    there.mkdir()
    names = [f"clip{number:02}.mp4" for number in range(24)]
    for name in names:
        (there / name).hardlink_to(tmp_path / "one.mp4")
    table = tmp_path / "table.csv"
    table.write_text("\n".join(["path", *(f"videos/{name}" for name in names)]))
    source = {"kind": "table", "uri": str(table), "uri_column": "path"}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"))
    code, printed = run(job, ray_address)
    assert code == 4, printed
    text = " ".join(printed.split())
    assert "rejected (missing 2" in text
    assert f"{tmp_path}/videos/clip" in text
    assert "the same command tries them again" in text
    assert text.count("clips rejected (missing") == 1, "not in a warning as well"
    there.rename(tmp_path / "videos")
    run_well(job, ray_address)
    assert_complete(job)
    assert not rejections_of(job)
