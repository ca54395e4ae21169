"""Starting a job again, with the same settings or with others; and what codes do not depend on."""

import json
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    RUNTIME,
    assert_complete,
    codes_of,
    codes_without_ray,
    files,
    run,
    run_well,
    run_without_ray,
    write_job,
    write_video,
    write_videos,
)
from tokpipe.config import load_job


def test_a_job_with_other_settings_is_rejected_by_name(tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 2)
    (tmp_path / "videos/beside.MOV").touch()
    source, out, path = files(tmp_path / "videos"), str(tmp_path / "out"), tmp_path / "job.yaml"
    run_without_ray(load_job(write_job(path, source, out)))

    code, printed = run(write_job(path, source, out, sampling={"fps": 4, "max_clip_frames": 9}))
    assert code == 3, printed
    assert "sampling.fps: 8.0 -> 4.0" in printed

    (tmp_path / "more").mkdir()
    code, printed = run(write_job(path, files(tmp_path / "more"), out))
    assert code == 3, printed
    assert "sources" in printed

    # Settings that no code depends on may change.
    changed = write_job(path, source, out, output={"uri": out, "shard_bytes": 5000})
    printed = run_well(changed)
    assert "done" in printed
    assert "left out: 1 file: 1 .mov (beside.MOV)" in printed, "as the plan recorded it"


@pytest.mark.ray
def test_a_source_listed_twice_is_rejected_before_any_work(
    tmp_path: Path, ray_address: str
) -> None:
    write_videos(tmp_path / "videos", 1)
    twice = [files(tmp_path / "videos"), files(tmp_path / "videos")]
    job = write_job(tmp_path / "job.yaml", twice, str(tmp_path / "out"))
    code, printed = run(job, ray_address)
    assert code == 2, printed
    assert "in all, 1 rows repeat the clip of an earlier one" in printed
    assert "keep_first" in printed
    assert not (tmp_path / "out" / "job.json").exists()


@pytest.mark.ray
def test_codes_do_not_depend_on_company_or_order(tmp_path: Path, ray_address: str) -> None:
    """Each clip alone, all together, in another order, in larger leases: always the same codes."""
    folder = tmp_path / "videos"
    for index, num_frames in enumerate([30, 9, 14, 1, 23]):
        write_video(folder / f"clip{index}.mp4", num_frames, seed=index)
    together = write_job(tmp_path / "all.yaml", files(folder), str(tmp_path / "all"))
    run_well(together, ray_address)
    assert_complete(together)
    alone = codes_without_ray(together)
    assert codes_of(together) == alone

    names = sorted((path.name for path in folder.iterdir()), reverse=True)
    table = tmp_path / "reversed.jsonl"
    lines = [json.dumps({"path": str(folder / name)}) for name in [*names, names[0]]]
    table.write_text("\n".join(lines))
    source = {"kind": "table", "uri": str(table), "uri_column": "path"}
    other_order = write_job(
        tmp_path / "reversed.yaml",
        {**source, "allowed_prefixes": [str(folder)]},
        str(tmp_path / "reversed"),
        runtime={**RUNTIME, "clips_per_lease": 5},
        on_duplicate="keep_first",
    )
    assert "1 duplicate rows" in run_well(other_order, ray_address)
    assert_complete(other_order)
    assert codes_of(other_order) == alone
