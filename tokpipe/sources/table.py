"""Tables: one row per row of a CSV, TSV, JSONL or Parquet table."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.config import sources
from tokpipe.config.sources import TableSource
from tokpipe.errors import ConfigError
from tokpipe.sources.columns import check_carried, find, is_media, within
from tokpipe.sources.parquet import ParquetFile
from tokpipe.sources.rows import (
    MAX_COLUMNS,
    ROW_SCHEMA,
    RawBatch,
    RowSource,
    carried_names,
    make_batch,
)
from tokpipe.sources.text_tables import DelimitedFile, JsonFile
from tokpipe.sources.uris import AllowedUris, Template, exact_uris, example_prefix
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.telemetry.redact import redact

TableFile = DelimitedFile | JsonFile | ParquetFile
"""A broken row of a table is a problem, a broken table raises ``ConfigError``."""

_DELIMITERS = {"csv": ",", "tsv": "\t"}
_JSON = ("jsonl", "ndjson", "json")
EXTENSIONS = (*sources.TABLE_EXTENSIONS, *sources.COMPRESSIONS)
_ABSOLUTE = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/)"
_HEADER_THREADS = 16
_NOT_PROMOTED = (pa.types.is_integer, pa.types.is_uint64, pa.types.is_decimal, pa.types.is_string)
_HOLD_VIDEOS = (pa.types.is_string, pa.types.is_binary, is_media)
_PRINTABLE = (pa.types.is_string, pa.types.is_primitive, pa.types.is_decimal)
_HOLD_SECONDS = (
    *(pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal, pa.types.is_duration),
    *(pa.types.is_time, pa.types.is_string),
)


@dataclass
class TableRows(RowSource):
    """One row per row of a table, or of several tables with the same columns, in name order.

    A URI without a scheme or a leading ``/`` is relative to the folder of its table. All columns
    except the URI and the span are carried. A row that cannot be a clip, or names a video that the
    table may not name, becomes a row with a problem that is named after its place.
    """

    config: TableSource
    _tables: list[TableFile] = field(default_factory=list)
    _columns = pa.schema([])  # What is read: carried columns and those that make URIs and times
    _carried: Sequence[str] = ()
    _template: Template = field(default_factory=lambda: Template(""))
    media: Sequence[str] = ()  # Columns with embedded videos, pictures or sounds
    _texts: str | None = None  # Column of URIs; none if a template makes them or all are embedded
    _bytes: str | None = None  # The column with embedded videos; read as whether there is one

    @property
    def _prefixes_key(self) -> str:
        return f"{self.label.partition(' ')[0]}.allowed_prefixes"

    def carried(self) -> pa.Schema:
        if not self._tables:
            self._open()
        types = [self._columns.field(name).type for name in self._carried]
        return pa.schema(list(zip(carried_names(self._carried), types, strict=True)))

    def head(self) -> tuple[str, pa.RecordBatch]:
        """Return the folder of the first table, and some rows with its own names of columns."""
        self.carried()
        first = self._tables[0]
        return first.uri.rpartition("/")[0], next(first.batches(self._columns)).columns

    def batches(self) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([*ROW_SCHEMA, *self.carried()])
        self._num_named = self._num_outside = 0
        self.outside_example = ""
        for table in self._tables:
            base = self._base(table.uri)
            folder = self._template.folder
            if not re.match(_ABSOLUTE, f"{folder}/"):
                folder = f"{base}/{folder}"
            allowed = AllowedUris(table.uri, self.config.allowed_prefixes, folder)
            for raw in table.batches(self._columns):
                yield self._rows(table, base, raw, schema, allowed)
        if self._num_outside and self._num_outside == self._num_named:
            found = f"all {self._num_outside} videos that it names are outside the allowed prefixes"
            prefix = json.dumps(redact(example_prefix(self.outside_example)))
            do = f"If the job may read them, set {self._prefixes_key}: [{prefix}]"
            example = redact(self.outside_example)
            raise ConfigError(f"{self.label}: {found}, such as {example}. {do}.")

    def _open(self) -> None:
        if self.config.uri_template is not None:
            self._template = Template(self.config.uri_template)
        tables = [self._table_file(uri) for uri in self.matching_uris()]
        schemas = list(read_ahead(lambda table: table.columns(), tables, _HEADER_THREADS))
        self._choose_columns(tables[0], self._unify(tables, schemas))
        self._tables = tables
        check_carried(self.label, self.carried())

    def _used(self) -> list[tuple[str, str]]:
        keys = ("uri_column", "start_column", "end_column")
        named = [(key, name) for key in keys if (name := getattr(self.config, key)) is not None]
        return [*named, *(("uri_template", name) for name in self._template.columns)]

    def _table_file(self, uri: str) -> TableFile:
        options, ending = self.listing.options, sources.TABLE_ENDING.search(uri)
        kind = self.config.format or (ending[1].lower() if ending else "")
        if kind in _DELIMITERS:
            return DelimitedFile(uri, options, self.config.delimiter or _DELIMITERS[kind])
        if self.config.delimiter is not None:
            found = f"{self.label}: delimiter is set, but {uri} is not CSV or TSV"
            raise ConfigError(f"{found}. Remove it, or set the source's format.")
        if kind in _JSON:
            used = {name: key != "uri_column" for key, name in self._used()}
            return JsonFile(uri, options, used)
        if kind in ("parquet", "parq"):
            return ParquetFile(uri, options)
        found = f"{self.label}: the name of {uri} does not show its format"
        raise ConfigError(f"{found}. Set the source's format to csv, tsv, jsonl, json or parquet.")

    def _unify(self, tables: list[TableFile], schemas: list[pa.Schema]) -> pa.Schema:
        """Return one schema for all tables; keys of JSON objects may differ between tables."""
        for table, schema in zip(tables, schemas, strict=True):
            if len(schema) > MAX_COLUMNS:
                raise ConfigError(f"{table.uri}: has more than {MAX_COLUMNS} columns: drop some")
            apart = set(schemas[0].names) ^ set(schema.names)
            if apart and not isinstance(table, JsonFile):
                found = f"{self.label}: {tables[0].uri} and {table.uri} have different columns"
                names = ", ".join(sorted(apart)[:10])
                raise ConfigError(f"{found} ({names}): write one source per kind of table.")
        try:
            columns = pa.unify_schemas(schemas, promote_options="permissive")
            common = within(pa.struct(list(columns)))
            parts = (within(pa.struct(list(one))).items() for one in dict.fromkeys(schemas))
            for at, kind in (one for part in parts for one in part):
                if any(is_kind(kind) and not is_kind(common[at]) for is_kind in _NOT_PROMOTED):
                    raise TypeError(f"{'.'.join(at)} holds {kind} in one, {common[at]} in another")
        except (pa.ArrowException, TypeError) as error:
            found = f"a column has different types in the tables of {self.config.uri} ({error})"
            raise ConfigError(f"{self.label}: {found}: write one source per kind.") from error
        # A column of nulls is most often missing text.
        kinds = [pa.string() if pa.types.is_null(kind) else kind for kind in columns.types]
        return pa.schema(list(zip(columns.names, kinds, strict=True)))

    def _choose_columns(self, table: TableFile, columns: pa.Schema) -> None:
        """Decide what to read of these columns, and which to carry."""
        times = "seconds. Name a column with one time per row; write lists of spans as rows"
        printable = "text or numbers, so it cannot be part of a URI. Name such columns"
        wanted = {
            "uri_column": (_HOLD_VIDEOS, "text, bytes or videos. Name that of the videos"),
            "start_column": (_HOLD_SECONDS, times),
            "end_column": (_HOLD_SECONDS, times),
            "uri_template": (_PRINTABLE, printable),
        }
        read, inner = {}, within(pa.struct(list(columns)))
        for key, name in self._used():
            kind = inner.get(find(inner, name))
            if isinstance(table, JsonFile) and name.split(".")[0] in columns.names:
                kind = pa.string()
            if kind is None:
                raise ConfigError(self._explain_missing(key, name, table, columns.names))
            kinds, text = wanted[key]
            if not any(is_kind(kind) for is_kind in kinds):
                found = f"{self.label}: {key} {name!r} of {self.config.uri} holds {kind}"
                raise ConfigError(f"{found}, not {text}.")
            if key != "uri_column":
                read[name] = kind
                continue
            has_both = is_media(kind)
            if has_both or not pa.types.is_string(kind):
                self._bytes = f"{name}.bytes" if has_both else name
                read[self._bytes] = pa.bool_()
            if has_both or pa.types.is_string(kind):
                self._texts = f"{name}.path" if has_both else name
                read[self._texts] = pa.string()
        self.media = [one.name for one in columns if is_media(one.type)]
        once = {name for key, name in self._used() if key != "uri_template"}
        # Videos and sounds within a table would make the plan and side tables as large as it is.
        large = {at[0] for at, kind in inner.items() if is_media(kind)}
        carried = [one for one in columns if one.name not in once | large]
        self._carried = [one.name for one in carried]
        self._columns = pa.schema(list({**read, **{one.name: one.type for one in carried}}.items()))

    def _explain_missing(self, key: str, name: str, table: TableFile, names: list[str]) -> str:
        hint = "write one of those."
        if isinstance(table, DelimitedFile):
            header = table.delimiter.join(names)
            for other in (one for one in ",;|\t" if name in header.split(one)):
                hint = f'its columns are separated by another character: set delimiter: "{other}"'
        shown = f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        found = f"{key} names a column {name!r} that {self.config.uri} does not have"
        return f"{self.label}: {found}; its columns are {shown}; {hint}"

    def _base(self, table_uri: str) -> str:
        store, slashes, folder = table_uri.rpartition("/")[0].rpartition("://")
        parts = folder.split("/")
        num_left = max(1, len(parts) - self._template.num_parents)
        return f"{store}{slashes}{'/'.join(parts[:num_left])}"

    def _rows(
        self, table: TableFile, base: str, raw: RawBatch, schema: pa.Schema, allowed: AllowedUris
    ) -> pa.RecordBatch:
        problems, embedded = raw.problems, pa.repeat(False, len(raw.places))
        if self._bytes:
            embedded = pc.fill_null(raw.columns.column(self._bytes), False)
        uris = self._uris(raw, base, embedded)
        self._find_outside(raw, uris, allowed)
        starts = self._times(raw, self.config.start_column)
        ends = self._times(raw, self.config.end_column)
        is_empty = pc.fill_null(pc.equal(uris, ""), True)
        for i in pc.indices_nonzero(pc.and_not(is_empty, embedded)).to_pylist():
            problems.setdefault(i, "names no video: its URI, or a part of it, is empty")
        backwards = pc.less_equal(ends, pc.fill_null(starts, 0.0))
        for i in pc.indices_nonzero(backwards).to_pylist():
            span = f"{starts[i].as_py() or 0.0} to {ends[i].as_py()}"
            problems.setdefault(i, f"ends before it starts: {span} seconds")
        columns: dict[str, Any] = {"source_uri": uris, "start_s": starts, "end_s": ends}
        if self._bytes:
            names = [f"{table.uri}#{self.config.uri_column}={place}" for place in raw.places]
            columns["source_uri"] = pc.if_else(embedded, names, uris)
            of_member = {  # whose version is that of the table
                "archive_uri": table.uri,
                "member_offset": pc.subtract(pa.array(raw.places, pa.int64()), 1),
                "member_size": pa.scalar(0, pa.int64()),
                "member_column": self._bytes,
                "source_version": pa.scalar(table.info.source_version, pa.uint64()),
            }
            columns |= {key: pc.if_else(embedded, of_member[key], None) for key in of_member}
        if problems:
            # Name these rows after their places, and remove their spans.
            names = columns["source_uri"].to_pylist()
            texts: list[str | None] = [None] * len(names)
            for i, problem in problems.items():
                of_video = f" (video {names[i][:200]})" if names[i] else ""
                texts[i] = f"{table.place} {raw.places[i]} of {table.uri} {problem}{of_video}"
                names[i] = f"{table.uri}#{table.place}={raw.places[i]}"
            is_good = pc.is_null(pa.array(texts, pa.string()))
            columns = {key: pc.if_else(is_good, columns[key], None) for key in columns}
            columns |= {"source_uri": names, "problem": texts}
        arrays = [raw.columns.column(name) for name in self._carried]
        return make_batch(columns, arrays, schema)

    def _uris(self, raw: RawBatch, base: str, embedded: pa.Array) -> pa.Array:
        """Return absolute URIs, null or empty where there is none or it has a problem."""
        if self.config.uri_template is not None:
            uris = self._template.fill(raw.columns, raw.problems)
        elif self._texts:
            uris = raw.columns.column(self._texts)
        else:
            return pa.nulls(len(embedded), pa.string())
        uris = exact_uris(pc.if_else(embedded, None, uris), raw.problems)
        is_relative = pc.invert(pc.match_substring_regex(uris, _ABSOLUTE))
        if not pc.any(is_relative).as_py():
            return uris
        absolute = pc.binary_join_element_wise(base, uris, "/")
        # An empty URI stays empty, so that it is found.
        return pc.if_else(pc.and_(is_relative, pc.not_equal(uris, "")), absolute, uris)

    def _find_outside(self, raw: RawBatch, uris: pa.Array, allowed: AllowedUris) -> None:
        is_named = pc.not_equal(uris, "")
        outside = pc.indices_nonzero(pc.and_(is_named, allowed.outside(uris))).to_pylist()
        self._num_named += pc.sum(is_named).as_py() or 0
        self._num_outside += len(outside)
        found = "names a video outside the allowed prefixes. To allow it, add its folder to"
        for i in outside:
            self.outside_example = self.outside_example or uris[i].as_py()
            problem = f"{found} {self._prefixes_key}, and write it without '..'"
            raw.problems.setdefault(i, problem)

    def _times(self, raw: RawBatch, name: str | None) -> pa.Array:
        """Return seconds, null where unknown, adding a problem for each row without valid ones."""
        if name is None:
            return pa.nulls(len(raw.places), pa.float64())
        values = raw.columns.column(name)
        seconds, unusable = to_seconds(values)
        for i in pc.indices_nonzero(unusable).to_pylist():
            found = str(values[i].as_py())[:100]
            raw.problems.setdefault(i, f"its {name} is {found!r}, not a number of seconds")
        return seconds


_TIME = (
    r"^(?:(?:(?P<hours>\d+):)?(?P<minutes>\d{1,2}):(?P<seconds>\d{1,2}(?:\.\d+)?)"
    r"|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))$"
)
_PARTS = {"hours": 3600.0, "minutes": 60.0, "seconds": 1.0, "number": 1.0}
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}


def to_seconds(values: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Return (seconds as float64, whether the value is unusable).

    Numbers are seconds. Durations and times of day are converted. Text is a number or
    ``[HH:]MM:SS[.mmm]``, as in tables of scene cuts. Null and empty text become null, which means
    the start or the end of the video. Other text, NaN, infinities and negative times are unusable.
    """
    kind, is_given = values.type, pc.is_valid(values)
    if pa.types.is_string(kind):
        text = pc.utf8_trim_whitespace(values)
        is_given = pc.and_kleene(is_given, pc.not_equal(text, ""))
        parts, seconds = pc.extract_regex(text, _TIME), pa.scalar(0.0)
        for name, factor in _PARTS.items():
            part = pc.struct_field(parts, name)
            part = pc.cast(pc.if_else(pc.equal(part, ""), "0", part), pa.float64())
            seconds = pc.add(seconds, pc.multiply(part, factor))
    elif pa.types.is_duration(kind) or pa.types.is_time(kind):
        units = pc.cast(values, pa.int32() if kind.bit_width == 32 else pa.int64())
        seconds = pc.divide(pc.cast(units, pa.float64()), _PER_SECOND[kind.unit])
    else:
        seconds = pc.cast(values, pa.float64(), safe=False)
    is_time = pc.and_(pc.is_finite(seconds), pc.greater_equal(seconds, 0.0))
    # -0.0 and 0.0 are the same time, so they must have the same clip id.
    seconds = pc.add(pc.if_else(is_time, seconds, pa.scalar(None, pa.float64())), 0.0)
    return seconds, pc.and_(is_given, pc.is_null(seconds))


