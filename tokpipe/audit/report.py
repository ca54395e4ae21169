"""What an audit has found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from tokpipe.audit.findings import Findings
from tokpipe.audit.leftovers import Leftovers
from tokpipe.audit.objects import Depth
from tokpipe.formats.manifest import Totals


@dataclass(frozen=True, slots=True)
class Sampled:
    """A clip that was encoded again."""

    clip_id: str
    source_uri: str
    equal_fraction: float
    """Share of its codes that came out the same; 1 for a sound output."""
    psnr_db: float | None
    """Of its stored codes, decoded, against its source; None if the tokenizer has no decoder."""
    psnr_again_db: float | None
    """The same for the new codes."""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The outcome of one audit."""

    uri: str
    depth: Depth
    findings: Findings
    num_entries: int = 0
    num_rows: int = 0
    num_left: int = 0
    """Plan rows that are not settled."""
    totals: Totals | None = None
    """None if job.json is damaged, when nothing else can be checked."""
    num_shards_checked: int = 0
    num_bytes_checked: int = 0
    leftovers: Leftovers = field(default_factory=Leftovers)
    sampled: tuple[Sampled, ...] = ()
    elapsed_s: float = 0.0

    @property
    def is_clean(self) -> bool:
        return not len(self.findings)

    def lines(self) -> Iterator[str]:
        """Yield one line per check, then what is wrong."""
        yield f"audit of {self.uri}"
        if self.totals is None:
            yield "  nothing but job.json was checked, since it says where everything else is"
        else:
            totals = self.totals
            yield f"  plan      {self.num_rows:,} rows, {self.num_left:,} not settled"
            yield (
                f"  manifest  {self.num_entries:,} entries: {totals.num_clips:,} clips tokenized, "
                f"{totals.num_rejected:,} rejected"
            )
            checked = f"{self.num_shards_checked:,} of {totals.num_shards:,} shards"
            yield {
                "manifest": f"  objects   {totals.num_shards:,} shards listed, none looked at",
                "sizes": f"  objects   {checked} looked up with their side tables, by size",
                "bytes": f"  objects   {checked} read with their side tables, "
                f"{self.num_bytes_checked / 1e6:,.1f} MB",
            }[self.depth]
        left = self.leftovers
        if left.num_objects:
            yield (
                f"  leftovers {left.num_objects:,} unlisted objects, {left.size_bytes / 1e6:,.1f} "
                f"MB, the oldest {left.oldest_s / 3600:,.1f} hours old: harmless, `tokpipe clean` "
                "removes them"
            )
        for one in self.sampled:
            quality = ""
            if one.psnr_db is not None and one.psnr_again_db is not None:
                quality = f", PSNR {one.psnr_db:.2f} dB, encoded again {one.psnr_again_db:.2f} dB"
            yield (
                f"  sample    clip {one.clip_id}: {one.equal_fraction:.2%} of its codes come out "
                f"the same{quality}"
            )
        if self.is_clean:
            yield f"clean: no defect found, in {self.elapsed_s:.1f} s"
            return
        counts = ", ".join(f"{kind} {count:,}" for kind, count in self.findings.counts.items())
        yield f"{len(self.findings):,} defects: {counts}"
        for finding in self.findings:
            yield f"{finding.kind}: {finding.message}"

    def to_json(self) -> str:
        """Return all of it as one line of JSON."""
        totals = self.totals
        return json.dumps(
            {
                "uri": self.uri,
                "clean": self.is_clean,
                "depth": self.depth,
                "defects": dict(self.findings.counts),
                "examples": [asdict(finding) for finding in self.findings],
                "num_entries": self.num_entries,
                "num_rows": self.num_rows,
                "num_left": self.num_left,
                "num_tokenized": None if totals is None else totals.num_clips,
                "num_rejected": None if totals is None else totals.num_rejected,
                "num_shards": None if totals is None else totals.num_shards,
                "num_shards_checked": self.num_shards_checked,
                "num_bytes_checked": self.num_bytes_checked,
                "leftovers": self.leftovers.to_json(),
                "sampled": [
                    # JSON knows no infinity, which equal frames have.
                    {k: None if v == float("inf") else v for k, v in asdict(one).items()}
                    for one in self.sampled
                ],
                "elapsed_s": round(self.elapsed_s, 3),
            }
        )
