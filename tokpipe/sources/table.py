"""Tables: one row per row of a CSV, TSV, JSONL or Parquet table."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.config.job import StoreOptions
from tokpipe.config.sources import TableSource
from tokpipe.errors import ConfigError
from tokpipe.sources.allowed import AllowedUris, example_prefix
from tokpipe.sources.delimited import DelimitedFile
from tokpipe.sources.json_lines import JsonLinesFile
from tokpipe.sources.parquet import ParquetFile
from tokpipe.sources.rows import carried_names, make_batch, row_schema
from tokpipe.sources.spans import holds_seconds, to_seconds
from tokpipe.sources.table_files import RawBatch, TableFile
from tokpipe.storage.listing import iter_matches
from tokpipe.telemetry.redact import redact

_ENDINGS = {
    "csv": "csv",
    "tsv": "tsv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "parq": "parquet",
}
_PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
_ABSOLUTE = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/)"
_HEADER_THREADS = 16


class TableRows:
    """One row per row of a table, or of several with the same columns, in order of their names.

    A URI in the table stands as it is when it has a scheme or starts with ``/``; else it is
    relative to the folder of its table. Every column but those of the URI and the span is
    carried. A row that cannot be a clip, or names a video that the table may not name, is a row
    with a problem, called after its place.
    """

    def __init__(self, label: str, config: TableSource, options: StoreOptions) -> None:
        self.label = label
        self._config = config
        self._options = options
        self._tables: list[tuple[str, TableFile]] = []
        self._columns = pa.schema([])

    def carried(self) -> pa.Schema:
        if not self._tables:
            self._open()
        names = self._carried_columns()
        fields = [self._columns.field(name) for name in names]
        return pa.schema(
            [
                pa.field(new, field.type)
                for new, field in zip(carried_names(names), fields, strict=True)
            ]
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        schema = row_schema(self.carried())
        self._num_named = self._num_outside = 0
        self._outside_example = ""
        for uri, table in self._tables:
            allowed = AllowedUris(uri, self._config.allowed_prefixes)
            for raw in table.batches(self._columns):
                yield self._rows(uri, table.place, raw, schema, allowed)
        if self._num_outside and self._num_outside == self._num_named:
            self._refuse_all()

    def _refuse_all(self) -> None:
        example = redact(self._outside_example)
        prefix = redact(example_prefix(self._outside_example))
        raise ConfigError(
            f"{self.label}: all {self._num_outside} videos that it names are outside what it may "
            f"name, such as {example}. A table could otherwise make the job read any file of a "
            f"node. If they are meant, allow them: {self._setting}: [{json.dumps(prefix)}]."
        )

    @property
    def _setting(self) -> str:
        return f"{self.label.partition(' ')[0]}.allowed_prefixes"

    def _open(self) -> None:
        uris = sorted(match.uri for match in iter_matches(self._config.uri, self._options))
        if not uris:
            raise ConfigError(
                f"{self.label}: there is no table {self._config.uri}. A job without clips is "
                "surely a mistake: check the path; '**' crosses folders, '*' does not."
            )
        tables = [(uri, self._table_file(uri)) for uri in uris]
        with ThreadPoolExecutor(_HEADER_THREADS) as pool:
            schemas = list(pool.map(lambda table: table[1].columns(), tables))
        self._columns = self._unify(tables, schemas)
        self._check_columns()
        self._tables = tables

    def _table_file(self, uri: str) -> TableFile:
        kind = self._config.format
        if kind is None:
            ending = uri.lower().removesuffix(".gz").rpartition(".")[2]
            if ending not in _ENDINGS:
                raise ConfigError(
                    f"{self.label}: the name of {uri} does not tell its format. Set the source's "
                    "format to csv, tsv, jsonl or parquet."
                )
            kind = _ENDINGS[ending]  # type: ignore[assignment]
        if kind == "parquet":
            return ParquetFile(uri, self._options)
        if kind == "jsonl":
            return JsonLinesFile(uri, self._options)
        return DelimitedFile(uri, self._options, delimiter="\t" if kind == "tsv" else ",")

    def _unify(self, tables: list[tuple[str, TableFile]], schemas: list[pa.Schema]) -> pa.Schema:
        """One schema for all tables; keys of JSON objects may differ from table to table."""
        for (uri, table), schema in zip(tables, schemas, strict=True):
            apart = set(schemas[0].names) ^ set(schema.names)
            if apart and not isinstance(table, JsonLinesFile):
                raise ConfigError(
                    f"{self.label}: {tables[0][0]} and {uri} differ in their columns "
                    f"({', '.join(sorted(apart)[:10])}). Tables of one glob are read as one: "
                    "write one source per kind of table."
                )
        try:
            return pa.unify_schemas(schemas, promote_options="permissive")
        except (pa.ArrowException, TypeError) as error:
            raise ConfigError(
                f"{self.label}: the tables of {self._config.uri} give one column different types "
                f"({error}). Tables of one glob are read as one: write one source per kind."
            ) from error

    def _check_columns(self) -> None:
        config = self._config
        wanted = {
            "uri_column": [config.uri_column] if config.uri_column is not None else [],
            "uri_template": _PLACEHOLDER.findall(config.uri_template or ""),
            "start_column": [config.start_column] if config.start_column is not None else [],
            "end_column": [config.end_column] if config.end_column is not None else [],
        }
        for key, names in wanted.items():
            for name in names:
                if name not in self._columns.names:
                    self._refuse_column(key, name)
        if config.uri_column is not None:
            kind = self._columns.field(config.uri_column).type
            if not pa.types.is_string(kind):
                raise ConfigError(
                    f"{self.label}: uri_column {config.uri_column!r} of {config.uri} "
                    f"holds {kind}, not text. Name the column with the videos' URIs."
                )
        for name in wanted["uri_template"]:
            kind = self._columns.field(name).type
            if not _is_printable(kind):
                raise ConfigError(
                    f"{self.label}: uri_template names column {name!r}, and {config.uri} holds "
                    f"{kind} there, which is no part of a URI. Name columns of text or numbers."
                )
        for key in ("start_column", "end_column"):
            for name in wanted[key]:
                kind = self._columns.field(name).type
                if not holds_seconds(kind):
                    raise ConfigError(
                        f"{self.label}: {key} {name!r} of {config.uri} holds {kind}, not "
                        "seconds. Name a column with one time per row; a list of spans has to be "
                        "spread over rows first."
                    )

    def _refuse_column(self, key: str, name: str) -> None:
        config, names = self._config, self._columns.names
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else "write one of those."
        raise ConfigError(
            f"{self.label}: {key} names a column {name!r} that {config.uri} does not "
            f"have; its columns are {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}; "
            f"{hint}"
        )

    def _carried_columns(self) -> list[str]:
        config = self._config
        used = {config.uri_column, config.start_column, config.end_column}
        return [name for name in self._columns.names if name not in used]

    def _rows(
        self, uri: str, place: str, raw: RawBatch, schema: pa.Schema, allowed: AllowedUris
    ) -> pa.RecordBatch:
        problems = dict(raw.problems)
        uris = self._uris(uri, raw.columns)
        starts, ends = (
            self._times(raw.columns, name, problems)
            for name in (self._config.start_column, self._config.end_column)
        )
        empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(uris), ""), True)
        for i in np.flatnonzero(empty.to_numpy(zero_copy_only=False)):
            problems.setdefault(int(i), "names no video: its URI, or a part of it, is empty")
        self._find_outside(uris, allowed, empty, problems)
        backwards = pc.fill_null(pc.less_equal(ends, pc.fill_null(starts, 0.0)), False)
        for i in np.flatnonzero(backwards.to_numpy(zero_copy_only=False)):
            span = f"{starts[i].as_py() or 0.0} to {ends[i].as_py()}"
            problems.setdefault(int(i), f"ends before it starts: {span} seconds")
        columns = {"source_uri": uris, "start_s": starts, "end_s": ends}
        if problems:
            columns |= self._mark(uri, place, raw, problems, columns)
        arrays = [raw.columns.column(name) for name in self._carried_columns()]
        return make_batch(columns, arrays, schema)

    def _uris(self, table_uri: str, columns: pa.RecordBatch) -> pa.Array:
        if self._config.uri_column is not None:
            uris = columns.column(self._config.uri_column)
        else:
            uris = _fill_template(self._config.uri_template or "", columns)
        is_relative = pc.invert(pc.match_substring_regex(uris, _ABSOLUTE))
        if not pc.any(is_relative).as_py():
            return uris
        folder = table_uri.rpartition("/")[0]
        absolute = pc.binary_join_element_wise(folder, uris, "/")
        # An empty URI stays empty, to be found.
        is_empty = pc.equal(pc.utf8_trim_whitespace(uris), "")
        return pc.if_else(pc.and_(is_relative, pc.invert(is_empty)), absolute, uris)

    def _find_outside(
        self, uris: pa.Array, allowed: AllowedUris, empty: pa.Array, problems: dict[int, str]
    ) -> None:
        named = pc.invert(empty)
        outside = pc.and_(named, pc.fill_null(allowed.outside(uris), False))
        positions = np.flatnonzero(outside.to_numpy(zero_copy_only=False))
        self._num_named += pc.sum(named).as_py() or 0
        self._num_outside += len(positions)
        if not len(positions):
            return
        self._outside_example = self._outside_example or uris[int(positions[0])].as_py()
        problem = (
            "names a video outside what its table may name. A table could otherwise make the job "
            f"read any file of a node. If it is meant, add its folder to {self._setting}, and "
            "write it without '..'"
        )
        for i in positions.tolist():
            problems[i] = problem

    def _times(
        self, columns: pa.RecordBatch, name: str | None, problems: dict[int, str]
    ) -> pa.Array:
        if name is None:
            return pa.nulls(columns.num_rows, pa.float64())
        values = columns.column(name)
        seconds, unusable = to_seconds(values)
        for i in np.flatnonzero(unusable.to_numpy(zero_copy_only=False)):
            found = str(values[i].as_py())[:100]
            problems.setdefault(int(i), f"its {name} is {found!r}, not a number of seconds")
        return seconds

    def _mark(
        self,
        uri: str,
        place: str,
        raw: RawBatch,
        problems: dict[int, str],
        columns: dict[str, pa.Array],
    ) -> dict[str, pa.Array]:
        """Rename rows with problems after their places, and take their spans away."""
        names, texts = columns["source_uri"].to_pylist(), [None] * len(raw.places)
        for i, problem in problems.items():
            of_video = f" (video {names[i][:200]})" if names[i] else ""
            texts[i] = f"{place} {raw.places[i]} of {uri} {problem}{of_video}"  # type: ignore[call-overload]
            names[i] = f"{uri}#{place}={raw.places[i]}"
        texts = pa.array(texts, pa.string())
        no_time = pa.scalar(None, pa.float64())
        return {
            "source_uri": pa.array(names, pa.string()),
            "problem": texts,
            "start_s": pc.if_else(pc.is_valid(texts), no_time, columns["start_s"]),
            "end_s": pc.if_else(pc.is_valid(texts), no_time, columns["end_s"]),
        }


def _is_printable(kind: pa.DataType) -> bool:
    """Say whether every value of this type has a text, which random bytes have not."""
    try:
        pc.cast(pa.nulls(1, kind), pa.string())
    except pa.ArrowException:
        return False
    return not (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or pa.types.is_binary_view(kind)
    )


def _fill_template(template: str, columns: pa.RecordBatch) -> pa.Array:
    """Fill ``{column}``; a row in which one of them is null or empty gets an empty result."""
    pieces: list[pa.Array | str] = []
    is_empty = pa.repeat(False, columns.num_rows)
    # Split at the placeholders: text and column names take turns.
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
