"""Tables: one row per row of a CSV, TSV, JSONL or Parquet table."""

import difflib
import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import TABLE_EXTENSIONS, TableSource
from tokpipe.errors import ConfigError
from tokpipe.sources.allowed import AllowedUris, example_prefix
from tokpipe.sources.parquet import ParquetFile
from tokpipe.sources.rows import (
    MAX_COLUMNS,
    ROW_SCHEMA,
    RawBatch,
    RowSource,
    carried_names,
    make_batch,
)
from tokpipe.sources.spans import holds_seconds, to_seconds
from tokpipe.sources.text_tables import DelimitedFile, JsonLinesFile
from tokpipe.telemetry.redact import redact

TableFile = DelimitedFile | JsonLinesFile | ParquetFile
"""A broken row of a table is a problem, a broken table raises ``ConfigError``."""

_FORMATS: dict[str, Callable[[str, StoreOptions], TableFile]] = {
    "csv": DelimitedFile,
    "tsv": partial(DelimitedFile, delimiter="\t"),
    **dict.fromkeys(("jsonl", "ndjson"), JsonLinesFile),
    **dict.fromkeys(("parquet", "parq"), ParquetFile),
}
"""How to open a table, by its ending."""
EXTENSIONS = (*TABLE_EXTENSIONS, "gz")
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_ABSOLUTE = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/)"
_HEADER_THREADS = 16


