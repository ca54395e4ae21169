"""What an audit reports, besides finding planted defects."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.audit.outputs import Made, edit, entry_of, finished, leave, put
from tests.formats.formats_helpers import flipped
from tokpipe.audit import Audit
from tokpipe.audit.audit import Depth
from tokpipe.audit.findings import EXAMPLES, Findings
from tokpipe.audit.manifest import PlannedClips
from tokpipe.cli import main
from tokpipe.formats.manifest import Claim, ManifestEntry, Reopened, append
from tokpipe.plan import StoredPlan

DEPTHS: tuple[Depth, ...] = ("manifest", "sizes", "bytes")


@pytest.fixture
def output(tmp_path: Path) -> Made:
    return finished(tmp_path)


def test_all_defects_are_reported(output: Made) -> None:
    store = output.store
    store.put("shards/shard0.parquet", b"")
    store.delete("shards/shard1.parquet")
    store.put("clips/shard2.parquet", store.get("clips/shard2.parquet")[:-1])
    store.delete("manifest/00000005.json")
    once = dict.fromkeys(("entry_missing", "shard", "object_missing", "side_table"), 1)
    assert Audit(store).findings.counts == {**once, "unsettled": 4}


def test_rows_of_a_missing_entry_are_unsettled(output: Made) -> None:
    output.store.delete("manifest/00000001.json")
    report = Audit(output.store)
    (unsettled,) = (one for one in report.findings if one.kind == "unsettled")
    # Row 3 is cut into three clips, the first of which is in the shard before.
    assert "4 of 30 plan rows" in unsettled.message
    assert "--partial" in unsettled.message


def test_unsettled_rows_are_a_defect_unless_partial(tmp_path: Path) -> None:
    output = finished(tmp_path, num_shards=3)
    assert Audit(output.store).findings.counts["unsettled"] == Audit(output.store).num_left > 0
    assert Audit(output.store, partial=True).is_clean
    assert main(["audit", output.store.uri]) == 8
    assert main(["audit", output.store.uri, "--partial"]) == 0


@pytest.mark.parametrize(("depth", "found"), list(zip(DEPTHS, (0, 1, 2), strict=True)))
def test_each_depth_finds_what_it_reads(output: Made, depth: Depth, found: int) -> None:
    key = "shards/shard0.parquet"
    output.store.put(key, flipped(output.store.get(key), 800))
    output.store.put("shards/shard1.parquet", b"short")
    assert len(Audit(output.store, depth=depth).findings) == found


def test_a_checkpoint_beyond_the_last_entry_reveals_missing_entries(output: Made) -> None:
    for seq in range(2, 8):
        output.store.delete(f"manifest/{seq:08d}.json")
    report = Audit(output.store, partial=True)
    assert report.findings.counts["entry_missing"] == 2  # of four that are summed up


def test_a_clip_can_be_tokenized_after_its_rejection_is_withdrawn(output: Made) -> None:
    store = output.store
    rejection = entry_of(store, 0).rejected[0]
    reopened = (Reopened(rejection.ref, rejection.reason),)
    claim = Claim("host", 1, "0.1.0")
    assert append(store, ManifestEntry(8, "driver-2", "later", claim=claim))
    assert append(store, ManifestEntry(9, "driver-2", "later", reopened=reopened))
    assert Audit(store).findings.counts == {"unsettled": 1}
    receipt = put(output, "after-all", [rejection.ref])
    assert append(store, ManifestEntry(10, "driver-2", "later", (receipt,)))
    report = Audit(store)
    assert report.is_clean, list(report.findings)
    assert report.totals is not None
    assert report.totals.num_rejected == 1


@pytest.mark.parametrize("change", [{"job": {}}, {"plan": {}}], ids=str)
def test_a_record_that_does_not_say_what_the_plan_makes_is_a_defect(
    output: Made, change: dict[str, Any]
) -> None:
    output.store.put("job.json", output.record.model_copy(update=change).to_json())
    report = Audit(output.store, depth="manifest")
    assert report.findings.counts == {"plan": 1}
    assert report.num_entries == 8


def test_a_clip_without_an_id_that_is_not_in_the_plan_is_a_defect(output: Made) -> None:
    entry = entry_of(output.store, 0)
    blank = replace(entry.shards[0].clips[0], clip_id="", row=999)
    receipt = replace(entry.shards[0], clips=(blank, *entry.shards[0].clips[1:]))
    shards = (receipt, *entry.shards[1:])
    edit(output.store, 0, lambda entry: replace(entry, shards=shards, redacted="0" * 64))
    assert Audit(output.store, depth="manifest").findings.counts["not_planned"] == 1


def test_a_tokenized_clip_cannot_be_reopened(output: Made) -> None:
    """Otherwise a second shard could hold it, and no count would show it."""
    clip = entry_of(output.store, 0).shards[0].clips[0]
    receipt = put(output, "second", [clip])
    entry = ManifestEntry(8, "driver", "later", (receipt,), reopened=(Reopened(clip, "no_video"),))
    assert append(output.store, entry)
    assert Audit(output.store).findings.counts == {"not_rejected": 1, "clip_twice": 1}


def test_leftovers_are_reported_but_are_not_a_defect(output: Made) -> None:
    leave(output)
    report = Audit(output.store)
    assert report.is_clean
    assert report.leftovers.num_objects == 4
    assert any("4 unlisted objects" in line for line in report.lines())


def test_all_defects_are_counted_and_some_are_kept_as_examples() -> None:
    findings = Findings()
    for number in range(100):
        findings.add("not_planned", "mem://out", f"clip {number}")
    assert (len(findings), len(list(findings))) == (100, EXAMPLES)


def test_clips_are_compared_with_their_own_rows(output: Made) -> None:
    plan = StoredPlan.from_json(output.record.plan)
    clips = PlannedClips(output.store, plan, output.record.job["sampling"])
    assert list(clips.mismatches(output.refs)) == []
    swapped = [replace(ref, row=(ref.row + 1) % 30) for ref in output.refs]
    assert len(list(clips.mismatches(swapped))) == 2 * len(swapped)  # id and source, each


@pytest.mark.parametrize("key", ["shards/../job.json", "/etc/passwd", "shards/", ""])
def test_an_invalid_listed_key_is_a_defect(output: Made, key: str) -> None:
    shards = (replace(entry_of(output.store, 0).shards[0], shard=key),)
    edit(output.store, 0, lambda entry: replace(entry, shards=shards))
    for depth in DEPTHS:
        report = Audit(output.store, depth=depth)
        assert report.findings.counts["entry_damaged"] == 1
        assert report.num_shards_checked == (0 if depth == "manifest" else 7)


def test_the_report_says_what_is_wrong_and_what_to_do(
    output: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["audit", output.store.uri]) == 0
    printed = capsys.readouterr().out
    assert "30 rows, 0 not settled" in printed
    assert "30 clips tokenized, 2 rejected" in printed
    assert "8 of 8 shards and side tables read" in printed
    assert "clean: no defect found" in printed

    output.store.delete("shards/shard3.parquet")
    assert main(["audit", output.store.uri]) == 8
    printed = capsys.readouterr().out
    assert "1 defect: object_missing 1" in printed
    assert "shard3.parquet is damaged: it is missing, although the manifest lists it" in printed
    assert "tokenize the dataset again" in printed


def test_json_reports_are_one_line(output: Made, capsys: pytest.CaptureFixture[str]) -> None:
    edit(output.store, 0, lambda entry: replace(entry, rejected=()))
    assert main(["audit", output.store.uri, "--json"]) == 8
    report = json.loads(capsys.readouterr().out)
    assert (report["clean"], report["defects"]["unsettled"]) == (False, 1)
    assert "unsettled" in {one["kind"] for one in report["examples"]}


def test_a_missing_output_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(tmp_path / "nothing")]) == 2
    assert "has no job.json, so it is not an output" in capsys.readouterr().err


def test_a_folder_without_a_job_is_no_damage_but_one_with_shards_is(
    output: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").touch()
    assert main(["audit", str(tmp_path / "other")]) == 2
    assert "has no job.json, so it is not an output" in capsys.readouterr().err
    output.store.delete("job.json")
    assert main(["audit", output.store.uri]) == 8
    said = " ".join(capsys.readouterr().out.split())
    assert "it is missing, although entries of the manifest or shards exist" in said
    assert "wait for the job" not in said
