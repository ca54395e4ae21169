"""Outputs to report on: one that real stages made from a real video, and one with a history."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.end_to_end.jobs import SAMPLE, run_without_ray
from tests.formats.formats_helpers import DictStore, encoded_clip
from tests.reader.reader_helpers import begin, put_shard
from tokpipe.config.load import parse_job
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import Claim, ManifestEntry, append, iter_entries
from tokpipe.storage import Store
from tokpipe.telemetry.account import Account
from tokpipe.types import ClipRef, Rejected

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
HOSTILE = '"><script>document.title = "broken"</script><img src=x onerror=alert(1)>&a.mp4'
NUM_SHARDS, PAUSE_S = 8, 86_400.0
SPENT = {"download": 0.5, "decode": 4.0, "transfer": 0.1, "encode": 8.0, "write": 0.2}
UP = {"decode": 10.0, "encode": 10.0, "write": 5.0}


def entry(seq: int, at_s: float, writer: str = "driver-1", **content: Any) -> ManifestEntry:
    time = (BEGAN + timedelta(seconds=at_s)).isoformat(timespec="milliseconds")
    return ManifestEntry(seq, writer, time, **content)


def with_history(*, actors: Account = Account(SPENT, UP)) -> DictStore:  # noqa: B008
    """Two drivers, a day apart, that commit a shard of three clips every ten seconds."""
    store = DictStore()
    begin(store)
    at_s, seq = 0.0, 0
    for number in range(NUM_SHARDS):
        writer = f"driver-{number * 2 // NUM_SHARDS}"
        if number in (0, NUM_SHARDS // 2):
            at_s += PAUSE_S * bool(number)
            claim = Claim("host", 7 + number, f"0.{number}.0")
            assert append(store, entry(seq, at_s, writer, claim=claim))
            seq += 1
        at_s += 10
        clips = [encoded_clip(10 * number + row, [5, 9][: 1 + row % 2]) for row in range(3)]
        shards = (put_shard(store, f"s{number}", clips),)
        ref = ClipRef(f"bad{number}", 900 + number, 0, 1, f"s3://videos/{number}{HOSTILE}")
        rejected = Rejected(ref, "decode", "truncated", f"<b>cut short</b> at {number} s")
        account = replace(actors, paid_s=10.0, useful_s=7.5)
        content: Any = {"rejected": (rejected,)} if number % 2 else {}
        assert append(store, entry(seq, at_s, writer, shards=shards, account=account, **content))
        seq += 1
    return store


def really_made(root: Path, **changes: Any) -> Path:
    """Tokenize the sample video with a job's stages, but without a cluster."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(SAMPLE, root / "video.mp4")
    settings: dict[str, Any] = {
        "dataset": "bunny",
        "sources": [{"kind": "files", "uri": "*.mp4"}],
        "output": {"uri": "out"},
        "sampling": {"fps": 8, "max_clip_frames": 17},
        "frames": {"size": [64, 64]},
        "tokenizer": {"checkpoint": "builtin://fsq-4x8x8"},
        "encode": {"device": "cpu", "batch_chunks": 1},
        **changes,
    }
    job = parse_job(json.dumps(settings), name="job.yaml", root=root, environ={})
    run_without_ray(job)
    store = Store(job.output.uri, job.storage)
    entries = list(iter_entries(store))
    (receipt,) = (one for old in entries for one in old.shards)
    for old in entries:
        store.delete(entry_key(old.seq))
    assert append(store, entry(0, 0, "driver", claim=Claim("host", 1, "0.1.0")))
    spent = Account({**SPENT, "encode": 9.0}, UP)
    assert append(store, entry(1, 12, "driver", shards=(receipt,), account=spent))
    return root / "out"
