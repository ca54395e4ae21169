"""One output of a job, finished or still growing, as its manifest describes it."""

import math
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property, lru_cache, partial, reduce
from itertools import chain, zip_longest
from operator import add
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.config.job import JobConfig, PartConfig, StoreOptions
from tokpipe.config.trust import NO_TRUST, Trust
from tokpipe.errors import ConfigError, IncompleteOutput, NotFound
from tokpipe.formats import job_record
from tokpipe.formats.checks import as_damage, check_bytes, damaged
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import Totals, iter_entries, iter_rejected, load_state
from tokpipe.formats.shard import ShardMetadata, TokenizerSpec, shard_schema
from tokpipe.formats.shard_reader import Chunk, ShardReader, check_same_tokenizer
from tokpipe.formats.side_table import OWN_COLUMNS, read_side_table
from tokpipe.formats.tables import rows_of
from tokpipe.reader.values import Clip, ClipIndex, ShardInfo, ShardList
from tokpipe.storage import Store
from tokpipe.storage.ranged import RangedFile
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.telemetry.human import counted
from tokpipe.types import Rejected

_MISSING = "it is missing, although the manifest lists it"
_OPEN_SHARDS = 16
"""Shards whose footer and side table are kept for random access, at about 1 MB each."""


def open_output(
    uri: str | Sequence[str],
    options: StoreOptions | None = None,
    *,
    trust: Trust = NO_TRUST,
    follow: bool = False,
    max_wait_s: float = math.inf,
) -> "Output":
    """Open the output at ``uri`` as it is committed now.

    Every object is checked against the manifest's checksums, and every row against its own, before
    any code is returned. That costs about a second per GB.

    Several outputs are read as one: the clips of the first, then those of the next. All of their
    manifests are read to see that no two have the same clip, unless they are different parts of one
    job or of different datasets.

    Args:
        uri: the job's ``output.uri``, or those of several jobs.
        options: how to reach the store, as in a job file.
        trust: what the output may name, to decode its codes and sources to pixels.
        follow: a ``ClipStream`` of the output begins while its job still runs, and waits for more.
        max_wait_s: how long it waits for a commit before it raises IncompleteOutput.

    Raises:
        NotFound: there is no output at this URI.
        CorruptOutput: its record or its manifest is damaged.
        ConfigError: several outputs have other fingerprints or columns, or a clip in common.
    """
    uris = [uri] if isinstance(uri, str) else uri
    if not uris or (follow and len(uris) > 1):
        raise ConfigError(f"follow={follow} does not go with {len(uris)} outputs: open one")
    outputs = [Output(Store(one, options or StoreOptions()), trust=trust) for one in uris]
    if len(outputs) > 1:
        return _joined(outputs)
    outputs[0].follow, outputs[0].max_wait_s = follow, max_wait_s
    return outputs[0]


def _joined(outputs: Sequence["Output"]) -> "Output":
    """Return outputs as one; ConfigError if their clips differ in kind, or they have one twice."""
    kinds, parts = list[Any](), set[PartConfig]()
    for one in outputs:
        about = {"fingerprint": one.fingerprint, "columns": one.record.plan.get("columns")}
        kinds.append({**about, **one.record.settings})
        if changed := job_record.differences(kinds[0], kinds[-1], "and"):
            found = f"{outputs[0].uri} and {one.uri} cannot be read as one, because they differ"
            do = "A ClipMix takes any outputs of one tokenizer"
            raise ConfigError(f"{found} ({'; '.join(changed)}). {do}")
        with as_damage(one.uri, "its job takes no part of its rows", ValueError):
            part = one.record.job.get("part") or {"index": 0, "of": 1}
            parts.add(PartConfig.model_validate(part))
    joined = copy(outputs[0])
    del joined.store, joined.state  # One of them would be taken for that of all
    joined.joined = tuple(outputs)
    joined.shards = ShardList(*((one.store, one.state.shards) for one in outputs))
    are_parts = len(parts) == len(outputs) and len({part.of for part in parts}) == 1
    if not are_parts and len({one.record.dataset for one in outputs}) < len(outputs):
        joined._check_distinct()  # else ids differ, which depend on the dataset and give the part
    return joined


