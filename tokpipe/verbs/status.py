"""``tokpipe status``: how far an output is, from its manifest alone, without asking the driver."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from tokpipe.config.job import JobConfig
from tokpipe.formats.checks import utc_time
from tokpipe.formats.manifest import ManifestEntry, iter_entries
from tokpipe.plan import StoredPlan
from tokpipe.plan.changes import SourceChanges
from tokpipe.reader import Output
from tokpipe.telemetry.human import counted, duration, rate_text, share_text, slow_text

RECENT_ENTRIES = 32  # Commits that the rate is measured over; fewer if the driver started later


class Status:
    """An output at one moment. Rates and times are None if the manifest does not show them."""

    def __init__(
        self, output: Output, job: JobConfig | None = None, *, now: datetime | None = None
    ) -> None:
        """``job``: whose sources, as they are now, to compare with the plan."""
        record, state = output.record, output.state
        first = max(0, state.next_seq - RECENT_ENTRIES)
        recent = list(iter_entries(output.store, first, state.next_seq))
        self.uri, self.dataset = output.store.uri, record.dataset
        self.fingerprint, self.created_at = record.fingerprint, record.created_at
        self.num_rows = output.num_rows  # Of the plan: a row can be cut into several clips
        self.num_rows_done = done = state.committed.num_done  # Every clip tokenized or rejected
        self.totals = state.totals
        self.driver = _driver(recent)  # Host, process and version of the newest
        self.last_commit_age_s: float | None = None
        if recent:
            age = (now or datetime.now(UTC)) - utc_time(recent[-1].written_at)
            self.last_commit_age_s = max(0.0, age.total_seconds())
        self.clips_per_s = _rate(recent)  # Settled by the recent commits
        self.source_changes: SourceChanges | None = None
        if job is not None:
            plan = StoredPlan.of(record, state.growth)
            self.source_changes = SourceChanges.of_output(job, output.store, plan)
        left = output.num_rows_left
        self.left_s: float | None = None if left else 0.0  # At that rate
        if left and done and self.clips_per_s:
            clips_per_row = (state.totals.num_clips + state.totals.num_rejected) / done
            self.left_s = left * clips_per_row / self.clips_per_s
        self.is_done = not left

    def to_dict(self) -> dict[str, Any]:
        totals = {name: getattr(self.totals, name) for name in self.totals.__slots__}
        totals["goodput"] = self.totals.goodput
        return {**vars(self), "totals": totals}

    def lines(self) -> Iterator[str]:
        totals = self.totals
        share = "done" if self.is_done else f"{share_text(self.num_rows_done / self.num_rows)} done"
        yield f"{self.uri}: {self.dataset}, {share}"
        yield f"  {self.num_rows_done:,} of {counted(self.num_rows, 'plan row')} settled"
        yield f"  {totals.text()}"
        yield f"  {totals.rejected_text()}"
        if self.source_changes is not None:
            yield f"  sources since the plan: {self.source_changes.text or 'unchanged'}"
        if totals.goodput is not None:
            yield f"  goodput {totals.goodput:.0%} of {duration(totals.paid_s)} encoder time"
            yield f"  {totals.num_codes / totals.paid_s:,.1f} codes/s per encoder"
        if slow := slow_text(totals.slow_s):
            yield f"  slower than possible: {slow}"
        if self.driver is not None and self.last_commit_age_s is not None:
            yield f"  last commit {duration(self.last_commit_age_s)} ago, by {self.driver}"
        if not self.is_done and self.clips_per_s is not None and self.left_s is not None:
            yield f"  recently {rate_text(self.clips_per_s)} clips/s, left {duration(self.left_s)}"


def _rate(entries: Sequence[ManifestEntry]) -> float | None:
    """Clips per second between the first and the last of the newest driver's entries."""
    claims = [number for number, entry in enumerate(entries) if entry.claim is not None]
    own = entries[claims[-1] if claims else 0 :]
    if len(own) < 2:
        return None
    seconds = (utc_time(own[-1].written_at) - utc_time(own[0].written_at)).total_seconds()
    clips = sum(sum(1 for _ in entry.refs()) - len(entry.reopened) for entry in own[1:])
    return clips / seconds if seconds > 0 and clips > 0 else None


def _driver(entries: Sequence[ManifestEntry]) -> str | None:
    for entry in reversed(entries):
        if (claim := entry.claim) is not None:
            return f"process {claim.pid} on {claim.host} (tokpipe {claim.tokpipe_version})"
    return f"driver {entries[-1].writer}" if entries else None
