"""Outputs written by earlier versions stay readable."""

import hashlib
from pathlib import Path

import pytest

from tokpipe.audit import Audit
from tokpipe.config.job import StoreOptions
from tokpipe.errors import PlanMismatch
from tokpipe.export import FORMATS, export_output
from tokpipe.formats import job_record
from tokpipe.formats.job_record import check_same, compared
from tokpipe.identity import fingerprint_settings
from tokpipe.plan import StoredPlan
from tokpipe.reader import Output, open_output
from tokpipe.storage import Store

WRITTEN_BY_0_1_0 = Path(__file__).parents[1] / "golden/output_0_1_0"
DECODERS = {"av": "18.1"}
CODES_SHA256 = "0b76f188b89e9af70f9303dae6c71b11fb814fe80b4919c403057b7bfab4451a"
"""Over each clip's id and codes, in the order of ids, computed when the output was written."""


@pytest.fixture
def output() -> Output:
    return open_output(str(WRITTEN_BY_0_1_0))


def test_codes_are_unchanged(output: Output) -> None:
    seen = hashlib.sha256()
    for clip in sorted(output.clips(), key=lambda one: one.clip_id):
        seen.update(clip.clip_id.encode() + clip.codes.tobytes())
    assert seen.hexdigest() == CODES_SHA256
    assert [one.reason for one in output.rejected()] == ["not_a_video"]


def test_the_audit_is_clean() -> None:
    report = Audit(Store(str(WRITTEN_BY_0_1_0), StoreOptions()))
    assert report.is_clean, list(report.lines())


def test_a_plan_that_counted_nothing_beside_its_sources_is_read() -> None:
    record = job_record.read(Store(str(WRITTEN_BY_0_1_0), StoreOptions()))
    assert not StoredPlan.from_json(record.plan).left_out.counts


@pytest.mark.parametrize("given", ["auto", 4])
def test_a_batch_that_was_recorded_before_it_could_be_auto_is_continued(
    given: int | str, output: Output
) -> None:
    """The settings of a GPU's output of that time, with its former default."""
    store = Store(str(WRITTEN_BY_0_1_0), StoreOptions())
    job = output.record.recorded_job(store.uri)
    assert job.encode.batch_chunks == 4
    encode = job.encode.model_copy(update={"device": "cuda", "batch_chunks": given})
    again = job.model_copy(update={"encode": encode})
    codes = fingerprint_settings(job, weights_hash="w", device="cuda", decoders={"av": "18.1"})
    assert codes["encode"]["batch_chunks"] == 4
    record = output.record.model_copy(
        update={"settings": codes, "job": again.model_dump(mode="json")}
    )
    check_same(store.uri, *compared(store, record, again, "w", DECODERS))
    assert record.settled(again).encode.batch_chunks == 4
    other = encode.model_copy(update={"batch_chunks": 8})
    changed = again.model_copy(update={"encode": other})
    with pytest.raises(PlanMismatch, match=r"encode\.batch_chunks: 4 -> 8"):
        check_same(store.uri, *compared(store, record, changed, "w", DECODERS))


def test_an_output_of_before_there_were_pictures_is_resumed(output: Output) -> None:
    store = Store(str(WRITTEN_BY_0_1_0), StoreOptions())
    assert "media" not in output.record.job["sources"][0]
    job = output.record.recorded_job(store.uri)
    codes = fingerprint_settings(job, weights_hash="w", device="cpu", decoders={"av": "18.1"})
    record = output.record.model_copy(update={"settings": codes})
    check_same(store.uri, *compared(store, record, job, "w", DECODERS))
    sources = [one.model_copy(update={"media": "both"}) for one in job.sources]
    changed = job.model_copy(update={"sources": tuple(sources)})
    with pytest.raises(PlanMismatch, match="sources"):
        check_same(store.uri, *compared(store, record, changed, "w", DECODERS))


@pytest.mark.parametrize("name", FORMATS)
def test_every_export_works(name: str, output: Output, tmp_path: Path) -> None:
    exported = export_output(output, name, tmp_path / "export")
    assert (exported.num_clips, exported.num_codes) == (15, 2560)
