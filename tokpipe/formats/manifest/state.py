"""The sum of a manifest: settled clips, totals, and a table of shards."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import NonNegativeInt

from tokpipe.errors import CorruptOutput
from tokpipe.formats.manifest.committed import CommittedRows
from tokpipe.formats.manifest.entry import Growth, ManifestEntry, Tail
from tokpipe.formats.tables import required
from tokpipe.telemetry.human import counted, counts_text, size_text
from tokpipe.types import REMOVED, Receipt

SHARD_LIST_SCHEMA = required(
    {
        "seq": pa.int64(),
        "shard": pa.string(),
        "size_bytes": pa.int64(),
        "sha256": pa.string(),
        "num_rows": pa.int64(),
        "num_codes": pa.int64(),
        "num_frames": pa.int64(),
        "num_clips": pa.int64(),
        "h": pa.int32(),
        "w": pa.int32(),
        "side_table": pa.string(),
        "side_table_sha256": pa.string(),
        "side_table_size_bytes": pa.int64(),
    }
)
"""A listed shard: its receipt without the clips, and the number of the entry that lists it."""
_OF_RECEIPT = set(SHARD_LIST_SCHEMA.names).intersection(Receipt.__slots__)

UNRECORDED = "hardware that was not recorded"  # Encoder class of clips of earlier versions


@dataclass(slots=True)
class Totals:
    """Totals over all entries of a manifest."""

    num_shards: NonNegativeInt = 0
    num_clips: NonNegativeInt = 0  # Tokenized clips
    num_rows: NonNegativeInt = 0  # Chunks: rows of shards
    num_codes: NonNegativeInt = 0
    num_frames: NonNegativeInt = 0
    size_bytes: NonNegativeInt = 0  # Shards and side tables
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected clips by reason, without withdrawn rejections."""
    encoders: Counter[str] = field(default_factory=Counter)  # Tokenized clips by encoder class
    paid_s: float = 0.0  # Seconds of encode actors, of all runs together. See ``Account``
    useful_s: float = 0.0
    lost_s: float = 0.0
    slow_s: dict[str, float] = field(default_factory=dict)

    @property
    def num_rejected(self) -> int:
        return self.rejected.total()

    @property
    def rejected_fraction(self) -> float:
        """Fraction of the settled clips that are rejected, 0 to 1. Removed ones do not count."""
        num_rejected = self.num_rejected - self.rejected[REMOVED]
        return num_rejected / max(1, self.num_clips + num_rejected)

    @property
    def bits_per_code(self) -> float | None:
        """Stored bits per code, shards and side tables included; None before any codes."""
        return 8 * self.size_bytes / self.num_codes if self.num_codes else None

    def text(self) -> str:
        """Format what an output holds: ``3 clips, 43 frames, 3,328 codes, 13.3 KiB in 1 shard``."""
        counts = (self.num_clips, "clip"), (self.num_frames, "frame"), (self.num_codes, "code")
        holds = ", ".join(counted(number, one) for number, one in counts)
        return f"{holds}, {size_text(self.size_bytes)} in {counted(self.num_shards, 'shard')}"

    def rejected_text(self) -> str:
        reasons = counts_text(self.rejected)
        return f"{self.num_rejected:,} rejected{': ' + reasons if reasons else ''}"

    def encoders_text(self) -> str:
        counts = self.encoders.most_common()
        return "; ".join(f"{counted(number, 'clip')} on {name}" for name, number in counts)

    @property
    def goodput(self) -> float | None:
        """Fraction of encoder time that produced listed codes; None before any time was paid."""
        return min(1.0, self.useful_s / self.paid_s) if self.paid_s > 0 else None

    def __add__(self, other: "Totals") -> "Totals":
        pairs = ((getattr(self, name), getattr(other, name)) for name in self.__slots__)
        sums: Any = (Counter(a) + Counter(b) if isinstance(a, dict) else a + b for a, b in pairs)
        return Totals(*sums)

    def add(self, entry: ManifestEntry) -> None:
        for sign, receipts in ((1, entry.shards), (-1, entry.replaced)):
            for receipt in receipts:
                self.num_shards += sign
                self.num_clips += len(receipt.clips)
                self.num_rows += sign * receipt.num_rows
                self.num_codes += sign * receipt.num_codes
                self.num_frames += sign * receipt.num_frames
                self.size_bytes += sign * (receipt.size_bytes + receipt.side_table_size_bytes)
                encoders = receipt.encoders or {UNRECORDED: len(receipt.clips)}
                self.encoders.update({name: sign * number for name, number in encoders.items()})
        if entry.replaced:  # which had all clips of the entry
            self.num_clips -= len(entry.clips)
            self.encoders = +self.encoders
        self.rejected.update(rejection.reason for rejection in entry.rejected)
        self.rejected.subtract(one.reason for one in entry.reopened)
        self.rejected = +self.rejected  # leaves out what has come to zero
        if entry.account is not None:
            # As they are stored: a checkpoint equals the sum of the entries that are read back.
            self.paid_s += round(entry.account.paid_s, 3)
            self.useful_s += round(entry.account.useful_s, 3)
            self.lost_s += round(entry.account.lost_s, 3)
            for why, seconds in entry.account.slow_s.items():
                self.slow_s[why] = self.slow_s.get(why, 0.0) + round(seconds, 3)


