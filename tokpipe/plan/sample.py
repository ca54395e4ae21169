"""A sample of a source's rows, without planning the job."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.plan.read import items_of
from tokpipe.plan.write import with_row_ids
from tokpipe.sources.rows import RowSource
from tokpipe.types import WorkItem


@dataclass(frozen=True)
class RowSample:
    """What reading the first rows of a source shows."""

    num_rows: int
    is_complete: bool
    """Whether the source has no further rows."""
    num_problems: int
    """Rows that cannot be clips."""
    problem: str | None
    """That of the first such row."""
    items: list[WorkItem]
    """Some of the other rows, drawn at random, in order."""
    hashes: NDArray[np.uint64]
    """One per row; rows with the same one are the same clip."""


def sample_rows(
    source: RowSource, dataset: str, *, num_items: int, max_rows: int, seed: int = 0
) -> RowSample:
    """Read the rows of a source, stopping soon after ``max_rows``, and draw some of them.

    Raises the errors of ``RowSource.batches``.
    """
    draw = np.random.default_rng(seed)
    drawn: list[tuple[float, WorkItem]] = []
    hashes, num_rows, num_problems, problem = [], 0, 0, None
    batches = source.batches()
    for batch in batches:
        table, some = with_row_ids(dataset, pa.Table.from_batches([batch]))
        hashes.append(some)
        problems = batch.column("problem")
        good = np.flatnonzero(problems.is_null().to_numpy(zero_copy_only=False))
        num_problems += len(problems) - len(good)
        problem = problem or next(iter(problems.drop_null().to_pylist()), None)
        # Of all rows read, those with the smallest numbers are kept.
        numbers = draw.random(len(good))
        best = np.argsort(numbers)[:num_items]
        items = items_of(table.take(pa.array(good[best])), (num_rows + good[best]).tolist())
        drawn = sorted([*drawn, *zip(numbers[best].tolist(), items, strict=True)], key=_number)
        drawn = drawn[:num_items]
        num_rows += len(problems)
        if num_rows >= max_rows:
            break
    return RowSample(
        num_rows,
        next(batches, None) is None,
        num_problems,
        problem,
        sorted((item for _, item in drawn), key=lambda item: item.row),
        np.concatenate(hashes) if hashes else np.zeros(0, np.uint64),
    )


def _number(drawn: tuple[float, WorkItem]) -> float:
    return drawn[0]
