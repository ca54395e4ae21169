"""A store that does not answer ends the job; it is nobody's clip."""

from pathlib import Path

import pytest

from tests.end_to_end.jobs import finish, rejections_of, start, write_job

TABLE = Path(__file__).parents[1] / "cases" / "tables" / "hf.jsonl"


@pytest.mark.ray
def test_a_store_that_does_not_answer_is_named_once_and_costs_no_clip(
    tmp_path: Path, ray_address: str
) -> None:
    allowed = ["hf://datasets/o/n"]
    source = {"kind": "table", "uri": str(TABLE), "uri_column": "u", "allowed_prefixes": allowed}
    storage = {"deadline_s": 2, "options": {"hf": {"endpoint": "http://127.0.0.1:9"}}}
    job = write_job(tmp_path / "job.yaml", source, str(tmp_path / "out"), storage=storage)
    code, printed = finish(start(job, ray_address))
    assert code == 5, printed
    assert "hf://datasets/o/n/x.mp4: finding its commit kept failing" in printed
    assert ".py" not in printed, f"a traceback: {printed}"
    assert not rejections_of(job)
