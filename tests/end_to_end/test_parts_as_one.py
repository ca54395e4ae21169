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
from tokpipe.audit.remove import remove
from tokpipe.config import load_job
from tokpipe.errors import ConfigError, NotFound, PlanMismatch
from tokpipe.export import export_output
from tokpipe.identity import row_digests
from tokpipe.reader import ClipStream, CodeCache, open_output
from tokpipe.runtime import job as job_module
from tokpipe.runtime.assemble import JobOutput
from tokpipe.verbs import check as check_module

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


def test_what_changed_is_compared_only_if_few_rows_are_listed_for_all_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_more(tmp_path, 0, NUM_VIDEOS)
    job = load_job(part(tmp_path, 1))
    run_without_ray(job)
    number = output_of(job).num_rows * NUM_PARTS
    write_video(Path(next(output_of(job).clips()).source_uri), 20)
    for limit, is_said in ((number, True), (number - 1, False)):
        monkeypatch.setattr(job_module, "MAX_COMPARED_ROWS", limit)
        assert ("changed" in job_module._changes_text(JobOutput(job))) == is_said
        monkeypatch.setattr(check_module, "MAX_ROWS", limit)
        assert ("not checked" in check_module._changes(job, output_of(job)).text) != is_said


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


def test_clips_that_were_removed_are_in_no_joined_output(tmp_path: Path) -> None:
    """Of two outputs of the same videos, each is left with half, and then one grows."""
    write_more(tmp_path, 0, NUM_VIDEOS)
    names = [str(tmp_path / name) for name in "ab"]
    source = files(tmp_path / "videos")
    jobs = [write_job(tmp_path / f"{name[-1]}.yaml", source, name) for name in names]
    for job in jobs:
        run_without_ray(load_job(job))
    ids = sorted(clip.clip_id for clip in open_output(names[0]).clips())
    with pytest.raises(ConfigError, match=f"{names[0]} and {names[1]} both have clip "):
        open_output(names)
    remove(output_of(jobs[0]).store, clip_ids=ids[::2])
    remove(output_of(jobs[1]).store, clip_ids=ids[1::2], purge=True)
    output = open_output(names)
    assert sorted(clip.clip_id for clip in output.clips()) == ids
    assert [output.clip(one).clip_id for one in ids] == ids
    assert output.totals.rejected == {"removed": NUM_VIDEOS}

    def reader(*states: Any) -> Any:
        stream = ClipStream(CodeCache(open_output(names), tmp_path / "cache"), seed=1)
        if states:
            stream.resume(states)
        return iter(stream)

    one = reader()
    next(one)
    state, rest = one.state_dict(), [clip["clip_id"] for clip in one]
    assert state["removals"] == [1, 1]
    write_more(tmp_path, NUM_VIDEOS, NUM_VIDEOS + 1)
    run_without_ray(load_job(jobs[0]), extend=True)
    assert open_output(names).num_clips == NUM_VIDEOS + 1
    assert [clip["clip_id"] for clip in reader(state)] == rest
    remove(output_of(jobs[1]).store, clip_ids=ids[:1])
    with pytest.raises(ConfigError, match=r"clips were removed since\. Open a new stream"):
        reader(state)
    with pytest.raises(NotFound, match=f"{names[0]}, {names[1]}: no tokenized clip"):
        open_output(names).clip(ids[0])
