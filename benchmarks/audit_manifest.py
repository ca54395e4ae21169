"""How long an audit of a manifest takes, and in how much memory.

Makes the plan, the record and the manifest of an output of N clips in a temporary folder (no
shards: they are not looked at), audits it, and prints seconds and peak memory of the audit alone::

    python benchmarks/audit_manifest.py 1000000
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import tokpipe
from tokpipe.audit import audit
from tokpipe.config.job import StoreOptions
from tokpipe.config.load import parse_job
from tokpipe.fingerprint import fingerprint, fingerprint_settings
from tokpipe.formats import job_record
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.manifest import (
    CHECKPOINT_INTERVAL,
    CommittedRows,
    ManifestEntry,
    ManifestState,
    append,
    write_checkpoint,
)
from tokpipe.formats.tokenizer_spec import TokenizerSpec
from tokpipe.plan import PlanReader, write_plan
from tokpipe.storage import open_store
from tokpipe.types import ClipRef, Receipt

CLIPS_PER_SHARD = 1000
SHUFFLED_ROWS = 8192
"""Clips of so many rows are finished in any order: the manifest only nearly follows the plan."""


def make(folder: Path, num_clips: int) -> None:
    """Write an output of ``num_clips`` clips, without its shards."""
    with (folder / "clips.csv").open("w") as file:
        file.write("url,caption\n")
        file.writelines(
            f"s3://a-bucket/videos/{row // 1000:06}/{row:010}.mp4,what is seen in video {row}\n"
            for row in range(num_clips)
        )
    settings = {
        "dataset": "synthetic",
        "sources": [{"kind": "table", "uri": "clips.csv", "uri_column": "url"}],
        "output": {"uri": "out"},
        "frames": {"size": [16, 24]},
        "tokenizer": {
            "encoder": {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "z_channels": 6},
            "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 4, 2, 2]},
        },
    }
    job = parse_job(json.dumps(settings), name="job.yaml", root=folder, environ={})
    store = open_store(job.output.uri, job.storage)
    plan = write_plan(job, store, "driver")
    codes = fingerprint_settings(job, weights_hash="none", device="cpu")
    job_record.write_once(
        store,
        JobRecord(
            tokpipe_version=tokpipe.__version__,
            created_at="2026-01-01T00:00:00+00:00",
            writer="driver",
            dataset=job.dataset,
            fingerprint=fingerprint(codes),
            settings=codes,
            tokenizer=TokenizerSpec.of(job.tokenizer, job.chunking, "none"),
            num_rows=plan.num_rows,
            plan=plan.to_json(),
            libraries={},
            job=job.model_dump(mode="json"),
        ),
    )
    reader, rng = PlanReader(store, plan), np.random.default_rng(0)
    state = ManifestState(CommittedRows(plan.num_rows))
    waiting: list[ClipRef] = []
    for part in range(reader.num_parts):
        items = reader.items(part)
        for at in range(0, len(items), SHUFFLED_ROWS):
            some = items[at : at + SHUFFLED_ROWS]
            waiting += (
                ClipRef(some[i].row_id, some[i].row, 0, 1, some[i].source_uri)
                for i in rng.permutation(len(some)).tolist()
            )
            is_last = part == reader.num_parts - 1 and at + SHUFFLED_ROWS >= len(items)
            while len(waiting) >= CLIPS_PER_SHARD or (is_last and waiting):
                clips, waiting = waiting[:CLIPS_PER_SHARD], waiting[CLIPS_PER_SHARD:]
                seq = state.next_seq
                num = len(clips)
                shard, side_table = f"shards/s{seq}.parquet", f"clips/s{seq}.parquet"
                receipt = Receipt(
                    *(shard, 10**8, "0" * 64, num, num * 480, num * 17, (2, 3)),
                    *(side_table, "0" * 64, 10**5, tuple(clips)),
                )
                entry = ManifestEntry(seq, "driver", "now", (receipt,))
                assert append(store, entry)
                state.apply(entry)
                if state.next_seq % CHECKPOINT_INTERVAL == 0:
                    write_checkpoint(store, state)


def measure(uri: str) -> None:
    """Audit, and print what it took; in a process of its own, for the sake of its memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = audit(open_store(uri, StoreOptions()), depth="manifest", say=print)
    assert report.is_clean, list(report.findings)
    assert report.totals is not None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"{report.totals.num_clips:,} clips, {report.num_entries:,} entries: "
        f"{report.elapsed_s:.1f} s, peak {peak / 1024:,.0f} MiB, of which "
        f"{before / 1024:,.0f} MiB before the audit began"
    )


def main() -> None:
    num_clips = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as name:
        started = time.monotonic()
        process = multiprocessing.get_context("spawn")
        maker = process.Process(target=make, args=(Path(name), num_clips))
        maker.start()
        maker.join()
        print(f"made in {time.monotonic() - started:.0f} s")
        auditor = process.Process(target=measure, args=(str(Path(name) / "out"),))
        auditor.start()
        auditor.join()
        sys.exit(maker.exitcode or auditor.exitcode or 0)


if __name__ == "__main__":
    main()