class Output:
    """A snapshot of an output, with what was committed when it was opened or last refreshed.

    Ignores objects that the manifest does not list. Iterating holds two shards in memory.
    """

    def __init__(self, store: Store, *, trust: Trust = NO_TRUST) -> None:
        self.store = store
        self.trust = trust
        self.follow = False
        self.max_wait_s = math.inf
        self.record = job_record.read(store)
        self.state = load_state(store, self.record.num_rows)
        """Totals, the list of shards, and which plan rows are settled."""
        self.joined: tuple[Output, ...] = (self,)
        """Those that are read as this one. It has the ``record`` of the first."""
        self.shards = ShardList((store, self.state.shards))
        self._verified: set[str] = set()  # URIs of shards

    @cached_property
    def kept_open(self) -> Any:
        return lru_cache(_OPEN_SHARDS)(self._open)

    @cached_property
    def _index(self) -> ClipIndex:
        return ClipIndex(chain.from_iterable(one._listed_clips() for one in self.joined))

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k not in ("kept_open", "_index")}

    def refresh(self) -> bool:
        """Take in what was committed since; return whether anything was.

        One request finds that nothing was. Shards keep their numbers. Not for several threads.
        """
        if len(self.joined) > 1:
            raise ConfigError(f"{self.uri}: open them again to read what was committed since")
        next_key, before = entry_key(self.state.next_seq), self.state.shards
        num_removals = self.state.num_removals
        if not self.num_rows_left or self.store.size(next_key) is None:
            return False
        self.state = load_state(self.store, self.record.num_rows, known=self.state)
        if self.state.num_removals > num_removals:
            found = "clips were removed since it was opened, so its shards have other numbers"
            raise ConfigError(f"{self.store.uri}: {found}. Open it again")
        if not self.state.shards.slice(0, len(before)).equals(before):
            raise damaged(self.store.uri_of(next_key), "it continues another manifest")
        self.shards = ShardList((self.store, self.state.shards))
        vars(self).pop("_index", None)
        return True

    @property
    def uri(self) -> str:
        return ", ".join(one.store.uri for one in self.joined)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that determines the codes."""
        return self.record.fingerprint

    @property
    def tokenizer(self) -> TokenizerSpec:
        return self.record.tokenizer

    def trusted_job(self) -> JobConfig:
        """Return the job, to run its tokenizer; ConfigError if that needs more ``trust``."""
        return self.trust.job_of(self.record.recorded_job(self.uri), self.uri)

    @property
    def totals(self) -> Totals:
        return reduce(add, (one.state.totals for one in self.joined))

    @property
    def num_clips(self) -> int:
        return self.totals.num_clips

    @property
    def num_codes(self) -> int:
        return self.totals.num_codes

    @property
    def num_rows_left(self) -> int:
        """Plan rows that are neither tokenized nor rejected: 0 once the job is finished."""
        return sum(one.state.committed.num_unsettled for one in self.joined)

    @property
    def num_rows(self) -> int:
        """Rows of the plan, with those that joined it."""
        return sum(one.state.committed.num_rows for one in self.joined)

    @property
    def incomplete(self) -> str:
        """How much of the plan is missing, in words; empty once the job is finished."""
        left, rows = self.num_rows_left, counted(self.num_rows, "plan row")
        return f"incomplete: {left:,} of {rows} are neither tokenized nor rejected" if left else ""

    def check_complete(self, effect: str, option: str) -> None:
        """Raise IncompleteOutput if rows are missing. ``option`` is how to go on without them."""
        for one in self.joined:
            if one.incomplete:
                do = f"Finish its job with tokpipe run, or pass {option} to use what is there now"
                raise IncompleteOutput(f"{one.uri} is {one.incomplete}, so {effect}. {do}")

    def rejected(self) -> Iterator[Rejected]:
        """Yield every rejected clip with its reason. Reads the whole manifest."""
        for one in self.joined:
            yield from iter_rejected(one.store, to_seq=one.state.next_seq)

    def clips(self, shards: Sequence[ShardInfo] | None = None) -> Iterator[Clip]:
        """Yield every clip, shard by shard in the order of the manifest, sorted by id in each."""
        for info, shard in self._opened(self.shards if shards is None else shards):
            batches = self.side_table(info).to_batches(max_chunksize=1024)
            records = chain.from_iterable(map(partial(rows_of, info.side_table_uri), batches))
            for rows, record in zip_longest(shard.clips(), records):
                yield _clip(info, rows, record)

    def clip(self, clip_id: str) -> Clip:
        """Return one clip.

        The first call reads the whole manifest to index it. The first access to a shard fetches all
        of it; later ones fetch only row groups.

        Raises:
            NotFound: the clip is not tokenized; it may be rejected or not done yet.
        """
        for number in self._index.shards_of(clip_id):
            if clip := self.clip_in(number, clip_id):
                return clip
        found = f"{self.uri}: no tokenized clip {clip_id!r}"
        why = "It may be rejected or removed (see tokpipe rejected)"
        raise NotFound(f"{found}. {why}, or committed since the output was opened")

    def _listed_clips(self) -> Iterator[list[str]]:
        """Yield the ids of each shard's clips, from the manifest of this one output."""
        listed = set(self.shards.field("shard"))  # in the order of the entries
        entries = iter_entries(self.store, to_seq=self.state.next_seq)
        shards = (one for entry in entries for one in entry.shards if one.shard in listed)
        return ([clip.clip_id for clip in one.clips] for one in shards)

    def _check_distinct(self) -> None:
        """Raise ConfigError if two shards have the same clip. Reads the whole manifest."""
        for pair in self._index.pairs():
            shards = [self.shards[number] for number in pair]
            tables = (self.side_table(info, ["clip_id"]) for info in shards)
            if twice := set.intersection(*(set(one.column(0).to_pylist()) for one in tables)):
                holders = " and ".join(self.joined[info.output].uri for info in shards)
                why = "so they cannot be read as one, which would have it twice"
                raise ConfigError(f"{holders} both have clip {min(twice)}, {why}")

    def clip_in(self, number: int, clip_id: str) -> Clip | None:
        """Return one clip if it is in this shard, which is kept open for a while."""
        shard, table = self.kept_open(number)
        return _clip_in(self.shards[number], shard, table, clip_id)

    def clips_of(
        self, info: ShardInfo, shard: ShardReader, clip_ids: Iterable[str]
    ) -> Iterator[Clip]:
        """Yield the given clips as far as an open shard has them."""
        table = self.side_table(info)
        return filter(None, (_clip_in(info, shard, table, clip_id) for clip_id in clip_ids))

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of shards, one row per chunk."""
        return shard_schema(self.tokenizer.code_dtype, self.tokenizer.codes_per_position)

    def iter_batches(self, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all shards, a row group at a time, as Arrow record batches."""
        for _, shard in self._opened(self.shards):
            for group in range(shard.num_row_groups):
                yield shard.read_row_group(group, columns)

    def to_table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows of all shards as one Arrow table, which must fit in memory."""
        names = self.schema.names if columns is None else columns
        schema = pa.schema([self.schema.field(name) for name in names])
        return pa.Table.from_batches(self.iter_batches(columns), schema=schema)

    def iter_side_tables(self) -> Iterator[pa.Table]:
        """Yield each shard's side table: one row per clip, with the carried columns."""
        return map(self.side_table, self.shards)

    @cached_property
    def side_schema(self) -> pa.Schema:
        """Arrow schema of side tables, as the first has it; empty if there is none."""
        return self.side_table(self.shards[0]).schema if len(self.shards) else pa.schema([])

    def side_table(self, info: ShardInfo, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a shard's side table, or some of its columns: one row per clip, sorted by id."""
        table = read_side_table(
            info.side_table_uri,
            self._get(info, info.side_table, info.side_table_size_bytes),
            size_bytes=info.side_table_size_bytes,
            sha256_hex=info.side_table_sha256,
            columns=None if columns is None else [*dict.fromkeys(["plan_row", *columns])],
        )
        rows, known = table.column("plan_row").to_numpy(), self.joined[info.output].num_rows
        if not ((rows >= 0) & (rows < known)).all():
            raise damaged(info.side_table_uri, "its rows are not in the plan")
        if len(rows) != info.num_clips:
            raise damaged(info.side_table_uri, f"its clips are not those of {info.key}")
        return table if columns is None else table.select(columns)

    def verified_shard(self, info: ShardInfo) -> ShardReader:
        """Fetch a whole shard and check it against the manifest."""
        return self._reader(info, self._verified_bytes(info))

    def _opened(self, shards: Sequence[ShardInfo]) -> Iterator[tuple[ShardInfo, ShardReader]]:
        """Open each shard, fetching and hashing the next one meanwhile."""
        return read_ahead(lambda info: (info, self.verified_shard(info)), shards, 1)

    def _open(self, number: int) -> tuple[ShardReader, pa.Table]:
        """Open a shard for random access, verified whole the first time."""
        info = self.shards[number]
        if info.uri not in self._verified:
            self._verified_bytes(info)
            self._verified.add(info.uri)
        return self._reader(info), self.side_table(info)

    def _reader(self, info: ShardInfo, data: bytes | None = None) -> ShardReader:
        """Open a shard from bytes that match the manifest, or to fetch by row group."""
        of = self.joined[info.output]
        ranged = RangedFile(info.size_bytes, partial(of.store.get_range, info.key))
        with as_damage(info.uri, _MISSING, NotFound):
            shard = ShardReader(info.uri, data or ranged, page_checksums=data is None)
        metadata = ShardMetadata(of.fingerprint, of.tokenizer)
        check_same_tokenizer(info.uri, shard.footer.metadata, metadata)
        if (shard.footer.grid, shard.footer.num_rows) != (info.grid, info.num_rows):
            raise damaged(info.uri, f"its rows or grid {shard.footer.grid} are not those listed")
        return shard

    def _verified_bytes(self, info: ShardInfo) -> bytes:
        data = self._get(info, info.key, info.size_bytes)
        check_bytes(info.uri, data, size_bytes=info.size_bytes, sha256_hex=info.sha256)
        return data

    def _get(self, info: ShardInfo, key: str, size_bytes: int) -> bytes:
        store = self.joined[info.output].store
        with as_damage(store.uri_of(key), _MISSING, NotFound):
            return store.get_range(key, 0, size_bytes + 1)


def _clip_in(info: ShardInfo, shard: ShardReader, table: pa.Table, clip_id: str) -> Clip | None:
    rows = shard.clip(clip_id)
    if not rows:
        return None
    records = rows_of(info.side_table_uri, table.filter(pc.field("clip_id") == clip_id))
    return _clip(info, rows, records[0] if records else None)


def _clip(info: ShardInfo, rows: Sequence[Chunk] | None, record: dict[str, Any] | None) -> Clip:
    if rows is None or record is None or record["clip_id"] != rows[0].clip_id:
        raise damaged(info.side_table_uri, f"its clips are not those of {info.key}")
    if not 0 < record["fps"] < 1e9 or not 0 <= record["segment"] < record["n_segments"]:
        raise damaged(info.side_table_uri, f"clip {record['clip_id']} has no place in its source")
    own = {name: record.pop(name) for name in OWN_COLUMNS}
    own["marks"] = tuple(own["marks"])
    return Clip(
        **{name: value for name, value in own.items() if name in Clip.__slots__},
        # A view would keep its row group in memory.
        chunks=tuple(replace(row, codes=row.codes.copy()) for row in rows),
        metadata=record,
        num_segments=own["n_segments"],
    )
