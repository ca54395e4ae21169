"""Columns of side tables for training: a mapped file per shard, and filters over them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tokpipe.errors import ConfigError
from tokpipe.formats.checks import damaged, explained, sha256
from tokpipe.formats.tables import rows_of
from tokpipe.reader.cache_folder import CacheFolder
from tokpipe.reader.output import Output
from tokpipe.reader.shard_codes import mapped
from tokpipe.reader.values import ShardInfo
from tokpipe.storage.read_ahead import read_ahead
from tokpipe.telemetry.human import counted

_AHEAD = 4  # Side tables that a filter fetches at a time
_IN_SAMPLES = ("clip_id", "codes")


class ShardColumns:
    """Some columns of one shard's side table, one row per clip, over a memory-mapped file."""

    def __init__(self, path: Path, uri: str) -> None:
        """Map what ``write_columns`` wrote; ValueError if the file is truncated."""
        self._uri = uri
        self.rows: pa.RecordBatch = mapped(path).get_batch(0)

    def of(self, number: int, clip_id: str) -> dict[str, Any]:
        """Return the values of the shard's clip ``number``, which must be this one."""
        (row,) = rows_of(self._uri, self.rows.slice(number, 1)) or ({},)
        if row.pop("clip_id", None) != clip_id:
            raise damaged(self._uri, f"its row {number} is not that of clip {clip_id}")
        return row


def write_columns(file: IO[bytes], output: Output, info: ShardInfo, names: Sequence[str]) -> None:
    """Write ids and columns of a shard's clips to ``file``, as Arrow IPC of one record batch."""
    table = output.side_table(info, ["clip_id", *names])
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def check_columns(output: Output, names: Sequence[str]) -> None:
    """Raise ConfigError unless the side tables of an output have these columns."""
    if taken := set(names) & set(_IN_SAMPLES):
        found = f"samples have {' and '.join(_IN_SAMPLES)} anyway"
        raise ConfigError(f"columns: {found}: leave out {sorted(taken)}")
    schema = output.side_schema if names else pa.schema([])
    if unknown := [name for name in names if name not in schema.names and len(schema)]:
        found = f"columns: {output.uri} has no column {', '.join(map(repr, unknown))}"
        raise ConfigError(f"{found}. Its side tables have {', '.join(schema.names)}")


class KeptClips:
    """Which clips of an output a filter keeps: one bit per clip."""

    def __init__(self, output: Output, folder: CacheFolder, keep: Any) -> None:
        """Evaluate ``keep``, an Arrow expression, over the side tables of all shards.

        The bits are kept in ``folder``, so each node does it once. Only the columns that the
        expression needs are decoded.

        Raises:
            ConfigError: the expression is not boolean, names unknown columns, or keeps no clip.
        """
        shards = output.shards
        starts = np.append(0, np.cumsum(-(-shards.clip_counts // 8)))  # Each shard's first byte
        self._starts, self._bits = starts, np.empty(0, np.uint8)
        if len(shards):
            names = _needed(output, keep)

            def packed(info: ShardInfo) -> bytes:
                mask = _evaluated(keep, output.side_table(info, names)).fill_null(False)
                return np.packbits(mask.to_numpy(zero_copy_only=False)).tobytes()

            # All of the expression, which its text may abridge. Nothing reads it back.
            (buffer,) = keep.__reduce__()[1]
            hashes = "".join(shards.field("side_table_sha256").tolist())
            self._bits = folder.get(
                output.uri,
                hashlib.sha256(hashes.encode() + buffer).hexdigest(),
                ".filter",
                lambda path: np.memmap(path, np.uint8, "r", shape=(int(starts[-1]),)),
                lambda file: file.writelines(read_ahead(packed, shards, _AHEAD)),
            )
        each = (self._clips(shard) for shard in range(len(shards)))
        self.sizes = np.array([clips.sum() for clips in each], np.int64)
        """(shards,) number of clips that are kept."""
        if len(shards) and not self.sizes.any():
            found = f"none of the {counted(output.num_clips, 'clip')} of {output.uri}"
            raise ConfigError(f"filter: {keep!s:.400} keeps {found}, so an epoch would be empty")
        self.digest = sha256(self._bits.tobytes())[:32]
        """A hash of which clips are kept."""

    def clip(self, shard: int, number: int) -> int:
        """Return which of a shard's clips is the ``number``-th that is kept."""
        return int(np.flatnonzero(self._clips(shard))[number])

    def _clips(self, shard: int) -> NDArray[np.uint8]:
        return np.unpackbits(self._bits[self._starts[shard] : self._starts[shard + 1]])


def _needed(output: Output, keep: Any) -> list[str]:
    """Return the columns without which the expression cannot be evaluated."""
    empty = output.side_schema.empty_table()
    try:
        if "FieldPath(" in str(keep):
            raise TypeError("it refers to columns by position: name them, as pc.field('caption')")
        if not pa.types.is_boolean(kind := _evaluated(keep, empty).type):
            raise TypeError(f"it is of type {kind}: write a condition, such as pc.field('t') > 1")
    except (pa.ArrowException, TypeError) as error:
        found = f"filter: {keep!s:.400} cannot select clips of {output.uri}"
        has = f"Its columns are {', '.join(empty.column_names)}"
        raise ConfigError(f"{found}: {explained(error)}. {has}") from error
    return [name for name in empty.column_names if not _is_enough(keep, empty.drop_columns(name))]


def _is_enough(keep: Any, table: pa.Table) -> bool:
    try:
        _evaluated(keep, table)
    except pa.ArrowException:
        return False
    return True


def _evaluated(keep: Any, table: pa.Table) -> pa.ChunkedArray:
    """Return the expression for each row. In this thread alone: Arrow's own can outlive it."""
    from pyarrow import acero  # only here, because it imports pandas if that is installed

    source = acero.Declaration("table_source", acero.TableSourceNodeOptions(table))
    result = acero.ProjectNodeOptions([keep], ["keep"])
    plan = acero.Declaration.from_sequence([source, acero.Declaration("project", result)])
    return plan.to_table(use_threads=False).column("keep")
