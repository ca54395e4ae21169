"""One audit of one output, from its record to a report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from tokpipe.audit.findings import Findings
from tokpipe.audit.leftovers import Leftovers, unlisted
from tokpipe.audit.listing import list_output
from tokpipe.audit.manifest import ManifestAudit
from tokpipe.audit.objects import Depth, ObjectChecks
from tokpipe.audit.planned import PlannedClips, check_plan
from tokpipe.audit.report import AuditReport, Sampled
from tokpipe.errors import ConfigError, CorruptOutput, NotFound
from tokpipe.formats import job_record
from tokpipe.formats.checks import damaged
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.formats.manifest import ManifestEntry
from tokpipe.formats.sealed_json import CHECKSUM
from tokpipe.formats.shard import ShardMetadata
from tokpipe.identity.fingerprint import fingerprint
from tokpipe.plan import StoredPlan
from tokpipe.storage.store import Store

_SAY_EVERY_S = 10.0

_SAY_ABOVE_ROWS = 2**20
"""A plan of so many rows takes seconds to read."""


def audit(
    store: Store,
    *,
    depth: Depth = "bytes",
    partial: bool = False,
    sample: int = 0,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> AuditReport:
    """Check an output and report every defect.

    What is committed while this runs may be left out; nothing is written.

    Args:
        depth: how much is read: the manifest and the plan, or listed objects as well.
        partial: the job is not finished, so rows without outcome are no defect.
        sample: encode this many tokenized clips again and compare their codes.
        seed: decides which clips those are.
        say: takes a line about progress every few seconds.

    Raises:
        ConfigError: there is no output below the store's URI.
        StorageError: the store kept failing.
    """
    started = time.monotonic()
    findings = Findings()
    listing = list_output(store)
    if not listing.num_objects:
        raise ConfigError(
            f"{store.uri}: holds no output of tokpipe, and nothing else. There is nothing to "
            "audit: check the URI"
        )
    record = _record(store, findings)
    if record is None:
        return AuditReport(store.uri, depth, findings, elapsed_s=time.monotonic() - started)
    plan = _plan(store, record, findings)
    clips = None
    if plan is not None:
        if record.num_rows > _SAY_ABOVE_ROWS:
            say(f"reading the plan of {record.num_rows:,} rows")
        check_plan(store, record, plan, findings)
        clips = PlannedClips(store, plan, record.job["sampling"])
    manifest = ManifestAudit(store, record.num_rows, clips, findings)
    chosen = _Sample(sample, seed)
    metadata = ShardMetadata(record.fingerprint, record.tokenizer)
    with ObjectChecks(store, listing, metadata, depth, findings) as objects:
        said_s = time.monotonic()

        def on_entry(entry: ManifestEntry) -> None:
            nonlocal said_s
            for receipt in entry.shards:
                objects.check(receipt)
                chosen.offer([clip.clip_id for clip in receipt.clips])
            if time.monotonic() - said_s > _SAY_EVERY_S:
                said_s = time.monotonic()
                say(
                    f"entry {entry.seq:,} of {len(listing.entries):,}: "
                    f"{manifest.state.totals.num_clips:,} clips, {objects.num_shards:,} shards "
                    f"read, {len(findings):,} defects"
                )

        manifest.run(listing.entries, listing.checkpoints, on_entry)
    num_left = record.num_rows - manifest.state.committed.num_done
    if num_left and not partial:
        findings.add(
            "unsettled",
            store.uri,
            f"{store.uri}: {num_left:,} of {record.num_rows:,} plan rows are neither tokenized nor "
            f"rejected, such as {manifest.unsettled()}. They are missing from the dataset. Run the "
            "job again to finish it, or audit with --partial if it is not meant to be finished yet",
            count=num_left,
        )
    parts = () if plan is None else {part.key for part in plan.parts}
    leftovers = Leftovers.of(unlisted(listing, manifest.listed, parts), time.time())
    sampled: tuple[Sampled, ...] = ()
    if sample and not findings:
        from tokpipe.audit.sample import encode_again  # imports torch

        sampled = encode_again(store, record, chosen.clip_ids, findings, say)
    return AuditReport(
        store.uri,
        depth,
        findings,
        num_entries=len(listing.entries),
        num_rows=record.num_rows,
        num_left=num_left,
        totals=manifest.state.totals,
        num_shards_checked=objects.num_shards,
        num_bytes_checked=objects.num_bytes,
        leftovers=leftovers,
        sampled=sampled,
        elapsed_s=time.monotonic() - started,
    )


def _record(store: Store, findings: Findings) -> JobRecord | None:
    uri = store.uri_of(JOB_RECORD)
    try:
        record = job_record.read(store)
        if CHECKSUM not in json.loads(store.get(JOB_RECORD)):
            raise damaged(uri, "it carries no checksum, which every record of this version has")
    except (CorruptOutput, NotFound) as error:
        findings.add("job_record", uri, error)
        return None
    if fingerprint(record.settings) != record.fingerprint:
        problem = f"its settings do not hash to its fingerprint {record.fingerprint}"
        findings.add("job_record", uri, damaged(uri, problem))
    return record


def _plan(store: Store, record: JobRecord, findings: Findings) -> StoredPlan | None:
    uri = store.uri_of(JOB_RECORD)
    try:
        return StoredPlan.from_json(record.plan)
    except CorruptOutput as error:
        findings.add("plan", uri, error)
        return None


class _Sample:
    """A random choice among clips that pass by, of which it keeps only those chosen so far."""

    def __init__(self, size: int, seed: int) -> None:
        self._size = size
        self._rng = np.random.default_rng(seed)
        self._kept: list[tuple[float, str]] = []

    @property
    def clip_ids(self) -> list[str]:
        return [clip_id for _, clip_id in self._kept]

    def offer(self, clip_ids: list[str]) -> None:
        if not self._size:
            return
        keys = self._rng.random(len(clip_ids))
        largest = self._kept[-1][0] if len(self._kept) == self._size else 1.0
        near = [(float(keys[i]), clip_ids[i]) for i in (keys < largest).nonzero()[0].tolist()]
        self._kept = sorted([*self._kept, *near])[: self._size]