@dataclass
class TableRows(RowSource):
    """One row per row of a table, or of several tables with the same columns, in name order.

    A URI is used as it is if it has a scheme or starts with ``/``; otherwise it is relative to the
    folder of its table. All columns except the URI and the span are carried. A row that cannot be
    a clip, or names a video that the table may not name, becomes a row with a problem that is
    named after its place.
    """

    config: TableSource
    _tables: list[TableFile] = field(default_factory=list)
    _columns: pa.Schema = field(default_factory=lambda: pa.schema([]))

    @property
    def _prefixes_key(self) -> str:
        return f"{self.label.partition(' ')[0]}.allowed_prefixes"

    def carried(self) -> pa.Schema:
        if not self._tables:
            self._open()
        names = self._carried_columns()
        types = [self._columns.field(name).type for name in names]
        return pa.schema(list(zip(carried_names(names), types, strict=True)))

    def head(self) -> tuple[str, pa.RecordBatch]:
        """Return the folder of the first table, and some rows with its own names of columns."""
        self.carried()
        first = self._tables[0]
        return first.uri.rpartition("/")[0], next(first.batches(self._columns)).columns

    def batches(self) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([*ROW_SCHEMA, *self.carried()])
        self._num_named = self._num_outside = 0
        self._outside_example = ""
        for table in self._tables:
            allowed = AllowedUris(table.uri, self.config.allowed_prefixes)
            for raw in table.batches(self._columns):
                yield self._rows(table, raw, schema, allowed)
        if self._num_outside and self._num_outside == self._num_named:
            example = redact(self._outside_example)
            prefix = redact(example_prefix(self._outside_example))
            raise ConfigError(
                f"{self.label}: all {self._num_outside} videos that it names are outside the "
                f"allowed prefixes, such as {example}. Otherwise a table could make the job read "
                f"any file of a node. To allow them: {self._prefixes_key}: [{json.dumps(prefix)}]."
            )

    def _open(self) -> None:
        tables = [self._table_file(uri) for uri in self.matching_uris()]
        with ThreadPoolExecutor(_HEADER_THREADS) as pool:
            schemas = list(pool.map(lambda table: table.columns(), tables))
        self._columns = self._unify(tables, schemas)
        self._check_columns()
        self._tables = tables

    def _table_file(self, uri: str) -> TableFile:
        ending = uri.lower().removesuffix(".gz").rpartition(".")[2]
        kind = self.config.format or ending
        if kind not in _FORMATS:
            raise ConfigError(
                f"{self.label}: the name of {uri} does not show its format. Set the source's "
                "format to csv, tsv, jsonl or parquet."
            )
        return _FORMATS[kind](uri, self.options)

    def _unify(self, tables: list[TableFile], schemas: list[pa.Schema]) -> pa.Schema:
        """Return one schema for all tables; keys of JSON objects may differ between tables."""
        for table, schema in zip(tables, schemas, strict=True):
            if len(schema) > MAX_COLUMNS:
                raise ConfigError(
                    f"{table.uri}: has more than {MAX_COLUMNS} columns. Drop columns that are not "
                    "needed with the codes, or put what varies into one."
                )
            apart = set(schemas[0].names) ^ set(schema.names)
            if apart and not isinstance(table, JsonLinesFile):
                raise ConfigError(
                    f"{self.label}: {tables[0].uri} and {table.uri} have different columns "
                    f"({', '.join(sorted(apart)[:10])}). Tables of one glob are read as one: "
                    "write one source per kind of table."
                )
        try:
            return pa.unify_schemas(schemas, promote_options="permissive")
        except (pa.ArrowException, TypeError) as error:
            raise ConfigError(
                f"{self.label}: a column has different types in the tables of {self.config.uri} "
                f"({error}). Tables of one glob are read as one: write one source per kind."
            ) from error

    def _check_columns(self) -> None:
        config, names = self.config, self._columns.names
        times = "seconds. Name a column with one time per row; write lists of spans as rows"
        chosen = [
            ("uri_column", config.uri_column, pa.types.is_string, "text. Name that of the videos"),
            ("start_column", config.start_column, holds_seconds, times),
            ("end_column", config.end_column, holds_seconds, times),
        ]
        for name in _PLACEHOLDER.findall(config.uri_template or ""):
            wanted = "text or numbers, so it cannot be part of a URI. Name such columns"
            chosen.append(("uri_template", name, _is_printable, wanted))
        for key, name, fits, wanted in chosen:
            if name is None:
                continue
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else "write one of those."
                shown = f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
                raise ConfigError(
                    f"{self.label}: {key} names a column {name!r} that {config.uri} does not "
                    f"have; its columns are {shown}; {hint}"
                )
            kind = self._columns.field(name).type
            if not fits(kind):
                raise ConfigError(
                    f"{self.label}: {key} {name!r} of {config.uri} holds {kind}, not {wanted}."
                )

    def _carried_columns(self) -> list[str]:
        config = self.config
        used = {config.uri_column, config.start_column, config.end_column}
        return [name for name in self._columns.names if name not in used]

    def _rows(
        self, table: TableFile, raw: RawBatch, schema: pa.Schema, allowed: AllowedUris
    ) -> pa.RecordBatch:
        uris = self._uris(table.uri, raw.columns)
        is_empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(uris), ""), True)
        problems = raw.problems | self._outside(uris, pc.invert(is_empty), allowed)
        starts = self._times(raw.columns, self.config.start_column, problems)
        ends = self._times(raw.columns, self.config.end_column, problems)
        for i in _positions(is_empty):
            problems.setdefault(i, "names no video: its URI, or a part of it, is empty")
        backwards = pc.fill_null(pc.less_equal(ends, pc.fill_null(starts, 0.0)), False)
        for i in _positions(backwards):
            span = f"{starts[i].as_py() or 0.0} to {ends[i].as_py()}"
            problems.setdefault(i, f"ends before it starts: {span} seconds")
        columns = {"source_uri": uris, "start_s": starts, "end_s": ends}
        if problems:
            # Name these rows after their places, and remove their spans.
            names = uris.to_pylist()
            texts: list[str | None] = [None] * len(names)
            for i, problem in problems.items():
                of_video = f" (video {names[i][:200]})" if names[i] else ""
                texts[i] = f"{table.place} {raw.places[i]} of {table.uri} {problem}{of_video}"
                names[i] = f"{table.uri}#{table.place}={raw.places[i]}"
            is_good = pc.is_null(pa.array(texts, pa.string()))
            columns = {
                "source_uri": names,
                "problem": texts,
                "start_s": pc.if_else(is_good, starts, None),
                "end_s": pc.if_else(is_good, ends, None),
            }
        arrays = [raw.columns.column(name) for name in self._carried_columns()]
        return make_batch(columns, arrays, schema)

    def _uris(self, table_uri: str, columns: pa.RecordBatch) -> pa.Array:
        if self.config.uri_column is not None:
            uris = columns.column(self.config.uri_column)
        else:
            uris = _fill_template(self.config.uri_template or "", columns)
        is_relative = pc.invert(pc.match_substring_regex(uris, _ABSOLUTE))
        if not pc.any(is_relative).as_py():
            return uris
        absolute = pc.binary_join_element_wise(table_uri.rpartition("/")[0], uris, "/")
        # An empty URI stays empty, so that it is found.
        is_empty = pc.equal(pc.utf8_trim_whitespace(uris), "")
        return pc.if_else(pc.and_(is_relative, pc.invert(is_empty)), absolute, uris)

    def _outside(self, uris: pa.Array, is_named: pa.Array, allowed: AllowedUris) -> dict[int, str]:
        """Return a problem for each row that names a video outside the allowed prefixes."""
        outside = _positions(pc.and_(is_named, pc.fill_null(allowed.outside(uris), False)))
        self._num_named += pc.sum(is_named).as_py() or 0
        self._num_outside += len(outside)
        if outside and not self._outside_example:
            self._outside_example = uris[outside[0]].as_py()
        problem = (
            "names a video outside the allowed prefixes. Otherwise a table could make the job "
            f"read any file of a node. To allow it, add its folder to {self._prefixes_key}, and "
            "write it without '..'"
        )
        return dict.fromkeys(outside, problem)

    def _times(
        self, columns: pa.RecordBatch, name: str | None, problems: dict[int, str]
    ) -> pa.Array:
        """Return seconds, null where unknown, adding a problem for each row without valid ones."""
        if name is None:
            return pa.nulls(columns.num_rows, pa.float64())
        values = columns.column(name)
        seconds, unusable = to_seconds(values)
        for i in _positions(unusable):
            found = str(values[i].as_py())[:100]
            problems.setdefault(i, f"its {name} is {found!r}, not a number of seconds")
        return seconds


def _positions(mask: pa.Array) -> list[int]:
    """Return the positions at which a mask without nulls is true."""
    positions: list[int] = np.flatnonzero(mask.to_numpy(zero_copy_only=False)).tolist()
    return positions


def _is_printable(kind: pa.DataType) -> bool:
    """Whether every value of this type can be written as text, unlike bytes or lists."""
    types = pa.types
    return bool(types.is_string(kind) or types.is_primitive(kind) or types.is_decimal(kind))


def _fill_template(template: str, columns: pa.RecordBatch) -> pa.Array:
    """Fill ``{column}``; a row in which one of the columns is null or empty becomes empty."""
    pieces: list[pa.Array | str] = []
    is_empty = pa.repeat(False, columns.num_rows)
    # Splitting at the placeholders alternates text and column names.
    for i, piece in enumerate(_PLACEHOLDER.split(template)):
        if i % 2 == 0:
            pieces.append(piece)
            continue
        values = columns.column(piece)
        text = values if pa.types.is_string(values.type) else pc.cast(values, pa.string())
        is_empty = pc.or_(is_empty, pc.fill_null(pc.equal(text, ""), True))
        pieces.append(text)
    filled = pc.binary_join_element_wise(*pieces, "")
    return pc.if_else(is_empty, pa.scalar("", pa.string()), filled)
