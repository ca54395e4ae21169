"""What every source produces: its columns, and the names that carried columns may have."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tokpipe.config.sources import Source, TableSource
from tokpipe.errors import ConfigError
from tokpipe.formats.shard import shard_schema
from tokpipe.formats.side_table import OWN_COLUMNS
from tokpipe.storage.listing import Listing
from tokpipe.types import VIDEO, ArchiveMember, Media, WorkItem

ROW_SCHEMA = pa.schema(
    [
        pa.field("source_uri", pa.string(), nullable=False),
        pa.field("archive_uri", pa.string()),
        pa.field("member_offset", pa.int64()),
        pa.field("member_size", pa.int64()),
        pa.field("member_column", pa.string()),
        pa.field("source_version", pa.uint64()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("problem", pa.string()),
    ]
)
"""What tokpipe needs to know about a clip, as in ``WorkItem``. A row with a problem is named after
its place, ``videos.csv#line=17``: its video may be unknown, or be a good clip of another row."""

MAX_COLUMNS = 1000  # Of a table: each costs memory in every part of the plan and every shard

_OWN_NAMES = {*ROW_SCHEMA.names, *OWN_COLUMNS, *shard_schema("uint32").names}
_OWN_NAMES |= {"row", "row_id", "num_segments", "dataset"}


@dataclass(frozen=True)
class RawBatch:
    """Some rows of one table, before columns get their meaning."""

    columns: pa.RecordBatch  # All columns, by name, in any order; a broken row is null throughout
    places: Sequence[int]  # Line of a text table or row of a Parquet file, counted from 1
    problems: dict[int, str]  # Broken rows, by position in this batch


@dataclass
class RowSource(ABC):
    """One entry of a job's ``sources``, opened."""

    label: str  # Names the source in messages: ``sources[0] (table videos.csv)``
    listing: Listing
    config: Any
    outside_example = ""  # A video that its table may not name, once rows are read

    def carried(self) -> pa.Schema:
        """Return the columns that this source's rows carry beyond ``ROW_SCHEMA``."""
        return pa.schema([])

    @abstractmethod
    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows as ``ROW_SCHEMA`` + carried, in the same order every time."""

    def nothing_matches(self) -> ConfigError:
        return ConfigError(
            f"{self.label}: nothing matches {self.listing.uri}, so the job would have no clips. "
            f"{self.listing.explain_nothing()} Check the path and the kind of the source; pictures "
            "need media: image or both. In a glob, '**' crosses folders, and '[[]' is a bracket."
        )

    def matching_uris(self) -> list[str]:
        """Return the files that a glob matches, in order."""
        uris = {match.uri for match in self.listing}
        if not uris:
            raise self.nothing_matches()
        if folder := self.listing.folder.rstrip("/"):
            ending = min(uris).rpartition(".")[2]
            found = f"{folder} is a folder, and only sources of kind files take a folder"
            do = f"Write a glob of the files in it, such as {folder}/**/*.{ending}"
            raise ConfigError(f"{self.label}: {found}. {do}")
        return sorted(uris)


def printable(name: str) -> str:
    r"""Return a name that UTF-8 can hold; bytes that cannot be decoded become ``\xNN``."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unique_names(names: Sequence[str]) -> list[str]:
    """Name each column: a missing name is ``column_<position>``, a repeated one ``name_2`` ...
    Quadratic, so callers pass at most ``MAX_COLUMNS + 1``."""
    unique: list[str] = []
    for position, name in enumerate(names, 1):
        candidate, number = name or f"column_{position}", 2
        while candidate in unique or (candidate != name and candidate in names):
            candidate, number = f"{name or 'column'}_{number}", number + 1
        unique.append(candidate)
    return unique


def carried_names(names: Sequence[str]) -> list[str]:
    """Return the names that columns are carried under; ``src_<name>`` if tokpipe uses the name.
    Case is ignored, because DuckDB and others treat ``FPS`` and ``fps`` as one column."""
    taken = {name.lower() for name in names} | _OWN_NAMES
    chosen = []
    for name in names:
        new = name or "column"
        if not name or name.lower() in _OWN_NAMES:
            while new.lower() in taken:
                new = f"src_{new}"
            taken.add(new.lower())
        chosen.append(new)
    return chosen


def make_batch(
    columns: dict[str, Any], carried: Sequence[pa.Array], schema: pa.Schema
) -> pa.RecordBatch:
    """Assemble a batch from carried columns and some of ``ROW_SCHEMA``'s; the others are null."""
    num_rows = len(columns["source_uri"])
    given = ((columns.get(one.name, pa.nulls(num_rows, one.type)), one.type) for one in ROW_SCHEMA)
    own = [one if isinstance(one, pa.Array) else pa.array(one, kind) for one, kind in given]
    return pa.RecordBatch.from_arrays([*own, *carried], schema=schema)


def items_of(table: pa.Table, rows: Sequence[int], source: Source | None = None) -> list[WorkItem]:
    """Return the work items of a table with row ids, whose rows are at ``rows`` in the plan."""
    unknown = pa.nulls(len(table))
    columns = [
        (table.column(name) if name in table.column_names else unknown).to_pylist()
        for name in ("row_id", *ROW_SCHEMA.names)
    ]
    follows = source is not None and source.on_change == "accept"
    media = VIDEO if source is None else Media(source.media, source.animation_as_picture)
    items = []
    for row, row_id, uri, archive_uri, *place, version, start_s, end_s, problem in zip(
        rows, *columns, strict=True
    ):
        member = None if archive_uri is None else ArchiveMember(archive_uri, *place)
        allowed: tuple[str, ...] | None = () if source is None else None
        if member is None and isinstance(source, TableSource):
            allowed = source.allowed_prefixes or ()
        known: dict[str, Any] = {"version": version, "follows": follows, "allowed": allowed}
        known |= {"problem": problem, "media": media}
        items.append(WorkItem(row, row_id, uri, member, start_s, end_s, **known))
    return items