_KEPT_APART = 4096
"""New shards that are kept as Python objects, which take five times the memory of table rows."""


@dataclass(eq=False, slots=True)
class ManifestState:
    """The manifest before entry ``next_seq``.

    Holds a bit per plan row and a table row per shard, but no object per clip.
    """

    committed: CommittedRows
    next_seq: int = 0
    totals: Totals = field(default_factory=Totals)
    _shards: pa.Table = field(default_factory=SHARD_LIST_SCHEMA.empty_table)
    tail: Tail = field(default_factory=Tail)
    growth: list[Growth] = field(default_factory=list)  # What has joined the plan, in order
    num_removals: int = 0  # Entries that replaced shards, whose order changed then
    _new_shards: list[dict[str, str | int]] = field(default_factory=list, init=False)

    @property
    def shards(self) -> pa.Table:
        """Every listed shard, in order, as SHARD_LIST_SCHEMA."""
        if self._new_shards:
            new = pa.Table.from_pylist(self._new_shards, schema=SHARD_LIST_SCHEMA)
            self._shards = pa.concat_tables([self._shards, new]).combine_chunks()
            self._new_shards = []
        return self._shards

    def apply(self, entry: ManifestEntry) -> None:
        """Apply the next entry.

        Raises:
            CorruptOutput: it is not the next one, contradicts the plan, settles a clip twice, or
                withdraws a rejection that does not exist. Discard the state then.
        """
        if entry.seq != self.next_seq:
            raise CorruptOutput(
                f"found manifest entry {entry.seq} in place of entry {self.next_seq}. Commits "
                "would be counted twice or not at all. Restore the manifest from a copy."
            )
        # A row that was settled as a whole is in memory as its segments once one is reopened.
        whole = self.totals.num_clips + self.totals.num_rejected
        if entry.reopened:
            whole -= sum(len(one.done) for one in self.committed.partial.values())
        for one in entry.reopened:
            whole -= one.ref.num_segments * (one.ref.row not in self.committed.partial)
            is_settled = self.totals.rejected[one.reason] and whole >= 0
            if not is_settled or not self.committed.reopen(one.ref):
                clip = f"clip {one.ref.clip_id} ({one.ref.source_uri}), which is not rejected"
                found = f"withdraws the rejection ({one.reason}) of {clip}"
                raise _contradiction(entry, found, "Counts of clips would be wrong")
        for ref in entry.clips:
            if self.committed.add(ref) == bool(entry.replaced):
                did = "did not settle" if entry.replaced else "already settled"
                found = f"settles clip {ref.clip_id} ({ref.source_uri}), which an earlier one {did}"
                raise _contradiction(entry, found, "The dataset would hold it twice")
        self.count(entry)

    def count(self, entry: ManifestEntry) -> None:
        """Add the next entry to the totals and the plan, without settling its clips.

        An audit calls this where ``apply`` would raise, except that growth and what is replaced
        have to fit.
        """
        if (growth := entry.growth) is not None:
            if growth.first_row != self.committed.num_rows:
                plan = f"a plan of {self.committed.num_rows} rows"
                found = f"adds rows after row {growth.first_row} to {plan}"
                raise _contradiction(entry, found, "Clips would belong to other rows")
            self.committed.grow(growth.num_rows)
            self.growth.append(growth)
        if entry.replaced:
            self._replace(entry)
        self.totals.add(entry)
        self._new_shards += (_listed(receipt, entry.seq) for receipt in entry.shards)
        self.next_seq += 1
        self.tail = entry.tail
        if len(self._new_shards) >= _KEPT_APART:
            self._shards = self.shards

    def _replace(self, entry: ManifestEntry) -> None:
        """Drop the shards that an entry replaces from the table."""
        keys = pa.array([one.shard for one in entry.replaced])
        is_gone = pc.is_in(self.shards.column("shard"), keys)
        gone = {row["shard"]: row for row in self._shards.filter(is_gone).to_pylist()}
        num_clips = sum(row["num_clips"] for row in gone.values())
        for receipt in entry.replaced:
            listed = {**gone.pop(receipt.shard, {}), "seq": entry.seq, "num_clips": 0}
            if num_clips != len(entry.clips) or listed != _listed(receipt, entry.seq):
                wrong = "that is not listed so, or its clips are not those of the entry"
                found = f"replaces {receipt.shard}, but {wrong}"
                raise _contradiction(entry, found, "Clips would be lost or doubled")
        self._shards = self._shards.filter(pc.invert(is_gone))
        self.num_removals += 1


def _contradiction(entry: ManifestEntry, found: str, effect: str) -> CorruptOutput:
    remedy = "Restore the manifest from a copy, or tokenize to a new output prefix"
    return CorruptOutput(f"manifest entry {entry.seq} {found}. {effect}. {remedy}.")


def _listed(receipt: Receipt, seq: int) -> dict[str, str | int]:
    height, width = receipt.grid
    fields = {name: getattr(receipt, name) for name in _OF_RECEIPT}
    return {"seq": seq, **fields, "num_clips": len(receipt.clips), "h": height, "w": width}
