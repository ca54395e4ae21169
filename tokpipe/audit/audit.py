"""One audit of one output, from its record to a report for people and for programs."""

import functools
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tokpipe.audit.findings import Findings, Kind
from tokpipe.audit.leftovers import Leftovers, Listing
from tokpipe.audit.manifest import ManifestAudit, PlannedClips, check_named, check_plan
from tokpipe.config.trust import NO_TRUST, Trust
from tokpipe.errors import CorruptOutput, NotFound, SourceError, TokpipeError
from tokpipe.formats import job_record
from tokpipe.formats.checks import damaged
from tokpipe.formats.job_record import JobRecord
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.formats.manifest import Totals
from tokpipe.formats.sealed_json import CHECKSUM
from tokpipe.formats.shard import ShardMetadata
from tokpipe.formats.shard_reader import check_shard
from tokpipe.formats.side_table import read_side_table
from tokpipe.identity import digest
from tokpipe.plan import StoredPlan
from tokpipe.reader import Output
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.telemetry.human import counted
from tokpipe.types import Receipt

Depth = Literal["manifest", "sizes", "bytes"]
"""Check the manifest alone, or also the size of each listed object, or every byte and code."""
_PARALLEL_CHECKS = 4  # Shards in memory: at most 0.5 GB with default settings


@dataclass(frozen=True, slots=True)
class Sampled:
    """A clip that was encoded again."""

    clip_id: str
    source_uri: str
    equal_fraction: float  # Of its codes, those that came out the same; 1 for an intact output
    psnr_db: float | None  # Stored codes, decoded, against the source; None without a decoder
    psnr_again_db: float | None  # New codes, decoded, against the source

    def line(self) -> str:
        quality = ""
        if self.psnr_db is not None and self.psnr_again_db is not None:
            quality = f", PSNR {self.psnr_db:.2f} dB, encoded again {self.psnr_again_db:.2f} dB"
        return f"clip {self.clip_id}: {self.equal_fraction:.2%} of its codes are the same{quality}"


