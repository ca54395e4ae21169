"""``tokpipe status``: how far an output is, from its manifest alone, without asking the driver."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tokpipe.formats.checks import utc_time
from tokpipe.formats.manifest import ManifestEntry, Totals, iter_entries
from tokpipe.reader import Output
from tokpipe.telemetry.human import counted, duration, rate_text, share_text, slow_text

RECENT_ENTRIES = 32  # Commits that the rate is measured over; fewer if the driver started later


@dataclass(frozen=True, slots=True)
class Status:
    """An output at one moment. Rates and times are None if the manifest does not show them."""

    uri: str
    dataset: str
    fingerprint: str
    created_at: str
    num_rows: int  # Rows of the plan: clips, or sources that are cut into several clips
    num_rows_done: int  # Rows of which every clip is tokenized or rejected
    totals: Totals
    driver: str | None  # Host, process and version of the newest driver
    last_commit_age_s: float | None
    clips_per_s: float | None  # Clips settled per second by the recent commits
    left_s: float | None  # Seconds to the end at that rate; 0 if the job is done

    @property
    def is_done(self) -> bool:
        return self.num_rows_done == self.num_rows

    def to_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self.__slots__}
        totals = {name: getattr(self.totals, name) for name in self.totals.__slots__}
        totals["goodput"] = self.totals.goodput
        return {**own, "totals": totals, "is_done": self.is_done}

    def lines(self) -> Iterator[str]:
        totals = self.totals
        share = "done" if self.is_done else f"{share_text(self.num_rows_done / self.num_rows)} done"
        yield f"{self.uri}: {self.dataset}, {share}"
        yield f"  {self.num_rows_done:,} of {counted(self.num_rows, 'plan row')} settled"
        yield f"  {totals.text()}"
        yield f"  {totals.rejected_text()}"
        if totals.goodput is not None:
            yield f"  goodput {totals.goodput:.0%} of {duration(totals.paid_s)} encoder time"
            yield f"  {totals.num_codes / totals.paid_s:,.1f} codes/s per encoder"
        if slow := slow_text(totals.slow_s):
            yield f"  slower than possible: {slow}"
        if self.driver is not None and self.last_commit_age_s is not None:
            yield f"  last commit {duration(self.last_commit_age_s)} ago, by {self.driver}"
        if not self.is_done and self.clips_per_s is not None and self.left_s is not None:
            yield f"  recently {rate_text(self.clips_per_s)} clips/s, left {duration(self.left_s)}"


def status(output: Output, *, now: datetime | None = None) -> Status:
    """Return the status of an output, of whose manifest the end is read again."""
    store, record, state = output.store, output.record, output.state
    recent = list(iter_entries(store, max(0, state.next_seq - RECENT_ENTRIES), state.next_seq))
    clips_per_s = _rate(recent)
    done = state.committed.num_done
    left_s: float | None = None
    if done == record.num_rows:
        left_s = 0.0
    elif done and clips_per_s:
        clips_per_row = (state.totals.num_clips + state.totals.num_rejected) / done
        left_s = (record.num_rows - done) * clips_per_row / clips_per_s
    age_s = None
    if recent:
        age = (now or datetime.now(UTC)) - utc_time(recent[-1].written_at)
        age_s = max(0.0, age.total_seconds())
    return Status(
        uri=store.uri,
        dataset=record.dataset,
        fingerprint=record.fingerprint,
        created_at=record.created_at,
        num_rows=record.num_rows,
        num_rows_done=done,
        totals=state.totals,
        driver=_driver(recent),
        last_commit_age_s=age_s,
        clips_per_s=clips_per_s,
        left_s=left_s,
    )


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
