"""Starting a job again: in good order, with other settings, twice at once, after a signal."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    finish,
    num_entries,
    run,
    run_well,
    start,
    wait_until,
    write_job,
    write_video,
    write_videos,
)
from tokpipe.config import load_job
from tokpipe.reader import open_output


@pytest.mark.ray
def test_a_job_with_other_settings_is_refused_by_name(tmp_path: Path, ray_address: str) -> None:
    write_videos(tmp_path / "videos", 2)
    source, out = files(tmp_path / "videos"), str(tmp_path / "out")
    run_well(write_job(tmp_path / "job.yaml", source, out), ray_address)

    other = write_job(tmp_path / "job.yaml", source, out, sampling={"fps": 4, "max_clip_frames": 9})
    code, printed = run(other, ray_address)
    assert code == 3, printed
    assert "sampling.fps: 8.0 -> 4.0" in printed

    (tmp_path / "more").mkdir()
    moved = write_job(tmp_path / "job.yaml", files(tmp_path / "more"), out)
    code, printed = run(moved, ray_address)
    assert code == 3, printed
    assert "sources" in printed

    # What no code depends on may change.
    changed = {"uri": out, "shard_bytes": 5000}
    run_well(write_job(tmp_path / "job.yaml", source, out, output=changed), ray_address)


@pytest.mark.ray
def test_a_source_listed_twice_is_refused_before_any_work(tmp_path: Path, ray_address: str) -> None:
    write_videos(tmp_path / "videos", 2)
    twice = [files(tmp_path / "videos"), files(tmp_path / "videos")]
    job = write_job(tmp_path / "job.yaml", twice, str(tmp_path / "out"))
    code, printed = run(job, ray_address)
    assert code == 2, printed
    assert "are the same clip" in printed
    assert "keep_first" in printed
    assert not (tmp_path / "out" / "job.json").exists()

    keep = write_job(tmp_path / "job.yaml", twice, str(tmp_path / "out"), on_duplicate="keep_first")
    run_well(keep, ray_address)
    assert_complete(keep)


@pytest.mark.ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_commits_what_is_finished(
    tmp_path: Path, ray_address: str, number: signal.Signals
) -> None:
    write_videos(tmp_path / "videos", 16)
    job = write_job(tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"))
    driver = start(job, ray_address)
    wait_until(lambda: num_entries(job) >= 2)
    driver.send_signal(number)
    code, printed = finish(driver)
    assert code == 128 + number, printed
    assert "run the same command again" in printed
    assert 0 < open_output(load_job(job).output.uri).num_clips < 48
    run_well(job, ray_address)
    assert_complete(job)


@pytest.mark.ray
def test_codes_do_not_depend_on_company_order_or_interruption(
    tmp_path: Path, ray_address: str
) -> None:
    """Each clip alone, all together, in another order, in larger leases: always the same codes."""
    folder = tmp_path / "videos"
    for index, num_frames in enumerate([30, 9, 14, 1, 23]):
        write_video(folder / f"clip{index}.mp4", num_frames, seed=index)
    together = write_job(tmp_path / "all.yaml", files(folder), str(tmp_path / "all"))
    run_well(together, ray_address)
    expected = codes_of(together)

    names = sorted(path.name for path in folder.iterdir())
    table = tmp_path / "reversed.jsonl"
    lines = [json.dumps({"path": str(folder / name)}) for name in reversed(names)]
    table.write_text("\n".join(lines))
    other_order = write_job(
        tmp_path / "reversed.yaml",
        {
            "kind": "table",
            "uri": str(table),
            "uri_column": "path",
            "allowed_prefixes": [str(folder)],
        },
        str(tmp_path / "reversed"),
        runtime={"clips_per_lease": 5},
    )
    run_well(other_order, ray_address)
    assert codes_of(other_order) == expected

    alone = {}
    for name in names:
        source = {"kind": "files", "uri": str(folder / name)}
        job = write_job(tmp_path / f"{name}.yaml", source, str(tmp_path / f"out-{name}"))
        run_well(job, ray_address)
        alone.update(codes_of(job))
    assert alone == expected
