"""Writes a plan: reads every source once, and stores every row, but none that repeats another."""

import base64
import contextlib
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, StorageError
from tokpipe.identity import row_digests, span_bytes
from tokpipe.plan.parts import cut, do_recur, order_by_video, together, videos_of
from tokpipe.plan.stored import (
    OWN_COLUMNS,
    ROW_ID,
    PlanPart,
    StoredPlan,
    plan_id_of,
    read_part,
    store_part,
)
from tokpipe.sources import open_sources
from tokpipe.sources.rows import ROW_SCHEMA, RowSource, items_of
from tokpipe.storage.left_out import OTHER_PARTS, LeftOut
from tokpipe.storage.store import Store
from tokpipe.telemetry.redact import redact

_NUM_EXAMPLES = 10
_WRITERS = 2
_Hashes = NDArray[np.uint64]  # The first 8 bytes of the id of each row


class _Part:
    """A stored part, with what is needed only until the plan is complete."""

    def __init__(
        self,
        store: Store,
        key: str,
        rows: pa.Table,
        source: int,
        hashes: _Hashes,
        numbers: NDArray[np.int64],
        videos: _Hashes,
    ) -> None:
        self.stored = store_part(store, key, rows, source)
        self.num_problems = num_problems(rows)
        self.hashes = hashes
        self.numbers = numbers  # Those of the rows in their source
        self.videos = videos[rows.column("problem").is_null().to_numpy()[: len(videos)]]


def num_problems(rows: pa.Table) -> int:
    """Return how many rows of a plan cannot be clips."""
    return rows.num_rows - rows.column("problem").null_count  # type: ignore[no-any-return]


def write_plan(job: JobConfig, store: Store, plan_attempt: str) -> StoredPlan:
    """Read all sources once and store every row, as ``plan/<plan_attempt>/<n>.parquet``.

    Rows keep the order of the sources, but spans of one video are brought together. Memory holds
    16 bytes per row, 24 if rows are spans, a few parts, and the names of a glob's files while they
    are sorted.

    ``plan_attempt`` must differ from that of every plan ever written to this output.
    """
    sources = open_sources(job.sources, job.storage, job.output.uri)
    columns = merge_columns(sources)
    prefix = f"plan/{plan_attempt}/"
    try:
        parts = _store_all(store, prefix, job, sources)
        duplicates = _find_duplicates(store, parts)
        if duplicates and job.on_duplicate == "refuse":
            raise ConfigError(
                f"{next(iter(duplicates.values()))}; in all, {len(duplicates)} rows repeat the "
                "clip of an earlier one. Remove them, or set on_duplicate: keep_first."
            )
        parts = _without_rows(store, parts, duplicates)
        stored = list(_with_spans_together(store, prefix, parts))
    except BaseException:
        # No job.json will ever name these; the error that stopped the plan matters more.
        with contextlib.suppress(StorageError):
            for listed in list(store.list(prefix)):
                store.delete(listed.key)
        raise
    left_out = LeftOut()
    for source in sources:
        left_out.update(source.listing.left_out)
    return StoredPlan(
        plan_id=plan_id_of(stored),
        parts=tuple(stored),
        num_rows=sum(part.num_rows for part in stored),
        num_problems=sum(part.num_problems for part in parts),
        num_duplicates=len(duplicates),
        duplicate_examples=tuple(islice(duplicates.values(), _NUM_EXAMPLES)),
        columns={field.name: str(field.type) for field in columns},
        left_out=left_out,
        columns_schema=base64.b64encode(columns.serialize().to_pybytes()).decode("ascii"),
    )


def _with_spans_together(store: Store, prefix: str, parts: Sequence[_Part]) -> Iterator[PlanPart]:
    """Yield stored parts of all rows; rewrite the tables in which videos recur."""
    number = 1 + max(int(Path(part.stored.key).stem) for part in parts)
    for source, own in groupby(parts, lambda part: part.stored.source):
        found, hashes = [], []
        for part in own:
            found.append(part.stored)
            hashes.append(part.videos)
        if not do_recur(hashes):
            yield from found
            continue
        for table in together(store, found):
            yield store_part(store, f"{prefix}{number:05d}.parquet", table, source)
            number += 1
        for stored in found:
            store.delete(stored.key)


def merge_columns(sources: Sequence[RowSource]) -> pa.Schema:
    """Decide the job's carried columns, before any row is read."""
    merged: dict[str, tuple[pa.Field, str]] = {}
    for source in sources:
        for field in source.carried():
            known, label = merged.setdefault(field.name, (field, source.label))
            if known.type != field.type:
                raise ConfigError(
                    f"{source.label}: column {field.name!r} holds {field.type}, but that of "
                    f"{label} holds {known.type}: rename or convert it in one source."
                )
    return pa.schema([field for field, _ in merged.values()])


