"""What a job did over time, in a bounded number of steps, from its manifest or a sample of it."""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tokpipe.formats.checks import utc_time
from tokpipe.formats.manifest import ManifestEntry, read_entries
from tokpipe.reader import Output
from tokpipe.telemetry.account import ACTIVITIES, OF_STAGE, Account, Speed
from tokpipe.types import STAGES, Rejected, Stage

MAX_STEPS = 120  # A step lasts 1, 2, 4, ... seconds: the shortest of which so many are enough
MAX_ENTRIES = 2048  # They name every clip: reading those of 100 million takes half an hour
NUM_EXAMPLES = 3

_COLUMNS = [
    *("clips", "frames", "timed_s", "timed_frames"),
    *(f"spent {activity}" for activity in ACTIVITIES),
    *(f"up {stage}" for stage in STAGES),
]


@dataclass(frozen=True, slots=True)
class Group:
    """An entry that was read, together with the skipped ones just before it."""

    entry: ManifestEntry
    num_entries: int
    clips: int  # Tokenized clips of all of these entries: exact, from the list of shards
    frames: int


def read_groups(output: Output) -> Iterator[Group]:
    """Yield groups that cover the whole manifest, in order.

    Of a manifest with more than ``MAX_ENTRIES``, evenly spaced entries are read. Drivers that
    began and ended between two of these are missed. Raises CorruptOutput as ``iter_entries`` does.
    """
    count = output.state.next_seq
    chosen = np.linspace(0, count - 1, min(count, MAX_ENTRIES)).round().astype(int).tolist()
    names = ("seq", "num_clips", "num_frames")
    seqs, clips, frames = (output.state.shards.column(one).to_numpy() for one in names)
    start = 0
    for entry in read_entries(output.store, chosen):
        stop = entry.seq + 1
        span = slice(*np.searchsorted(seqs, [start, stop]))
        yield Group(entry, stop - start, int(clips[span].sum()), int(frames[span].sum()))
        start = stop


@dataclass(frozen=True, slots=True)
class Step:
    """What was done between two moments of working time, in seconds from the start."""

    begin_s: float
    end_s: float
    amounts: NDArray[np.float64]

    def __getitem__(self, name: str) -> float:
        return float(self.amounts[_COLUMNS.index(name)])

    @property
    def frames_per_s(self) -> float:
        return self["frames"] / (self.end_s - self.begin_s) if self.end_s > self.begin_s else 0.0

    @property
    def speed(self) -> Speed | None:
        """None if the manifest does not record what actors did."""
        return Account(
            spent_s={one: self[f"spent {one}"] for one in ACTIVITIES},
            up_s={one: self[f"up {one}"] for one in STAGES},
        ).speed


class StageUse:
    """How one stage's actors spent their time in a step."""

    def __init__(self, stage: Stage, step: Step) -> None:
        up_s, frames = step[f"up {stage}"], step["timed_frames"]
        spent = {one: step[f"spent {one}"] for one in OF_STAGE[stage]}
        # The last seconds of an actor that ends or dies are not reported as up, but its work is.
        known_s = max(up_s, sum(spent.values())) or 1.0
        working_s = sum(value for one, value in spent.items() if one != "transfer")
        self.stage = stage
        self.actors = up_s / step["timed_s"]  # Mean number of actors that were up
        self.fractions = {one: spent[one] / known_s for one in spent}
        """Fraction of the actors' time by activity, 0 to 1; they waited for the rest."""
        is_known = working_s > 0 and frames > 0
        self.own_frames_per_s = frames / working_s * self.actors if is_known else None
        """Rate of this many actors if they never waited; None if they did nothing."""
        self.waiting = max(0.0, 1.0 - sum(self.fractions.values()))


class History:
    """The working time of all drivers, one after the other, without the time between them.

    What a group reports is spread evenly over the time since its driver's previous group, in which
    its codes were made. Actor seconds of an entry that was read also count for the skipped ones of
    its group. Clocks of different drivers need not agree.
    """

    def __init__(self, groups: Iterable[Group]) -> None:
        self.starts_s: list[float] = []  # When each driver began, in working time
        self.versions: dict[str, None] = {}  # Versions of tokpipe that took part, in order
        self.num_read = 0  # Entries read: totals are exact, times are interpolated between these
        self.examples = defaultdict[str, deque[Rejected]](partial(deque, maxlen=NUM_EXAMPLES))
        """The newest rejections of each reason that were read, newest first."""
        self.worked_s = 0.0
        ends_s = [0.0]
        before: ManifestEntry | None = None
        rows = [np.zeros(len(_COLUMNS))]
        for group in groups:
            entry = group.entry
            self.num_read += 1
            for withdrawn in entry.reopened:
                kept = self.examples[withdrawn.reason]
                for example in [one for one in kept if one.ref == withdrawn.ref]:
                    kept.remove(example)
            for rejected in entry.rejected:
                self.examples[rejected.reason].appendleft(rejected)
            elapsed_s = 0.0
            if before is not None and before.writer == entry.writer:
                elapsed = utc_time(entry.written_at) - utc_time(before.written_at)
                elapsed_s = max(0.0, elapsed.total_seconds())
            else:
                self.starts_s.append(self.worked_s)
            if entry.claim is not None:
                self.versions[entry.claim.tokpipe_version] = None
            self.worked_s += elapsed_s
            ends_s.append(self.worked_s)
            rows.append(_amounts_of(group, elapsed_s))
            before = entry
        whole = np.cumsum(rows, axis=0)
        self.whole = Step(0.0, self.worked_s, whole[-1])  # Everything as one step
        self.step_s = 1 << max(0, math.ceil(math.log2(max(1.0, self.worked_s) / MAX_STEPS)))
        count = math.ceil(self.worked_s / self.step_s) or min(1, self.num_read)
        edges = np.minimum(np.arange(count + 1) * self.step_s, self.worked_s)
        done = np.stack([np.interp(edges, ends_s, one) for one in whole.T], axis=1)
        done[0], done[-1] = 0, whole[-1]  # at equal times, interp may pick either value
        amounts = np.diff(done, axis=0)
        self.steps = [*map(Step, edges.tolist(), edges[1:].tolist(), amounts)]
        """Each of ``step_s`` seconds, the last one shorter; none of an empty manifest."""

    def stages(self) -> list[StageUse]:
        """How each stage's actors spent their time; empty if the manifest does not record it."""
        return [StageUse(one, self.whole) for one in STAGES] if self.whole["timed_s"] > 0 else []


def _amounts_of(group: Group, elapsed_s: float) -> NDArray[np.float64]:
    amounts: dict[str, float] = {"clips": group.clips, "frames": group.frames}
    account = group.entry.account
    if account is not None and account.up_s:
        amounts |= {"timed_s": elapsed_s, "timed_frames": group.frames}
        for kind, seconds in (("spent", account.spent_s), ("up", account.up_s)):
            for name, value in seconds.items():
                amounts[f"{kind} {name}"] = value * group.num_entries
    return np.array([amounts.get(name, 0.0) for name in _COLUMNS])