class Audit:
    """Every defect of an output, perhaps without what is committed meanwhile. Writes nothing."""

    def __init__(
        self,
        store: Store,
        *,
        depth: Depth = "bytes",
        partial: bool = False,
        sample: int = 0,
        seed: int = 0,
        trust: Trust = NO_TRUST,
    ) -> None:
        """Check an output.

        Args:
            partial: the job is unfinished, so rows without an outcome are not a defect.
            sample: number of tokenized clips to encode again, to compare their codes.
            trust: what the output may name; a ``sample`` opens its sources.
        """
        started = time.monotonic()
        if sample:
            trust.check_sources(store.uri)
        self.uri, self.depth, self.findings = store.uri, depth, Findings()
        self.num_entries = self.num_rows = 0
        self.num_left = 0  # Plan rows that are not settled
        self.totals: Totals | None = None  # If job.json is damaged, so nothing else was checked
        self.num_shards_checked = self.num_bytes_checked = 0
        self.leftovers = Leftovers()
        self.sampled: list[Sampled] = []
        self._store, self._listing = store, Listing(store)
        self._problems: list[tuple[str, Kind, object]] = []  # of objects that entries list, by key
        if (record := self._record()) is not None:
            self._check(record)
            if self.num_left and not partial:
                self.findings.add(
                    "unsettled",
                    store.uri,
                    f"{store.uri}: {self.num_left:,} of {self.num_rows:,} plan rows are neither "
                    "tokenized nor rejected, so the dataset lacks them. Run the job again to "
                    "finish it, or audit with --partial if it is unfinished on purpose",
                    count=self.num_left,
                )
            if sample and not self.findings:
                output = Output(store, trust=trust)
                self._encode_again(output, _some_clips(output, sample, seed))
        self.elapsed_s = round(time.monotonic() - started, 3)

    def _record(self) -> JobRecord | None:
        uri = self._store.uri_of(JOB_RECORD)
        try:
            record = job_record.read(self._store)
            if CHECKSUM not in json.loads(self._store.get(JOB_RECORD)):
                raise damaged(uri, "it has no checksum, which every record of this version has")
        except CorruptOutput as error:
            self.findings.add("job_record", uri, error)
            return None
        except NotFound:
            if not (self._listing.entries or self._listing.data):
                raise  # it is not an output, or not yet
            problem = "it is missing, although entries of the manifest or shards exist"
            self.findings.add_damage("job_record", uri, problem)
            return None
        if digest(record.settings) != record.fingerprint:
            problem = f"its settings do not hash to its fingerprint {record.fingerprint}"
            self.findings.add_damage("job_record", uri, problem)
        return record

    def _check(self, record: JobRecord) -> None:
        """Check plan, manifest and objects."""
        store, listing = self._store, self._listing
        clips = None
        try:
            plan = StoredPlan.from_json(record.plan)
            check_named(store.uri_of(JOB_RECORD), plan, record.num_rows, self.findings)
            clips = PlannedClips(store, plan, record.job.get("sampling", {}))
        except CorruptOutput as error:
            self.findings.add("plan", store.uri_of(JOB_RECORD), error)
        manifest = ManifestAudit(store, record.num_rows, clips, self.findings)
        receipts = (one for entry in manifest.entries(listing) for one in entry.shards)
        every: Iterator[object] = receipts
        self.totals = totals = manifest.state.totals
        if self.depth != "manifest":
            metadata = ShardMetadata(record.fingerprint, record.tokenizer)
            check = functools.partial(self._check_objects, metadata)
            every = read_ahead(check, receipts, _PARALLEL_CHECKS)
        deque(every, maxlen=0)
        for key, kind, problem in self._problems:
            if key in manifest.listed:  # others were replaced, and may be gone
                self.findings.add(kind, store.uri_of(key), problem)
        manifest.check_redacted()
        committed = manifest.state.committed
        self.num_entries, self.num_rows = len(listing.entries), committed.num_rows
        self.num_left = committed.num_unsettled
        self.num_shards_checked = 0 if self.depth == "manifest" else totals.num_shards
        self.num_bytes_checked = totals.size_bytes if self.depth == "bytes" else 0
        parts = () if clips is None else clips.plan.parts
        check_plan(store, parts, self.findings)
        self.leftovers = Leftovers.of(listing.unlisted(manifest.state, parts))

    def _check_objects(self, metadata: ShardMetadata, receipt: Receipt) -> None:
        """Check a listed shard, which must have this metadata, and its table. Runs in threads."""
        objects: list[tuple[Kind, str, int]] = [
            ("shard", receipt.shard, receipt.size_bytes),
            ("side_table", receipt.side_table, receipt.side_table_size_bytes),
        ]
        for kind, key, size_bytes in objects:
            uri = f"{self.uri}/{key}"
            try:
                if self.depth == "sizes":
                    # An object that was not listed may be newer than the listing: ask the store.
                    found = self._listing.data.get(key)
                    size = self._store.size(key) if found is None else found.size_bytes
                    if size is None:
                        raise NotFound(uri)
                    if size != size_bytes:
                        lists = f"but the manifest lists {size_bytes}"
                        raise damaged(uri, f"it has {size} bytes, {lists}")
                elif kind == "shard":
                    check_shard(uri, self._store.get(key), receipt, metadata)
                else:
                    _check_side_table(uri, self._store.get(key), receipt)
            except NotFound:
                error = damaged(uri, "it is missing, although the manifest lists it")
                self._problems.append((key, "object_missing", error))
            except CorruptOutput as error:
                self._problems.append((key, kind, error))
            except TokpipeError:
                raise
            except Exception as error:
                # A malicious file can make a parser raise anything: that is one more defect.
                problem = f"checking it failed with {type(error).__name__}: {error}"
                self._problems.append((key, kind, damaged(uri, problem)))

    def _encode_again(self, output: Output, clip_ids: Iterable[str]) -> None:
        """Encode clips again from their sources: the one check that does not trust stored codes."""
        from tokpipe.reconstruct.frames import Reencoder  # imports torch

        with Reencoder(output) as reencoder:
            for clip_id in clip_ids:
                clip = output.clip(clip_id)
                try:
                    same, *psnrs = reencoder.compare(clip)
                except (SourceError, NotFound) as error:
                    problem = (
                        f"cannot be encoded again ({error}), so its codes are not confirmed. "
                        "Restore its source, or sample other clips with --seed"
                    )
                else:
                    self.sampled.append(Sampled(clip_id, clip.source_uri, same, *psnrs))
                    if same == 1:
                        continue
                    problem = (
                        f"produces different codes when it is encoded again: {same:.2%} are the "
                        "same. Training would see another video. Unless hardware or libraries "
                        "differ from those in job.json, tokenize it again to a new output prefix"
                    )
                where = f"{self.uri}: clip {clip_id} of {clip.source_uri}"
                self.findings.add("codes_differ", self.uri, f"{where} {problem}")

    @property
    def is_clean(self) -> bool:
        return not self.findings

    def lines(self) -> Iterator[str]:
        """Yield one line per check, then the defects."""
        yield f"audit of {self.uri}"
        if (totals := self.totals) is None:
            yield "  checked only job.json, which says where everything else is"
        else:
            yield f"  plan      {self.num_rows:,} rows, {self.num_left:,} not settled"
            clips = f"{totals.num_clips:,} clips tokenized, {totals.num_rejected:,} rejected"
            yield f"  manifest  {self.num_entries:,} entries: {clips}"
            yield f"  encoders  {totals.encoders_text()}"
            checked = f"{self.num_shards_checked:,} of {totals.num_shards:,} shards and side tables"
            yield {
                "manifest": f"  objects   {totals.num_shards:,} shards listed, none checked",
                "sizes": f"  objects   sizes of {checked} checked",
                "bytes": f"  objects   {checked} read, {self.num_bytes_checked / 1e6:,.1f} MB",
            }[self.depth]
        if num_left := self.leftovers.num_objects:
            size = f"{self.leftovers.size_bytes / 1e6:,.1f} MB"
            yield f"  leftovers {num_left:,} unlisted objects, {size}: see `tokpipe clean`"
        yield from (f"  sample    {one.line()}" for one in self.sampled)
        if self.is_clean:
            yield f"clean: no defect found, in {self.elapsed_s:.1f} s"
            return
        counts = ", ".join(f"{kind} {count:,}" for kind, count in self.findings.counts.items())
        yield f"{counted(len(self.findings), 'defect')}: {counts}"
        yield from (f"{finding.kind}: {finding.message}" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name[0] != "_"}
        findings, totals = own.pop("findings"), own.pop("totals")
        counts = "num_rejected", "num_shards", "encoders"  # None if nothing else was checked
        return {
            **own,
            "clean": self.is_clean,
            "defects": findings.counts,
            "examples": list(findings),
            "num_tokenized": getattr(totals, "num_clips", None),
            **{name: getattr(totals, name, None) for name in counts},
        }


