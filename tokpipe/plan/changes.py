"""How the sources of a job differ now from the plan of its output."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokpipe.config.job import JobConfig, StoreOptions
from tokpipe.plan.stored import ROW_ID, StoredPlan, read_part
from tokpipe.plan.write import write_plan
from tokpipe.storage.store import Store
from tokpipe.telemetry.human import counted
from tokpipe.telemetry.redact import redact

KEEPS_PLAN = "An output keeps its plan: tokenize new and changed sources to another output.uri"
_NUM_EXAMPLES = 3


@contextmanager
def plan_now(job: JobConfig) -> Iterator[tuple[Store, StoredPlan]]:
    """Plan a job's sources as they are now, in a folder that is there until the end."""
    with tempfile.TemporaryDirectory(prefix="tokpipe-plan-") as folder:
        store = Store(folder, StoreOptions())
        yield store, write_plan(job, store, "now")


class SourceChanges:
    """The rows of one plan that another lacks, and those whose source has another version.

    Both are plans of one dataset. A row's version is the size and the ETag or time of change of its
    file; files that a table names have none. Memory holds 16 bytes per row of both.
    """

    def __init__(self, before: tuple[Store, StoredPlan], now: tuple[Store, StoredPlan]) -> None:
        (old, old_versions), (new, new_versions) = _rows(*before), _rows(*now)
        is_new, is_gone = np.isin(new, old, invert=True), np.isin(old, new, invert=True)
        # Of each row that is in both, its places.
        _, there, here = np.intersect1d(old, new, return_indices=True)
        is_other = old_versions[there] != new_versions[here]
        changed = here[is_other & (old_versions[there] != 0) & (new_versions[here] != 0)]
        self.num_new, self.num_gone = int(is_new.sum()), int(is_gone.sum())
        self.num_changed = len(changed)
        self.examples = {
            "new": _uris(*now, np.flatnonzero(is_new)),
            "gone": _uris(*before, np.flatnonzero(is_gone)),
            "changed": _uris(*now, np.sort(changed)),
        }
        """URIs of the first rows of each kind."""

    @classmethod
    def of_output(cls, job: JobConfig, store: Store, plan: StoredPlan) -> Self:
        """Read the sources of a job, and compare them with the plan in its output."""
        with plan_now(job) as now:
            return cls((store, plan), now)

    @property
    def text(self) -> str:
        """All of it on one line; empty if nothing differs."""
        counts = {"new": self.num_new, "gone": self.num_gone, "changed": self.num_changed}
        return ", ".join(
            f"{counted(number, 'row')} {kind} (such as {self.examples[kind][0]})"
            for kind, number in counts.items()
            if number
        )

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


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
    found, start = list[str](), 0
    for part in plan.parts:
        inside = rows[(rows >= start) & (rows < start + part.num_rows)][:_NUM_EXAMPLES] - start
        if len(inside) and len(found) < _NUM_EXAMPLES:
            table = read_part(store, part, ["source_uri"])
            found += map(redact, table.column("source_uri").take(inside).to_pylist())
        start += part.num_rows
    return found[:_NUM_EXAMPLES]
