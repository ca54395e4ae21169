"""Files that take their decoder down, among good ones.

Every other kind of bad file: tests/hostile.
"""

import os
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    rejections_of,
    run_well,
    write_job,
    write_video,
    write_videos,
)

PLANTED_AV = '''
"""Stands in front of the real PyAV, and misbehaves for files that are called so."""
import ctypes, importlib, os, signal, sys
here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
path, me = list(sys.path), sys.modules.pop("av")
sys.path[:] = [entry for entry in path if os.path.abspath(entry or ".") != here]
real = importlib.import_module("av")
sys.path[:] = path
open_really = real.open
def open_or_not(file, *args, **kwargs):
    name = os.path.basename(os.readlink(f"/proc/self/fd/{file.fileno()}"))
    if "hangs" in name:
        ctypes.PyDLL(None).sleep(10_000)  # in C, holding the interpreter's lock
    if "crashes" in name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return open_really(file, *args, **kwargs)
real.open = open_or_not
'''


@pytest.mark.ray
@pytest.mark.slow
def test_a_decoder_that_hangs_and_one_that_crashes_cost_one_clip_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = tmp_path / "planted"
    (planted / "av").mkdir(parents=True)
    (planted / "av" / "__init__.py").write_text(PLANTED_AV)
    monkeypatch.setenv("PYTHONPATH", str(planted), prepend=os.pathsep)
    folder = tmp_path / "videos"
    write_videos(folder, 4)
    write_video(folder / "a_hangs.mp4", 20, seed=50)
    write_video(folder / "clip003_crashes.mp4", 20, seed=51)
    job = write_job(
        tmp_path / "job.yaml",
        files(folder),
        str(tmp_path / "out"),
        decode={"deadline_s": 3},
        max_rejected_fraction=1.0,
    )
    run_well(job)
    assert_complete(job)
    assert rejections_of(job) == {
        str(folder / "a_hangs.mp4"): "timeout",
        str(folder / "clip003_crashes.mp4"): "crashed",
    }
    assert len({clip_id for clip_id, _ in codes_of(job)}) == 4 * 3
