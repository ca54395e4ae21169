"""Hostile input: planning and decoding end with rows or a reason, and a job completes.

The long form, of more than 1,000 cases, is ``python -m tests.hostile``.
"""

from pathlib import Path

import pytest

from tests.hostile.corpus import few_of_each, named_cases, video_cases
from tests.hostile.run import Report, corpus_job, decode_corpus, plan_tables, run_corpus_job
from tests.hostile.tables import table_cases

NUM_GENERATED = 60


def test_cases_have_unique_names_and_are_reproducible(tmp_path: Path) -> None:
    cases = video_cases(1000, seed=7)
    assert len({case.name for case in cases}) == len(cases) == 1000
    for again, case in zip(video_cases(400, seed=7)[-20:], cases[380:400], strict=True):
        assert again.name == case.name
        again.make(tmp_path / "again")
        case.make(tmp_path / "first")
        assert (tmp_path / "again").read_bytes() == (tmp_path / "first").read_bytes()


def test_a_hostile_table_yields_rows_or_a_config_error(tmp_path: Path) -> None:
    report = Report()
    plan_tables(table_cases(30, seed=1), tmp_path, report)
    assert report.num_cases > 90
    assert not report.violations, "\n".join(report.lines())


def test_every_hostile_file_is_decoded_or_rejected_for_an_allowed_reason(tmp_path: Path) -> None:
    report = Report()
    cases = video_cases(len(named_cases()) + NUM_GENERATED, seed=1)
    decode_corpus(corpus_job(tmp_path, cases), cases, report, again_every=5)
    assert report.num_cases == len(cases) > 150
    assert not report.violations, "\n".join(report.lines())


@pytest.mark.ray
def test_a_job_over_hostile_files_completes_with_a_reason_for_each(
    tmp_path: Path, ray_address: str
) -> None:
    report = Report()
    cases = few_of_each(video_cases(len(named_cases()) + NUM_GENERATED, seed=1), 2)
    # Only the long form waits half a minute for a server that does not answer, in schemes.csv.
    tables = [case for case in table_cases(0, 1) if case.in_job and case.name != "schemes.csv"]
    job = corpus_job(tmp_path, cases, tables)
    alone = decode_corpus(job, cases, report, again_every=1000)
    run_corpus_job(job, alone, ray_address, report, timeout_s=1000)
    assert report.num_cases == len(cases) > 40
    assert not report.violations, "\n".join(report.lines())
