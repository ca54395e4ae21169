"""One audit of one output, from its record to a report."""

import functools
import heapq
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np

from tokpipe.audit.leftovers import Leftovers, Listing
from tokpipe.audit.manifest import ManifestAudit, PlannedClips, check_plan
from tokpipe.audit.report import AuditReport, Depth, Findings, Kind, Sampled
from tokpipe.config.trust import NO_TRUST, Trust
from tokpipe.errors import CorruptOutput, NotFound, SourceError, TokpipeError
from tokpipe.formats import job_record
from tokpipe.formats.checks import damaged
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.formats.sealed_json import CHECKSUM
from tokpipe.formats.shard import ShardMetadata
from tokpipe.formats.shard_reader import check_shard
from tokpipe.formats.side_table import read_side_table
from tokpipe.identity import digest
from tokpipe.plan import StoredPlan
from tokpipe.reader import Output
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.types import Receipt

_PARALLEL_CHECKS = 4  # Shards in memory: at most 0.5 GB with default settings


def audit(
    store: Store,
    *,
    depth: Depth = "bytes",
    partial: bool = False,
    sample: int = 0,
    seed: int = 0,
    trust: Trust = NO_TRUST,
) -> AuditReport:
    """Check an output and report every defect. Writes nothing.

    May leave out what is committed while it runs.

    Args:
        partial: the job is unfinished, so rows without an outcome are not a defect.
        sample: number of tokenized clips to encode again, to compare their codes.
        trust: what the output may name; a ``sample`` opens its sources.
    """
    started = time.monotonic()
    if sample:
        trust.check_sources(store.uri)
    findings = Findings()
    listing = Listing(store)
    record = _record(store, listing, findings)
    if record is None:
        return AuditReport(store.uri, depth, findings, elapsed_s=time.monotonic() - started)
    plan = clips = None
    try:
        plan = StoredPlan.from_json(record.plan)
    except CorruptOutput as error:
        findings.add("plan", store.uri_of(JOB_RECORD), error)
    else:
        check_plan(store, record, plan, findings)
        clips = PlannedClips(store, plan, record.job.get("sampling", {}))
    manifest = ManifestAudit(store, record.num_rows, clips, findings)
    totals, rng = manifest.state.totals, np.random.default_rng(seed)
    chosen: list[tuple[float, str]] = []  # the clips with the smallest random numbers
    metadata = ShardMetadata(record.fingerprint, record.tokenizer)
    check = functools.partial(_check_objects, store, listing, metadata, depth, findings)

    def receipts() -> Iterator[Receipt]:
        nonlocal chosen
        for entry in manifest.entries(listing):
            for receipt in entry.shards:
                keys = rng.random(len(receipt.clips)).tolist()
                offered = zip(keys, (clip.clip_id for clip in receipt.clips), strict=True)
                chosen = heapq.nsmallest(sample, [*chosen, *offered])
                yield receipt

    every = receipts()
    deque(every if depth == "manifest" else read_ahead(check, every, _PARALLEL_CHECKS), maxlen=0)
    num_left = record.num_rows - manifest.state.committed.num_done
    if num_left and not partial:
        findings.add(
            "unsettled",
            store.uri,
            f"{store.uri}: {num_left:,} of {record.num_rows:,} plan rows are neither tokenized nor "
            "rejected, so the dataset lacks them. Run the job again to finish it, or audit with "
            "--partial if it is unfinished on purpose",
            count=num_left,
        )
    parts = () if plan is None else {part.key for part in plan.parts}
    leftovers = Leftovers.of(listing.unlisted(manifest.listed, parts))
    sampled: tuple[Sampled, ...] = ()
    if sample and not findings:
        clip_ids = [clip_id for _, clip_id in chosen]
        sampled = tuple(_encode_again(Output(store, trust=trust), clip_ids, findings))
    return AuditReport(
        store.uri,
        depth,
        findings,
        num_entries=len(listing.entries),
        num_rows=record.num_rows,
        num_left=num_left,
        totals=totals,
        num_shards_checked=0 if depth == "manifest" else totals.num_shards,
        num_bytes_checked=totals.size_bytes if depth == "bytes" else 0,
        leftovers=leftovers,
        sampled=sampled,
        elapsed_s=time.monotonic() - started,
    )