_IS_VIDEO = re.compile(rf"(?is).*\.({'|'.join(sources.MEDIA_EXTENSIONS['both'])})(\?.*)?$")
_IS_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_SPAN = re.compile(
    r"(?i)(?:clip_?|t_?)?(?:(start|begin|from)|end|stop|to)(?:_?(?:s|sec|seconds|time))?"
)
_NUM_VALUES = 100


def guess_columns(rows: pa.RecordBatch, folder: str) -> dict[str, Any]:
    """Return what a table source needs, from some rows of a table in ``folder``. Empty if no column
    looks like videos: names with their extensions, URIs, or paths that exist."""
    found: dict[str, Any] = {}
    best = 0
    for name, kind in zip(rows.schema.names, rows.schema.types, strict=True):
        if pa.types.is_string(kind):
            values = rows.column(name).slice(0, _NUM_VALUES).drop_null().to_pylist()
            score = sum(_score(value, folder) for value in values)
            if score > best:
                found, best = {"uri_column": name}, score
    for name, kind in zip(rows.schema.names, rows.schema.types, strict=True):
        match = _SPAN.fullmatch(name)
        if found and match and any(is_kind(kind) for is_kind in _HOLD_SECONDS):
            found.setdefault("start_column" if match[1] else "end_column", name)
    return found


def _score(value: str, folder: str) -> int:
    path = os.path.normpath(Path(folder, value))  # only looked at in the folder of its table
    exists = path.startswith(f"{folder}/") and os.path.isfile(path)  # noqa: PTH113
    return 2 * bool(_IS_VIDEO.match(value)) + bool(_IS_URI.match(value)) + 2 * exists
