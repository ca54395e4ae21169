"""Jobs that take clips from other outputs instead of encoding them again."""

import shutil
from pathlib import Path
from typing import Any

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    codes_without_ray,
    files,
    output_of,
    run_well,
    run_without_ray,
    write_job,
    write_video,
)
from tokpipe.audit import Audit
from tokpipe.config import load_job


def shared_jobs(folder: Path, num_shared: int, num_new: int, **changes: Any) -> tuple[Path, Path]:
    """Two jobs; the second shares some videos with the first, under other names."""
    for number in range(num_shared):
        write_video(folder / f"a/{number}.mp4", seed=number)
        (folder / "b").mkdir(exist_ok=True)
        shutil.copy(folder / f"a/{number}.mp4", folder / f"b/other{number}.mp4")
    for number in range(num_new):
        write_video(folder / f"b/new{number}.mp4", seed=100 + number)
    first, second = str(folder / "out/a"), str(folder / "out/b")
    return (
        write_job(folder / "a.yaml", files(folder / "a"), first, **changes),
        write_job(
            folder / "b.yaml", files(folder / "b"), second, **changes, dataset="b", reuse=[first]
        ),
    )


def test_codes_of_the_same_bytes_are_taken_under_another_name(tmp_path: Path) -> None:
    first, second = shared_jobs(tmp_path, num_shared=3, num_new=1)
    run_without_ray(load_job(first))
    printed = run_well(second)
    assert "9 clips of this run taken from the outputs under reuse" in printed
    assert_complete(second)
    alone = load_job(second).model_copy(update={"reuse": ()})
    fresh = tmp_path / "fresh.yaml"
    fresh.write_text(alone.model_dump_json())
    assert codes_of(second) == codes_without_ray(fresh)
    assert Audit(output_of(second).store).is_clean
