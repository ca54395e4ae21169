"""Rejected clips: listed with all that is known of them, and tried again once they are mended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    finish,
    rejections_of,
    run,
    run_well,
    start,
    write_job,
    write_video,
    write_videos,
)
from tokpipe.cli import main


@pytest.mark.ray
def test_mended_videos_are_tokenized_by_a_retry_and_the_others_stay_rejected(
    tmp_path: Path, ray_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "videos", tmp_path / "out"
    write_videos(folder, 2)
    (folder / "mended.mp4").write_text("no video yet")
    (folder / "empty.mp4").touch()
    job = write_job(tmp_path / "job.yaml", files(folder), str(out), max_rejected_fraction=1.0)
    run_well(job, ray_address)
    before = codes_of(job)

    assert main(["rejected", str(out), "--json", "--reason", "not_a_video"]) == 0
    (listed,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert listed["ref"]["source_uri"] == str(folder / "mended.mp4")
    assert (listed["stage"], listed["attempts"]) == ("decode", 1)
    assert main(["rejected", str(out)]) == 0
    text = capsys.readouterr().out
    assert "2 rejected: " in text
    assert f"empty: {folder / 'empty.mp4'}" in text

    write_video(folder / "mended.mp4", 20, seed=7)
    assert run(job, ray_address)[0] == 0
    assert rejections_of(job).keys() == {str(folder / "mended.mp4"), str(folder / "empty.mp4")}

    code, printed = finish(start(job, ray_address, "--retry-rejected", "--reason", "not_a_video"))
    assert code == 0, printed
    assert "1 rejected clips will be tried again" in printed
    assert rejections_of(job) == {str(folder / "empty.mp4"): "empty"}
    after = codes_of(job)
    assert before.items() < after.items()
    assert len({clip for clip, _ in after.keys() - before.keys()}) == 3  # cut into three clips
    assert_complete(job)

    code, printed = finish(start(job, ray_address, "--retry-rejected"))
    assert code == 0, printed
    assert rejections_of(job) == {str(folder / "empty.mp4"): "empty"}
    assert codes_of(job) == after
