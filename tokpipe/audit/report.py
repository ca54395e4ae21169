"""The result of an audit, for people and for programs.

All defects are counted, and some of each kind are kept as examples.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from tokpipe.audit.leftovers import Leftovers
from tokpipe.formats.checks import damaged
from tokpipe.formats.manifest import Totals
from tokpipe.telemetry.human import counted

Depth = Literal["manifest", "sizes", "bytes"]
"""Check the manifest alone, or also the size of each listed object, or every byte and code."""

EXAMPLES = 20  # Examples kept of each kind: a damaged output may have one defect per clip

Kind = Literal[
    "job_record", "plan", "entry_missing", "entry_damaged", "checkpoint", "not_planned",
    "clip_twice", "not_rejected", "shard_twice", "unsettled", "object_missing", "shard",
    "side_table", "codes_differ",
]  # fmt: skip
"""What is wrong, as a stable identifier."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect."""

    kind: Kind
    where: str  # URI of the object that shows it
    message: str  # What was found there, why it matters and what to do


class Findings:
    """Collects defects, from several threads."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._examples: dict[str, list[Finding]] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.counts.total()

    def __iter__(self) -> Iterator[Finding]:
        """Yield the examples, grouped by kind."""
        for examples in self._examples.values():
            yield from examples

    def add(self, kind: Kind, where: str, message: object, *, count: int = 1) -> None:
        """Add a defect; ``message`` may be the error that reported it."""
        with self._lock:
            self.counts[kind] += count
            examples = self._examples.setdefault(kind, [])
            if len(examples) < EXAMPLES:
                examples.append(Finding(kind, where, str(message)))

    def add_damage(self, kind: Kind, where: str, problem: str, *, count: int = 1) -> None:
        """Add a defect of an object that is not what was written."""
        self.add(kind, where, damaged(where, problem), count=count)


@dataclass(frozen=True, slots=True)
class Sampled:
    """A clip that was encoded again."""

    clip_id: str
    source_uri: str
    equal_fraction: float
    """Fraction of its codes that came out the same, 0 to 1; 1 for an intact output."""
    psnr_db: float | None
    """Stored codes, decoded, against the source; None if the tokenizer has no decoder."""
    psnr_again_db: float | None  # New codes, decoded, against the source

    def line(self) -> str:
        quality = ""
        if self.psnr_db is not None and self.psnr_again_db is not None:
            quality = f", PSNR {self.psnr_db:.2f} dB, encoded again {self.psnr_again_db:.2f} dB"
        return f"clip {self.clip_id}: {self.equal_fraction:.2%} of its codes are the same{quality}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The result of one audit."""

    uri: str
    depth: Depth
    findings: Findings
    num_entries: int = 0
    num_rows: int = 0
    num_left: int = 0  # Plan rows that are not settled
    totals: Totals | None = None
    """None if ``job.json`` is damaged, so nothing else could be checked."""
    num_shards_checked: int = 0
    num_bytes_checked: int = 0
    leftovers: Leftovers = field(default_factory=Leftovers)
    sampled: tuple[Sampled, ...] = ()
    elapsed_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not self.findings

    def lines(self) -> Iterator[str]:
        """Yield one line per check, then the defects."""
        yield f"audit of {self.uri}"
        if self.totals is None:
            yield "  checked only job.json, which says where everything else is"
        else:
            yield from self._checks(self.totals)
        if self.is_clean:
            yield f"clean: no defect found, in {self.elapsed_s:.1f} s"
            return
        counts = ", ".join(f"{kind} {count:,}" for kind, count in self.findings.counts.items())
        yield f"{counted(len(self.findings), 'defect')}: {counts}"
        for finding in self.findings:
            yield f"{finding.kind}: {finding.message}"

    def _checks(self, totals: Totals) -> Iterator[str]:
        yield f"  plan      {self.num_rows:,} rows, {self.num_left:,} not settled"
        yield (
            f"  manifest  {self.num_entries:,} entries: {totals.num_clips:,} clips tokenized, "
            f"{totals.num_rejected:,} rejected"
        )
        yield f"  encoders  {totals.encoders_text()}"
        checked = f"{self.num_shards_checked:,} of {totals.num_shards:,} shards and side tables"
        yield {
            "manifest": f"  objects   {totals.num_shards:,} shards listed, none checked",
            "sizes": f"  objects   sizes of {checked} checked",
            "bytes": f"  objects   {checked} read, {self.num_bytes_checked / 1e6:,.1f} MB",
        }[self.depth]
        left = self.leftovers
        if left.num_objects:
            size = f"{left.size_bytes / 1e6:,.1f} MB"
            yield f"  leftovers {left.num_objects:,} unlisted objects, {size}: see `tokpipe clean`"
        for one in self.sampled:
            yield f"  sample    {one.line()}"

    def to_dict(self) -> dict[str, Any]:
        own = {one.name: getattr(self, one.name) for one in fields(self)}
        findings, totals = own.pop("findings"), own.pop("totals")
        return {
            **own,
            "clean": self.is_clean,
            "defects": findings.counts,
            "examples": list(findings),
            "num_tokenized": None if totals is None else totals.num_clips,
            "num_rejected": None if totals is None else totals.num_rejected,
            "num_shards": None if totals is None else totals.num_shards,
            "encoders": None if totals is None else totals.encoders,
            "elapsed_s": round(self.elapsed_s, 3),
        }
