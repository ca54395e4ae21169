"""A manifest that lacks an entry is damaged for every verb; without its end it is incomplete."""

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.audit.outputs import Made, finished
from tests.conftest import S3Bucket
from tests.formats.formats_helpers import claimed
from tokpipe.audit import Audit, clean
from tokpipe.cli import main
from tokpipe.config.job import StoreOptions
from tokpipe.errors import CorruptOutput, IncompleteOutput
from tokpipe.formats.layout import checkpoint_key, entry_key
from tokpipe.formats.manifest import (
    ManifestEntry,
    count_entries,
    iter_entries,
    iter_rejected,
    load_state,
)
from tokpipe.reader import ClipMix, ClipStream, CodeCache, open_output
from tokpipe.runtime import assemble as runs
from tokpipe.storage import Store

NUM_ENTRIES = 8
LOST = 5
VERBS = (
    *("status", "ls", "inspect", "rejected", "audit", "clean", "decode -o c.png"),
    *("report -o r.html", "export --to memmap -o flat", "export --to mds --allow-partial -o mds"),
    *("run", "run --retry-rejected"),
)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return finished(tmp_path_factory.mktemp("made"), links=True)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return finished(tmp_path_factory.mktemp("another"), links=True, dataset="another")


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Made:
    if request.param == "disk":
        return finished(tmp_path, links=True)
    bucket: S3Bucket = request.getfixturevalue("s3_bucket")
    return finished(tmp_path, links=True, out=f"{bucket.uri}/out")


@pytest.fixture
def copy(made_once: Made, tmp_path: Path) -> Store:
    """A finished output on disk, to damage."""
    shutil.copytree(made_once.store.uri, tmp_path / "out")
    return Store(str(tmp_path / "out"), StoreOptions())


def keys(store: Store) -> set[str]:
    return {found.key for found in store.list("")}


def test_a_missing_entry_is_damage_for_every_verb(
    output: Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(runs, "decoder_versions", lambda *_: {"av": "18.1.0"})
    monkeypatch.chdir(tmp_path)
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(output.record.job))
    assert main(["status", output.store.uri]) == 0
    assert main(["run", str(job)]) == 4, "all of it is done; 2 of 32 clips are rejected"
    output.store.delete(entry_key(LOST))
    before = keys(output.store)
    for verb in VERBS:
        name, *options = verb.split()
        capsys.readouterr()
        assert main([name, str(job) if name == "run" else output.store.uri, *options]) == 8, verb
        said = "".join(capsys.readouterr())
        assert f"{LOST:08d}.json" in said, verb
        assert "missing" in said, verb
        assert "Restore" in said, verb
    assert keys(output.store) == before, "nothing is written into the gap, or removed"


def empty(store: Store, seq: int) -> None:
    store.put(entry_key(seq), b"")


def lose(*seqs: int) -> Callable[[Store], None]:
    def delete(store: Store) -> None:
        for seq in seqs:
            store.delete(entry_key(seq))

    return delete


def without_last(store: Store, *, to: int) -> None:
    lose(*range(to, NUM_ENTRIES))(store)


def without_manifest(store: Store) -> None:
    for found in [*store.list("manifest/")]:
        store.delete(found.key)


def checkpoint_of_more(store: Store) -> None:
    store.put(checkpoint_key(64), b"{}")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lose(0), r"0.json is damaged: it is missing or empty, although .*7.json exists"),
        (lose(1), r"1.json .* missing .*7.json exists"),  # below the checkpoint
        (lose(6), r"6.json .* missing"),
        (lose(0, 2, 3, 4, 5, 6), r"0.json .* missing"),
        (lambda store: empty(store, 2), r"2.json .* missing or empty"),
        (lambda store: empty(store, 7), r"7.json .* missing or empty"),
        # The checkpoint after entry 3 is what remains of the others.
        (lambda store: without_last(store, to=3), r"3.json .* missing .*4.checkpoint.json"),
        (lambda store: without_last(store, to=0), r"0.json .* missing .*4.checkpoint.json"),
        (without_manifest, r"0.json .* missing, although there are shards"),
        (
            checkpoint_of_more,
            r"8.json .* missing .*64.checkpoint.json exists\. Readers .* Remove .*if it",
        ),
        (lambda store: store.put(entry_key(10**6), b"{}"), r"8.json .* missing .*1000000.json"),
    ],
)
def test_any_gap_is_found_and_named(
    damage: Callable[[Store], None], message: str, copy: Store
) -> None:
    damage(copy)
    for read in (count_entries, lambda store: load_state(store, 30), lambda s: [*iter_rejected(s)]):
        with pytest.raises(CorruptOutput, match=message):
            read(copy)
    with pytest.raises(CorruptOutput, match=message):
        open_output(copy.uri)
    with pytest.raises(CorruptOutput, match=message):
        claimed(copy, 30, "driver")
    assert not Audit(copy, depth="manifest").is_clean


