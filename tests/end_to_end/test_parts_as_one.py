"""Jobs that each take a part of the same sources, and their outputs read as one."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.jobs import (
    Table,
    assert_complete,
    codes_of,
    codes_without_ray,
    files,
    output_of,
    run_without_ray,
    write_job,
    write_video,
)
from tokpipe.audit import Audit
from tokpipe.config import load_job
from tokpipe.errors import PlanMismatch
from tokpipe.export import export_output
from tokpipe.identity import row_digests
from tokpipe.reader import ClipStream, CodeCache, open_output
from tokpipe.runtime.assemble import JobOutput

NUM_PARTS, NUM_VIDEOS = 4, 8


def write_more(root: Path, first: int, last: int) -> None:
    for number in range(first, last):
        write_video(root / f"videos/{number:02}.mp4", 9, seed=number)


def dataset(root: Path) -> str:
    """A name with which each part has some of the first videos, wherever these are."""
    uris = [f"{root}/videos/{number:02}.mp4".encode() for number in range(NUM_VIDEOS)]
    for number in itertools.count():
        ids = row_digests(name := f"test{number}", uris, [bytes(18)] * len(uris))
        if len({int.from_bytes(one[:8], "little") % NUM_PARTS for one in ids}) == NUM_PARTS:
            return name
    raise AssertionError


def part(root: Path, index: int) -> Path:
    """The job file of one part."""
    taken = {"index": index, "of": NUM_PARTS}
    source, uri = files(root / "videos"), str(root / f"out-{index}")
    name = dataset(root)
    return write_job(root / f"job-{index}.yaml", source, uri, part=taken, dataset=name)


def run_parts(root: Path, **settings: Any) -> None:
    for index in range(NUM_PARTS):
        run_without_ray(load_job(part(root, index)), **settings)


def uris(root: Path) -> list[str]:
    return [str(root / f"out-{index}") for index in range(NUM_PARTS)]


def test_parts_and_their_extensions_equal_the_undivided_job(tmp_path: Path) -> None:
    write_more(tmp_path, 0, NUM_VIDEOS)
    source, uri = files(tmp_path / "videos"), str(tmp_path / "out")
    whole = write_job(tmp_path / "job.yaml", source, uri, dataset=dataset(tmp_path))
    run_parts(tmp_path)
    for is_grown in (False, True):
        if is_grown:  # what is new belongs to one part each
            write_more(tmp_path, NUM_VIDEOS, NUM_VIDEOS + 3)
            run_parts(tmp_path, extend=True)
        expected, found = codes_without_ray(whole), dict[Any, Any]()
        for index in range(NUM_PARTS):
            job = part(tmp_path, index)
            assert_complete(job)
            assert Audit(output_of(job).store).is_clean
            codes: Table = codes_of(job)
            assert 0 < len(codes) < len(expected)
            assert not found.keys() & codes.keys()
            found |= codes
        assert found == expected
        output = open_output(uris(tmp_path))
        assert output.num_clips == len({*expected}) == sum(1 for _ in output.clips())
        cache = CodeCache(output, tmp_path / "cache")
        assert {clip["clip_id"] for clip in ClipStream(cache)} == {key[0] for key in expected}


def test_a_part_is_continued_as_that_part(tmp_path: Path) -> None:
    write_more(tmp_path, 0, NUM_VIDEOS)
    run_without_ray(load_job(part(tmp_path, 1)))
    job = load_job(part(tmp_path, 1))
    other = job.part.model_copy(update={"index": 2}) if job.part else None
    for extend in (False, True):
        for changed in (other, None):
            with pytest.raises(PlanMismatch, match=r"part\.index: 1 -> (2|\(not set\))"):
                JobOutput(job.model_copy(update={"part": changed}), extend=extend)
        assert JobOutput(job, extend=extend).is_done(None)


def test_an_export_of_parts_has_the_clips_of_all(tmp_path: Path) -> None:
    write_more(tmp_path, 0, NUM_VIDEOS)
    run_parts(tmp_path)
    output = open_output(uris(tmp_path))
    for to in ("memmap", "huggingface"):
        for num_workers in (1, 2):
            folder = tmp_path / f"{to}-{num_workers}"
            exported = export_output(output, to, folder, num_workers=num_workers)
            assert (exported.num_clips, exported.num_codes) == (NUM_VIDEOS, output.num_codes)
        one, other = (tmp_path / f"{to}-{n}" for n in (1, 2))
        for path in one.rglob("*.*"):
            assert path.read_bytes() == (other / path.relative_to(one)).read_bytes()
