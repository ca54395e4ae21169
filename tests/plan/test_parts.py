"""Plans of jobs that each take one part of the rows of the same sources."""

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.plan.test_plan import CSV, OPTIONS, TABLE, items_of, job_of, plan, row_id, write_table
from tests.storage.listed import sizes
from tokpipe.errors import ConfigError
from tokpipe.plan import PlanReader, write_plan
from tokpipe.storage import Store


def plan_of_part(root: Path, index: int, of: int, **settings: Any) -> Counter[str]:
    """The row ids and URIs of one part of a table."""
    part = {"index": index, "of": of}
    uri = {"uri": f"out-{index}-of-{of}"}
    source = {**TABLE, "uri": "t.parquet"}
    stored, store = plan(root, source, part=part, output=uri, **settings)
    items = items_of(PlanReader(store, stored))
    assert [item.row for item in items] == [*range(stored.num_rows)]
    assert stored.left_out.counts.get("other parts' row", 0) == 100 - stored.num_rows
    return Counter(f"{item.row_id} {item.source_uri}" for item in items)


@pytest.mark.parametrize("of", [1, 2, 7])
def test_parts_divide_the_rows(of: int, tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 100)
    whole, store = plan(tmp_path, {**TABLE, "uri": "t.parquet"})
    expected = [f"{one.row_id} {one.source_uri}" for one in items_of(PlanReader(store, whole))]
    parts = [plan_of_part(tmp_path, index, of) for index in range(of)]
    assert sum(parts, Counter()) == Counter(expected)
    for index, part in enumerate(parts):
        for row in part:
            assert int.from_bytes(bytes.fromhex(row[:16]), "little") % of == index


def test_what_is_left_to_other_parts_is_said(tmp_path: Path) -> None:
    write_table(tmp_path / "t.parquet", 100)
    part = {"index": 1, "of": 3}
    stored, _ = plan(tmp_path, {**TABLE, "uri": "t.parquet"}, part=part)
    assert stored.left_out.text == f"{100 - stored.num_rows} other parts' rows"


def part_of(uri: str, of: int) -> int:
    return int.from_bytes(bytes.fromhex(row_id("test", uri, None, None))[:8], "little") % of


def test_a_duplicate_is_in_the_part_of_the_row_that_it_repeats(tmp_path: Path) -> None:
    lines = ["url", *(f"/{number}.mp4" for number in range(9)), "/4.mp4"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    source = {**CSV, "uri": "t.csv"}
    for index in range(3):
        part: dict[str, Any] = {"part": {"index": index, "of": 3}}
        has_it = index == part_of("/4.mp4", 3)
        found = r"source 0 row 9 repeats source 0 row 4: /4\.mp4; in all, 1 rows"
        with pytest.raises(ConfigError, match=found) if has_it else nullcontext():
            plan(tmp_path, source, **part)
        stored, _ = plan(tmp_path, source, on_duplicate="keep_first", **part)
        assert stored.num_duplicates == has_it


def test_a_part_without_rows_is_an_error_and_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("url\n/1.mp4\n")
    part = {"index": 1 - part_of("/1.mp4", 2), "of": 2}
    job = job_of(tmp_path, {**CSV, "uri": "t.csv"}, part=part)
    store = Store(str(tmp_path / "out"), OPTIONS)
    wanted = rf"part: index={part['index']} of=2 has none of the 1 rows: divide them into fewer"
    with pytest.raises(ConfigError, match=wanted):
        write_plan(job, store, "attempt")
    assert sizes(store, "") == {}


def test_parts_are_numbered_from_0(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"part\.index=3: 3 parts are numbered from 0"):
        job_of(tmp_path, {**CSV, "uri": "t.csv"}, part={"index": 3, "of": 3})
