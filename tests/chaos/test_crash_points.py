"""A driver that dies at any call to its store, before or after it, and is started again."""

import tempfile
import uuid
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.chaos.crash_points import NUM_ROWS, CrashingStore, Side, check_output, drive, new_job
from tests.end_to_end.jobs import Table, codes_of
from tests.formats.formats_helpers import Crash
from tokpipe.config import JobConfig
from tokpipe.storage import Store

SIDES: tuple[Side, ...] = get_args(Side)


@pytest.fixture(scope="module")
def peace(tmp_path_factory: pytest.TempPathFactory) -> tuple[Table, list[str]]:
    """What the driver makes when nothing happens, and its calls to the store."""
    folder = tmp_path_factory.mktemp("peace")
    job = new_job(folder, f"memory://{uuid.uuid4().hex}/out")
    store = CrashingStore(Store(job.output.uri, job.storage))
    drive(job, store, "driver0")
    table = codes_of(job)
    assert len(table) == 14  # seven good rows of two chunks
    return table, store.calls


def die_at(job: JobConfig, number: int, side: Side, attempt: str) -> str | None:
    """One life that ends at this call; returns the call, or None if it was done before."""
    store = CrashingStore(Store(job.output.uri, job.storage), number, side)
    try:
        drive(job, store, attempt)
    except Crash:
        return store.calls[-1]
    return None


def finish(job: JobConfig, attempt: str) -> None:
    drive(job, Store(job.output.uri, job.storage), attempt)


@pytest.fixture(params=["memory", "disk", pytest.param("s3", marks=pytest.mark.s3)])
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """A kind of store, and the prefix of URIs in it."""
    name = str(request.param)
    if name == "memory":
        return name, f"memory://{uuid.uuid4().hex}"
    if name == "disk":
        return name, str(tmp_path / "outputs")
    return name, request.getfixturevalue("s3_bucket").uri


def test_a_crash_at_any_store_call_loses_and_doubles_nothing(
    kind: tuple[str, str], peace: tuple[Table, list[str]], tmp_path: Path
) -> None:
    name, prefix = kind
    table, calls = peace
    # Each crash needs a whole output of its own, which takes longer on disk and on S3.
    numbers = range(0, len(calls), {"memory": 1, "disk": 3, "s3": 5}[name])
    died = set()
    for number in numbers:
        for side in SIDES:
            job = new_job(tmp_path, f"{prefix}/{number}-{side}")
            died.add(die_at(job, number, side, "driver1"))
            finish(job, "driver2")
            check_output(job, table)
    assert None not in died
    kinds_of_calls = {str(call).partition(" ")[0] for call in died}
    assert {"create", "put", "get_range"} <= kinds_of_calls


lives = st.tuples(st.integers(0, 80), st.sampled_from(SIDES))
NUM_BEFORE = 5


def extension_dies_at(job: JobConfig, number: int, side: Side, attempt: str) -> str | None:
    """One life of an extension that ends at this call; returns the call, or None."""
    store = CrashingStore(Store(job.output.uri, job.storage), number, side)
    try:
        drive(job, store, attempt, extend=True)
    except Crash:
        return store.calls[-1]
    return None


def test_a_crash_at_any_store_call_of_an_extension_loses_and_doubles_nothing(
    peace: tuple[Table, list[str]], tmp_path: Path
) -> None:
    """Nor does it if the next life extends again, or only resumes and another one extends."""
    died, number = list[str](), 0
    while number == len(died) // (2 * len(SIDES)):
        for side in SIDES:
            for next_extends in (False, True):
                uri = f"memory://{uuid.uuid4().hex}/out"
                drive(job := new_job(tmp_path, uri, NUM_BEFORE), Store(uri, job.storage), "first")
                job = new_job(tmp_path, uri)
                if died_at := extension_dies_at(job, number, side, "second"):
                    died.append(died_at)
                drive(job, Store(uri, job.storage), "third", extend=next_extends)
                drive(job, Store(uri, job.storage), "fourth", extend=True)
                check_output(job, peace[0])
        number += 1
    assert {"create", "put", "get_range"} <= {str(call).partition(" ")[0] for call in died}


@settings(max_examples=8)
@given(data=st.data())
def test_ten_extensions_with_crashes_between_them_are_one_output(
    peace: tuple[Table, list[str]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        uri = f"memory://{uuid.uuid4().hex}/out"
        drive(job := new_job(Path(folder), uri, 1), Store(uri, job.storage), "first")
        for num_rows in range(1, NUM_ROWS + 2):
            job = new_job(Path(folder), uri, min(num_rows, NUM_ROWS))
            for number, side in data.draw(st.lists(lives, max_size=3)):
                extension_dies_at(job, number, side, uuid.uuid4().hex[:8])
        drive(job, Store(uri, job.storage), "last", extend=True)
        check_output(job, peace[0])


@settings(max_examples=30)
@given(deaths=st.lists(lives, min_size=2, max_size=6))
def test_any_number_of_crashes_in_a_row_lose_and_double_nothing(
    peace: tuple[Table, list[str]], deaths: list[tuple[int, Side]]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        job = new_job(Path(folder), f"memory://{uuid.uuid4().hex}/out")
        for life, (number, side) in enumerate(deaths):
            die_at(job, number, side, f"driver{life}")
        finish(job, "last")
        check_output(job, peace[0])
