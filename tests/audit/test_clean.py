"""``tokpipe clean`` removes old leftovers, and never what is listed."""

import json
import os
import time
from pathlib import Path

import pytest

from tests.audit.outputs import LEFTOVERS, Made, finished, leave, put
from tests.storage.listed import sizes
from tokpipe.audit import Audit, clean
from tokpipe.cli import main
from tokpipe.errors import ConfigError, CorruptOutput
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import ManifestEntry, append

DAY_S = 24 * 3600.0


@pytest.fixture
def output(tmp_path: Path) -> Made:
    """A finished output with leftovers of every kind, all of it three days old."""
    output = finished(tmp_path)
    leave(output)
    age(output, *sizes(output.store, ""))
    return output


def age(output: Made, *keys: str) -> None:
    then = time.time() - 3 * DAY_S
    for key in keys:
        os.utime(Path(output.store.uri) / key, (then, then))


def test_only_old_leftovers_are_removed(output: Made) -> None:
    put(output, "just-now", output.refs[:1])
    assert clean(output.store, older_than_s=4 * DAY_S).num_objects == 0
    before = sizes(output.store, "")
    removed = clean(output.store)
    after = sizes(output.store, "")
    assert before.keys() - after.keys() == LEFTOVERS
    assert removed.num_objects == len(LEFTOVERS)
    assert removed.size_bytes == sum(before[key] for key in LEFTOVERS)
    report = Audit(output.store)
    assert report.is_clean
    assert report.leftovers.num_objects == 2  # those from just now


def test_a_dry_run_removes_nothing(output: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before = sizes(output.store, "")
    assert main(["clean", output.store.uri, "--dry-run", "--older-than", "48h"]) == 0
    assert "would remove 4 unlisted objects" in capsys.readouterr().out
    assert main(["clean", output.store.uri, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_objects"] == 4
    assert sizes(output.store, "") == before


def test_objects_committed_after_the_listing_are_kept(
    output: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow driver commits an old shard between the two steps of ``clean``."""
    store = output.store
    receipt = put(output, "slow", output.refs[:1])
    age(output, receipt.shard, receipt.side_table)
    inner = type(store).list

    def list_then_commit(self: object, prefix: str) -> object:
        yield from inner(store, prefix)
        assert append(store, ManifestEntry(8, "driver", "later", (receipt,)))

    monkeypatch.setattr(type(store), "list", list_then_commit)
    assert clean(store).num_objects == len(LEFTOVERS)
    assert store.size(receipt.shard) is not None


def test_shards_are_kept_until_the_job_has_finished(
    output: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last entries are lost, and nothing else says that their shards are part of the output."""
    for seq in (6, 7):
        output.store.delete(entry_key(seq))
    lost = {f"{kind}/shard{seq}.parquet" for kind in ("shards", "clips") for seq in (6, 7)}
    before = sizes(output.store, "").keys()
    assert main(["clean", output.store.uri]) == 0
    assert "kept 6 unlisted shards and side tables" in capsys.readouterr().out
    temporary = {key for key in LEFTOVERS if key.startswith(("plan/", "probe/"))}
    assert before - sizes(output.store, "").keys() == temporary
    assert main(["clean", output.store.uri, "--partial"]) == 0
    assert "shards and side tables" not in capsys.readouterr().out
    assert before - sizes(output.store, "").keys() == LEFTOVERS | lost


@pytest.mark.parametrize("is_missing", [False, True])
def test_a_damaged_manifest_stops_cleaning(output: Made, is_missing: bool) -> None:
    """Otherwise the shards that later entries list would look unlisted."""
    output.store.delete("manifest/00000003.json")
    if not is_missing:
        output.store.put("manifest/00000003.json", b"{}")
    before = sizes(output.store, "").keys()
    with pytest.raises(CorruptOutput, match=r"00000003\.json"):
        clean(output.store)
    assert sizes(output.store, "").keys() == before


def test_an_age_below_an_hour_is_rejected(output: Made, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="use an hour or more"):
        clean(output.store, older_than_s=60)
    assert main(["clean", output.store.uri, "--older-than", "59m"]) == 2
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["clean", output.store.uri, "--older-than", "soon"])
    assert "write 90m, 12h or 2d" in capsys.readouterr().err
