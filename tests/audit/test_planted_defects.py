"""An audit finds every planted defect, and nothing in a clean output."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.audit.defects import DEFECTS, FAMILIES, relist
from tests.audit.outputs import Made, edit, entry_of, finished, parquet_edited
from tokpipe.audit import Audit
from tokpipe.storage import Store
from tokpipe.telemetry.human import json_line


@pytest.fixture(scope="module")
def clean_output(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return finished(tmp_path_factory.mktemp("clean"))


@pytest.mark.parametrize(("family", "number"), DEFECTS)
def test_a_planted_defect_is_found(
    clean_output: Made, tmp_path: Path, family: str, number: int
) -> None:
    shutil.copytree(clean_output.store.uri, tmp_path / "out")
    store = Store(str(tmp_path / "out"), clean_output.job.storage)
    assert Audit(store, depth="manifest").is_clean
    spoiled = replace(clean_output, store=store)
    plant, _ = FAMILIES[family]
    # Writers of the clean output are made to write into the copy.
    before, clean_output.write.store = clean_output.write.store, store
    try:
        plant(spoiled, np.random.default_rng([number, len(family)]), tmp_path)
    finally:
        clean_output.write.store = before
    report = Audit(store)
    assert not report.is_clean
    assert json_line(report.to_dict())
    for finding in report.findings:
        assert finding.where.startswith(store.uri)
        assert store.uri in finding.message


@pytest.mark.parametrize("streaming", [False, True])
def test_a_clean_output_has_no_defects(tmp_path: Path, streaming: bool) -> None:
    output = finished(tmp_path, streaming=streaming)
    report = Audit(output.store)
    assert report.is_clean, list(report.findings)
    assert report.num_left == 0
    assert report.totals is not None
    assert report.totals.num_clips + report.totals.num_rejected == len(output.refs)
    assert report.num_shards_checked == report.totals.num_shards
    assert report.leftovers.num_objects == 0


def test_planting_itself_causes_no_defect(tmp_path: Path) -> None:
    """Sealing entries again and rewriting shards, as the families do, is not a defect."""
    output = finished(tmp_path)
    for seq in range(8):
        edit(output.store, seq, lambda entry: replace(entry, written_at="now"))
        key = entry_of(output.store, seq).shards[0].shard
        relist(output, seq, parquet_edited(output.store.get(key), lambda table: table))
    report = Audit(output.store)
    # Except for the checkpoint, which lists the original shards.
    assert report.findings.counts == {"checkpoint": 1}, list(report.findings)