def _store_all(
    store: Store, prefix: str, job: JobConfig, sources: Sequence[RowSource]
) -> list[_Part]:
    """Assign row ids and store parts in threads, while the next rows are read."""

    def put(number: int, source: int, table: pa.Table, first: int) -> _Part:
        table, hashes = with_row_ids(job.dataset, table)
        videos = videos_of(table)
        own = order_by_video(table, videos)
        if job.part:
            own = own[hashes[own] % job.part.of == job.part.index]
        rows = table.take(pa.array(own)), source, hashes[own], first + own
        return _Part(store, f"{prefix}{number:05d}.parquet", *rows, videos[own[: len(videos)]])

    futures, num_read = list[Future[_Part]](), 0
    with ThreadPoolExecutor(_WRITERS) as pool:
        for index, source in enumerate(sources):
            num_rows = 0
            for table in cut(source.batches()):
                if len(futures) > _WRITERS:  # bounds memory: sources can be faster than the store
                    futures[-_WRITERS - 1].result()
                futures.append(pool.submit(put, len(futures), index, table, num_rows))
                num_rows += table.num_rows
            num_read += num_rows
            if not num_rows:
                raise ConfigError(f"{source.label} has no rows: correct or remove it.")
    parts = [future.result() for future in futures]
    if job.part and (others := num_read - sum(len(part.hashes) for part in parts)):
        if others == num_read:
            found = f"part: {job.part} has none of the {num_read:,} rows"
            raise ConfigError(f"{found}: divide them into fewer parts")
        source.listing.left_out.update(LeftOut({OTHER_PARTS: others}, {OTHER_PARTS: []}))
    return parts


def _find_duplicates(store: Store, parts: Sequence[_Part]) -> dict[int, str]:
    """Return the rows that repeat an earlier one, in order: position in the plan, and a text."""
    hashes = np.concatenate([part.hashes for part in parts])
    hashes.sort()
    repeated = hashes[1:][hashes[1:] == hashes[:-1]]
    first_with: dict[str, str] = {}
    duplicates = {}
    start = 0
    for part in parts:
        inside = np.flatnonzero(np.isin(part.hashes, repeated))
        if len(inside):
            rows = read_part(store, part.stored, OWN_COLUMNS).take(pa.array(inside)).to_pylist()
            for offset, row in zip(inside.tolist(), rows, strict=True):
                place = f"source {part.stored.source} row {part.numbers[offset]}"
                # Hashes of 8 bytes may collide; equal ids of 16 bytes mean the same clip.
                first = first_with.setdefault(row[ROW_ID.name], place)
                if first != place:
                    duplicates[start + offset] = (
                        f"{place} repeats {first}: {redact(row['source_uri'])}"
                    )
        start += part.stored.num_rows
    return duplicates


def _without_rows(store: Store, parts: Sequence[_Part], dropped: Collection[int]) -> list[_Part]:
    """Rewrite the parts that hold dropped rows. Nobody has read them yet."""
    ends = np.cumsum([part.stored.num_rows for part in parts])
    is_kept = np.ones(ends[-1], bool)
    is_kept[np.fromiter(dropped, np.int64)] = False
    kept = []
    for part, keep in zip(parts, np.split(is_kept, ends[:-1]), strict=True):
        if not keep.any():
            store.delete(part.stored.key)
        elif keep.all():
            kept.append(part)
        else:
            table = read_part(store, part.stored).filter(pa.array(keep))
            rest = table, part.stored.source, part.hashes[keep], part.numbers[keep]
            kept.append(_Part(store, part.stored.key, *rest, videos_of(table)))
    return kept


def with_row_ids(dataset: str, table: pa.Table) -> tuple[pa.Table, _Hashes]:
    """Add the ids of a table's rows as its first column; also return their first 8 bytes."""
    spans = map(span_bytes, *(table.column(name).to_pylist() for name in ("start_s", "end_s")))
    uris = table.column("source_uri").cast(pa.binary()).to_pylist()
    ids = row_digests(dataset, uris, spans)
    texts = pa.array([one.hex() for one in ids], pa.string())
    return table.add_column(0, ROW_ID, texts), np.frombuffer(b"".join(ids), "<u8")[::2].copy()


class RowSample:
    """What reading the first rows of a source shows."""

    def __init__(
        self, source: RowSource, dataset: str, *, num_items: int, max_rows: int, seed: int = 0
    ) -> None:
        """Read rows, stopping soon after ``max_rows``, and draw ``num_items`` of them."""
        read, self.num_rows = [ROW_SCHEMA.empty_table()], 0
        batches = source.batches()
        for batch in batches:
            read.append(pa.Table.from_batches([batch]).select(ROW_SCHEMA.names))
            self.num_rows += batch.num_rows
            if self.num_rows >= max_rows:
                break
        self.is_complete = next(batches, None) is None  # The source has no further rows
        table, self.hashes = with_row_ids(dataset, pa.concat_tables(read).combine_chunks())
        """One hash per row; rows with the same one are the same clip."""
        problems = table.column("problem")
        good = np.flatnonzero(problems.is_null().to_numpy())
        self.num_problems = self.num_rows - len(good)  # Rows that cannot be clips
        self.problem: str | None = next(iter(problems.drop_null().to_pylist()), None)
        """That of the first such row."""
        draw = np.random.default_rng(seed)
        drawn = np.sort(draw.choice(good, min(num_items, len(good)), replace=False))
        self.items = items_of(table.take(pa.array(drawn)), drawn.tolist(), source.config)
        """Some of the other rows, drawn at random, in order."""
