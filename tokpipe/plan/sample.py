"""A sample of a source's rows, without planning the job."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.plan.write import with_row_ids
from tokpipe.sources.rows import ROW_SCHEMA, RowSource, items_of
from tokpipe.types import WorkItem


class RowSample(NamedTuple):
    """What reading the first rows of a source shows."""

    num_rows: int
    is_complete: bool  # Whether the source has no further rows
    num_problems: int  # Rows that cannot be clips
    problem: str | None  # That of the first such row
    items: list[WorkItem]  # Some of the other rows, drawn at random, in order
    hashes: NDArray[np.uint64]  # One per row; rows with the same one are the same clip


def sample_rows(
    source: RowSource, dataset: str, *, num_items: int, max_rows: int, seed: int = 0
) -> RowSample:
    """Read the rows of a source, stopping soon after ``max_rows``, and draw some of them."""
    read, num_rows = [ROW_SCHEMA.empty_table()], 0
    batches = source.batches()
    for batch in batches:
        read.append(pa.Table.from_batches([batch]).select(ROW_SCHEMA.names))
        num_rows += batch.num_rows
        if num_rows >= max_rows:
            break
    table, hashes = with_row_ids(dataset, pa.concat_tables(read).combine_chunks())
    problems = table.column("problem")
    good = np.flatnonzero(problems.is_null().to_numpy())
    draw = np.random.default_rng(seed)
    drawn = np.sort(draw.choice(good, min(num_items, len(good)), replace=False))
    return RowSample(
        num_rows,
        next(batches, None) is None,
        num_rows - len(good),
        next(iter(problems.drop_null().to_pylist()), None),
        items_of(table.take(pa.array(drawn)), drawn.tolist(), source.config),
        hashes,
    )