def swap(store: Store, _: Made) -> None:
    five, six = store.get(entry_key(5)), store.get(entry_key(6))
    store.put(entry_key(5), six)
    store.put(entry_key(6), five)


def changed(seq: int, **changes: Any) -> Callable[[Store, Made], None]:
    """Return what replaces an entry by a changed one with a checksum that is right."""

    def change(store: Store, _: Made) -> None:
        entry = ManifestEntry.from_json("mem://e", store.get(entry_key(seq)))
        store.put(entry_key(seq), replace(entry, **changes).to_json())

    return change


def of_another(seq: int) -> Callable[[Store, Made], None]:
    return lambda store, other: store.put(entry_key(seq), other.store.get(entry_key(seq)))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swap, r"0000000[56]\.json is damaged: it holds entry [56]"),
        (
            of_another(4),
            r"0000000[45]\.json is damaged: it continues an entry with",
        ),
        (of_another(6), r"0000000[67]\.json is damaged: it continues an entry with the SHA"),
        (changed(5, writer="forger"), r"00000006\.json is damaged: it continues an entry with"),
        (changed(5, previous=None), r"0000000[56]\.json is damaged: it continues an entry with"),
    ],
)
def test_an_entry_that_was_replaced_breaks_the_chain(
    damage: Callable[[Store, Made], None], message: str, copy: Store, another: Made
) -> None:
    damage(copy, another)
    reads: list[Callable[[Store], object]] = [
        lambda store: load_state(store, 30),
        lambda store: load_state(store, 30, interval=4),  # from the checkpoint
        lambda store: list(iter_entries(store)),
        lambda store: list(iter_rejected(store)),  # newest first
        clean,
    ]
    for read in reads:
        with pytest.raises(CorruptOutput, match=message):
            read(copy)
    assert "entry_damaged" in Audit(copy, depth="manifest").findings.counts


@pytest.mark.parametrize(
    "key",
    [".DS_Store", "0000005.json", "000000009.json", "00000009.json.bak", "old/00000099.json",
     "\u0660\u0660\u0660\u0660\u0660\u0660\u0660\u0669.json", "00000099.checkpoint.parquet"],
)  # fmt: skip
def test_foreign_files_beside_the_entries_are_no_entries(key: str, copy: Store) -> None:
    copy.put(f"manifest/{key}", b"{}")
    assert count_entries(copy) == NUM_ENTRIES
    assert Audit(copy, depth="manifest").is_clean


class Lagging:
    """A store whose listings lack some objects, as those of some stores lack new ones."""

    def __init__(self, store: Store, unlisted: Iterable[str]) -> None:
        self._store, self._unlisted = store, set(unlisted)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def list(self, prefix: str) -> object:
        return (one for one in self._store.list(prefix) if one.key not in self._unlisted)


@pytest.mark.parametrize("unlisted", [{7}, {5, 6, 7}, {0}, {2, 4}, {*range(NUM_ENTRIES)}], ids=str)
def test_a_listing_that_lags_behind_hides_nothing(unlisted: set[int], copy: Store) -> None:
    lagging: Any = Lagging(copy, map(entry_key, unlisted))
    assert load_state(lagging, 30).next_seq == count_entries(lagging) == NUM_ENTRIES
    if 7 not in unlisted:  # an audit leaves out what is committed meanwhile
        assert Audit(lagging, depth="manifest").is_clean


def test_an_output_that_lost_its_last_entries_is_incomplete_for_training_and_export(
    copy: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lose(6, 7)(copy)
    output = open_output(copy.uri)
    assert output.num_rows_left == 6
    problem = "incomplete: 6 of 30 plan rows are neither tokenized nor rejected"
    with pytest.raises(IncompleteOutput, match=problem):
        CodeCache(output, tmp_path / "cache")
    cache = CodeCache(output, tmp_path / "cache", allow_partial=True)
    assert len(list(ClipStream(cache))) == len(list(ClipMix([cache], [1.0]))) == output.num_clips
    for verb in ("inspect", "ls", "rejected", f"report -o {tmp_path}/r.html --pairs 0"):
        name, *options = verb.split()
        assert main([name, copy.uri, *options]) == 0
        assert problem in " ".join(capsys.readouterr().out.split())
    assert main(["status", copy.uri]) == 0
    assert "24 of 30 plan rows settled" in capsys.readouterr().out
    export = ["export", copy.uri, "--to", "memmap", "-o", str(tmp_path / "flat")]
    assert main(export) == IncompleteOutput.exit_code == 2
    said = " ".join(capsys.readouterr().err.split())
    assert problem in said
    assert "--allow-partial" in said
    assert not (tmp_path / "flat").exists()
    assert main([*export, "--allow-partial"]) == 0
    assert problem in " ".join(capsys.readouterr().out.split())
