"""``tokpipe audit`` on what real jobs leave behind, down to encoding clips again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    files,
    kill,
    num_entries,
    run_well,
    start,
    wait_until,
    write_job,
    write_video,
    write_videos,
)
from tokpipe.cli import main

NETWORK = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1}
TOKENIZER = {
    "encoder": {**NETWORK, "z_channels": 4},
    "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 8]},
    "decoder": NETWORK,
    "norm": "frame",
}


@pytest.mark.ray
def test_a_job_that_was_killed_and_finished_is_clean_and_its_clips_come_out_the_same(
    tmp_path: Path, ray_address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # Enough of them that the driver cannot be done between the second commit and the kill.
    num_videos = 30
    write_videos(tmp_path / "videos", num_videos)
    (tmp_path / "videos/broken.mp4").write_bytes(b"no video")
    out = str(tmp_path / "out")
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        out,
        tokenizer=TOKENIZER,
        max_rejected_fraction=0.5,
    )
    driver = start(job, ray_address)
    wait_until(lambda: num_entries(job) >= 2)
    kill(driver)
    assert main(["audit", out]) == 8
    assert "plan rows are neither tokenized nor rejected" in capsys.readouterr().out
    assert main(["audit", out, "--partial"]) == 0
    run_well(job, ray_address)
    capsys.readouterr()
    assert main(["audit", out, "--sample", "4", "--seed", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clean"]
    assert report["num_rejected"] == 1
    assert len(report["sampled"]) == 4
    for one in report["sampled"]:
        assert one["equal_fraction"] == 1.0
        assert one["psnr_db"] == one["psnr_again_db"] > 0

    # The sources of all clips become other videos of the same length: no checksum can tell.
    for index in range(num_videos):
        write_video(tmp_path / f"videos/clip{index:03}.mp4", seed=100 + index)
    assert main(["audit", out]) == 0
    capsys.readouterr()
    assert main(["audit", out, "--sample", "2"]) == 8
    assert "produces other codes when it is encoded again" in capsys.readouterr().out
