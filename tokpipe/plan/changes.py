"""How the sources of a job differ now from the plan of its output, and growth by what is new."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tokpipe.config.job import JobConfig, StoreOptions
from tokpipe.errors import PlanMismatch
from tokpipe.formats.job_record import differences
from tokpipe.formats.manifest import Growth
from tokpipe.plan import PlanReader, StoredPlan, write_plan
from tokpipe.plan.parts import cut
from tokpipe.plan.stored import PURGED, ROW_ID, PlanPart, read_part, row_ids, store_part, tombstones
from tokpipe.plan.write import num_problems
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.storage.store import Store
from tokpipe.telemetry.human import counted
from tokpipe.telemetry.redact import redact

HOW_TO_EXTEND = "New ones are added by tokpipe run --extend"
_NUM_EXAMPLES = 3
_PARTS_AHEAD = 4
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

    That is the size and the ETag or time of change of a file; those that a table names have none.
    """

    num_new: int
    num_gone: int
    num_changed: int
    examples: dict[str, list[str]]  # URIs of the first rows of each kind

    @classmethod
    def between(cls, before: _Stored, now: _Stored) -> tuple[Self, NDArray[np.bool_]]:
        """Compare two plans of one dataset, in 24 bytes of memory per row of both.

        Also returns whether each row of the first is gone or changed.
        """
        (old, old_versions), (new, new_versions) = _rows(*before), _rows(*now)
        is_new = _is_new(new, np.sort(old, axis=0))
        is_gone = _lacking(old, np.sort(new, axis=0)) & (old_versions != PURGED)
        _, there, here = np.intersect1d(old[:, 0], new[:, 0], return_indices=True)
        there_version, version = old_versions[there], new_versions[here]
        is_other = (there_version != version) & (there_version != 0) & (version != 0)
        changed, differs = here[is_other], is_gone.copy()
        differs[there[is_other]] = True
        examples = {
            "new": _uris(*now, np.flatnonzero(is_new)),
            "gone": _uris(*before, np.flatnonzero(is_gone)),
            "changed": _uris(*now, np.sort(changed)),
        }
        return cls(int(is_new.sum()), int(is_gone.sum()), len(changed), examples), differs

    @classmethod
    def of_output(cls, job: JobConfig, store: Store, plan: StoredPlan) -> Self:
        """Read the sources of a job, and compare them with the plan in its output."""
        with plan_now(job) as now:
            return cls.between((store, plan), now)[0]

    @property
    def text(self) -> str:
        """All of it on one line; empty if nothing differs."""
        counts = zip(self.examples, (self.num_new, self.num_gone, self.num_changed), strict=True)
        return ", ".join(
            f"{counted(number, 'row')} {kind} (such as {self.examples[kind][0]})"
            for kind, number in counts
            if number
        )


def store_growth(
    job: JobConfig, store: Store, before: StoredPlan, plan_attempt: str
) -> Growth | None:
    """Store what the sources have now and a plan lacks, as ``plan/<plan_attempt>/<n>.parquet``.

    Returns None if there is nothing new. The rows join the plan once the manifest says so.

    PlanMismatch if they carry other columns now, which shards of one output cannot have.
    """
    with plan_now(job) as (folder, now):
        if changed := differences(before.columns, {**before.columns, **now.columns}, "->"):
            raise PlanMismatch(
                f"{store.uri}: the sources now carry other columns ({'; '.join(changed)}), and all "
                "clips of an output have the same. Remove them, or write to a new output prefix."
            )
        known = np.sort(_rows(store, before)[0], axis=0)
        parts, problems = list[PlanPart](), 0
        for source, of_source in groupby(now.parts, lambda part: part.source):
            tables = (read_part(folder, part) for part in of_source)
            new = (rows.filter(_is_new(row_ids(rows), known)) for rows in tables)
            for rows in cut(batch for table in new for batch in table.to_batches()):
                key = f"plan/{plan_attempt}/{len(parts):05d}.parquet"
                parts.append(store_part(store, key, rows, source))
                problems += num_problems(rows)
        if not parts:
            return None
        plan = now.with_parts(parts, problems)
        sources = job.model_dump(mode="json")["sources"]
        return Growth(before.num_rows, plan.num_rows, asdict(plan), sources)


def _rows(store: Store, plan: StoredPlan) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Each row's id, as ``row_ids``, and its version, or 0 if it has none."""
    ids, versions = [np.empty((0, 2), np.uint64)], [np.empty(0, np.uint64)]
    columns = [ROW_ID.name, "source_version"]
    for table in read_ahead(lambda one: read_part(store, one, columns), plan.parts, _PARTS_AHEAD):
        ids.append(row_ids(table))
        versions.append(table.column("source_version").fill_null(0).to_numpy())
    return np.concatenate(ids), np.concatenate(versions)


def _is_new(ids: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each id is neither among the ``known`` ones, as ``_lacking``, nor was purged."""
    is_new = _lacking(ids, known)
    is_new[is_new] = _lacking(tombstones(ids[is_new]), known)
    return is_new


def _lacking(ids: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each id is missing among others, whose halves are ``known``, each column in order.

    Both halves of an id that is missing would have to be there by accident.
    """
    lacks = np.zeros(len(ids), bool)
    for halves, column in zip(ids.T, known.T, strict=True):
        order = np.argsort(halves)  # for which a search in millions takes a sixth of the time
        places = np.searchsorted(column, halves[order])
        lacks[order] |= column.take(places, mode="clip") != halves[order] if len(column) else True
    return lacks


def _uris(store: Store, plan: StoredPlan, rows: NDArray[np.int64]) -> list[str]:
    items = PlanReader(store, plan).items(rows[:_NUM_EXAMPLES])
    return [redact(item.source_uri) for item in items]
