"""How the sources of a job differ now from the plan of its output."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tokpipe.config.job import JobConfig, StoreOptions
from tokpipe.plan.stored import ROW_ID, PlanReader, StoredPlan, read_part
from tokpipe.plan.write import write_plan
from tokpipe.storage.store import Store
from tokpipe.telemetry.human import counted
from tokpipe.telemetry.redact import redact

KEEPS_PLAN = "An output keeps its plan: tokenize new and changed sources to another output.uri"
_NUM_EXAMPLES = 3
_Stored = tuple[Store, StoredPlan]


@contextmanager
def plan_now(job: JobConfig) -> Iterator[_Stored]:
    """Plan a job's sources as they are now, in a folder that is there until the end."""
    with tempfile.TemporaryDirectory(prefix="tokpipe-plan-") as folder:
        store = Store(folder, StoreOptions())
        yield store, write_plan(job, store, "now")


@dataclass(frozen=True)
class SourceChanges:
    """How many rows one plan has that another lacks, and how many have another version.

    A row's version is the size and the ETag or time of change of its file; files that a table names
    have none. ``examples`` are URIs of the first rows of each kind.
    """

    num_new: int
    num_gone: int
    num_changed: int
    examples: dict[str, list[str]]

    @classmethod
    def between(cls, before: _Stored, now: _Stored) -> Self:
        """Compare two plans of one dataset, in 16 bytes of memory per row of both."""
        (old, old_versions), (new, new_versions) = _rows(*before), _rows(*now)
        is_new, is_gone = np.isin(new, old, invert=True), np.isin(old, new, invert=True)
        _, there, here = np.intersect1d(old, new, return_indices=True)  # places in both
        there_version, version = old_versions[there], new_versions[here]
        changed = here[(there_version != version) & (there_version != 0) & (version != 0)]
        examples = {
            "new": _uris(*now, np.flatnonzero(is_new)),
            "gone": _uris(*before, np.flatnonzero(is_gone)),
            "changed": _uris(*now, np.sort(changed)),
        }
        return cls(int(is_new.sum()), int(is_gone.sum()), len(changed), examples)

    @classmethod
    def of_output(cls, job: JobConfig, store: Store, plan: StoredPlan) -> Self:
        """Read the sources of a job, and compare them with the plan in its output."""
        with plan_now(job) as now:
            return cls.between((store, plan), now)

    @property
    def text(self) -> str:
        """All of it on one line; empty if nothing differs."""
        counts = zip(self.examples, (self.num_new, self.num_gone, self.num_changed), strict=True)
        return ", ".join(
            f"{counted(number, 'row')} {kind} (such as {self.examples[kind][0]})"
            for kind, number in counts
            if number
        )


def _rows(store: Store, plan: StoredPlan) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """The first 8 bytes of each row's id, and its version, or 0 if it has none."""
    ids, versions = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for part in plan.parts:
        table = read_part(store, part, [ROW_ID.name, "source_version"])
        texts = table.column(ROW_ID.name).to_pylist()
        ids.append(np.frombuffer(bytes.fromhex("".join(texts)), "<u8")[::2])
        versions.append(table.column("source_version").fill_null(0).to_numpy())
    return np.concatenate(ids), np.concatenate(versions)


def _uris(store: Store, plan: StoredPlan, rows: NDArray[np.int64]) -> list[str]:
    items = PlanReader(store, plan).items(rows[:_NUM_EXAMPLES])
    return [redact(item.source_uri) for item in items]