def _record(store: Store, listing: Listing, findings: Findings) -> JobRecord | None:
    uri = store.uri_of(JOB_RECORD)
    try:
        record = job_record.read(store)
        if CHECKSUM not in json.loads(store.get(JOB_RECORD)):
            raise damaged(uri, "it has no checksum, which every record of this version has")
    except CorruptOutput as error:
        findings.add("job_record", uri, error)
        return None
    except NotFound:
        if not (listing.entries or listing.data):
            raise  # it is not an output, or not yet
        problem = "it is missing, although entries of the manifest or shards exist"
        findings.add_damage("job_record", uri, problem)
        return None
    if digest(record.settings) != record.fingerprint:
        problem = f"its settings do not hash to its fingerprint {record.fingerprint}"
        findings.add_damage("job_record", uri, problem)
    return record


def _encode_again(output: Output, clip_ids: Sequence[str], findings: Findings) -> Iterator[Sampled]:
    """Encode clips again from their sources: the one check that does not trust stored codes."""
    from tokpipe.reconstruct.frames import Reencoder  # imports torch

    with Reencoder(output) as reencoder:
        for clip_id in clip_ids:
            clip = output.clip(clip_id)
            where = f"{output.store.uri}: clip {clip_id} of {clip.source_uri}"
            try:
                same, *psnrs = reencoder.compare(clip)
            except (SourceError, NotFound) as error:
                problem = (
                    f"cannot be encoded again ({error}), so its codes are not confirmed. "
                    "Restore its source, or sample other clips with --seed"
                )
            else:
                yield Sampled(clip_id, clip.source_uri, same, *psnrs)
                if same == 1:
                    continue
                problem = (
                    f"produces different codes when it is encoded again: {same:.2%} are the same. "
                    "Training would see another video. Unless hardware or library versions differ "
                    "from those in job.json, tokenize it again to a new output prefix"
                )
            findings.add("codes_differ", output.store.uri, f"{where} {problem}")


def _check_objects(
    store: Store,
    listing: Listing,
    metadata: ShardMetadata,
    depth: Depth,
    findings: Findings,
    receipt: Receipt,
) -> None:
    """Check a shard that the manifest lists, which must have this ``metadata``, and its table."""
    objects: list[tuple[Kind, str, int]] = [
        ("shard", receipt.shard, receipt.size_bytes),
        ("side_table", receipt.side_table, receipt.side_table_size_bytes),
    ]
    for kind, key, size_bytes in objects:
        uri = f"{store.uri}/{key}"
        try:
            if depth == "sizes":
                # An object that was not listed may be newer than the listing: ask the store for it.
                found = listing.data.get(key)
                size = store.size(key) if found is None else found.size_bytes
                if size is None:
                    raise NotFound(uri)
                if size != size_bytes:
                    raise damaged(uri, f"it has {size} bytes, but the manifest lists {size_bytes}")
            elif kind == "shard":
                check_shard(uri, store.get(key), receipt, metadata)
            else:
                _check_side_table(uri, store.get(key), receipt)
        except NotFound:
            problem = "it is missing, although the manifest lists it"
            findings.add_damage("object_missing", uri, problem)
        except CorruptOutput as error:
            findings.add(kind, uri, error)
        except TokpipeError:
            raise
        except Exception as error:
            # A malicious manifest or file can make a parser raise anything. That is one more
            # defect, and the audit continues.
            problem = f"checking it failed with {type(error).__name__}: {error}"
            findings.add_damage(kind, uri, problem)


def _check_side_table(uri: str, data: bytes, receipt: Receipt) -> None:
    sha256, size_bytes = receipt.side_table_sha256, receipt.side_table_size_bytes
    table = read_side_table(uri, data, size_bytes=size_bytes, sha256_hex=sha256)
    columns = ["clip_id", "plan_row", "segment", "n_segments", "source_uri"]
    found = list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))
    clips = sorted(receipt.clips, key=lambda clip: clip.clip_id)
    if found != [(c.clip_id, c.row, c.segment, c.num_segments, c.source_uri) for c in clips]:
        raise damaged(uri, f"its {len(found)} clips are not those listed for its shard")