def _some_clips(output: Output, number: int, seed: int) -> Iterator[str]:
    """Yield the ids of some clips, drawn at random, in order."""
    draw = np.random.default_rng(seed).choice
    drawn = np.sort(draw(output.num_clips, min(number, output.num_clips), replace=False))
    ends = np.cumsum(output.shards.clip_counts)
    for shard in np.unique(np.searchsorted(ends, drawn, "right")).tolist():
        ids = output.side_table(output.shards[shard], ["clip_id"]).column("clip_id")
        first = ends[shard] - len(ids)
        yield from ids.take(drawn[(drawn >= first) & (drawn < ends[shard])] - first).to_pylist()


def _check_side_table(uri: str, data: bytes, receipt: Receipt) -> None:
    sha256, size_bytes = receipt.side_table_sha256, receipt.side_table_size_bytes
    table = read_side_table(uri, data, size_bytes=size_bytes, sha256_hex=sha256)
    columns = ["clip_id", "plan_row", "segment", "n_segments", "source_uri"]
    found = list(zip(*(table.column(name).to_pylist() for name in columns), strict=True))
    clips = sorted(receipt.clips, key=lambda clip: clip.clip_id)
    if found != [(c.clip_id, c.row, c.segment, c.num_segments, c.source_uri) for c in clips]:
        raise damaged(uri, f"its {len(found)} clips are not those listed for its shard")
