"""Videos that are values in Parquet tables."""

import bisect
import itertools
from collections.abc import Iterator

import pyarrow as pa

from tokpipe.config.job import StoreOptions
from tokpipe.errors import SourceError
from tokpipe.formats.tables import stream_parquet
from tokpipe.storage.client import client_of
from tokpipe.storage.fetch import LocalVideo, check_size, check_version, new_copy, source_errors
from tokpipe.storage.ranged import Pinned
from tokpipe.types import ArchiveMember

_NEAR_ROWS = 16


class EmbeddedVideos:
    """Copies videos out of tables, one at a time.

    Values can only be read in order from the start of their row group, so after one the place is
    kept: clips of one decoder are mostly near each other. Memory holds a page, which ends at the
    end of a row group at the latest.
    """

    def __init__(self, options: StoreOptions) -> None:
        self._options = options
        self._values: Iterator[tuple[int, bytes | None]] = iter(())
        self._next: tuple[tuple[str, str | None] | None, int] = None, 0  # Their column, first row

    def copy(self, member: ArchiveMember, max_bytes: int, version: int | None) -> LocalVideo:
        """Return a copy with the version of the table; raise as ``fetch_to_file`` does."""
        place = f"{member.archive_uri}: row {member.offset + 1}"
        with source_errors(member.archive_uri):
            table = client_of(member.archive_uri, self._options).info(member.archive_uri)
            check_version(member.archive_uri, table.source_version, version)
            try:
                data = self._read(member)
            except (pa.ArrowException, OSError) as error:
                raise SourceError("corrupt", f"{place}: cannot be read ({error})") from error
        if data is None:
            raise SourceError("changed", f"{place}: has no video any more")
        check_size(place, len(data), max_bytes)
        with new_copy() as (video, file):
            file.write(data)
            video.version = table.source_version
            return video

    def _read(self, member: ArchiveMember) -> bytes | None:
        column, (known, next_row) = (member.archive_uri, member.column), self._next
        if known != column or not next_row <= member.offset < next_row + _NEAR_ROWS:
            self._values = _values(member, self._options)
        self._next = None, 0
        for row, value in self._values:
            if row == member.offset:
                self._next = column, row + 1
                return value
        return None


def _values(member: ArchiveMember, options: StoreOptions) -> Iterator[tuple[int, bytes | None]]:
    """Yield each row and its value, from the start of the member's row group on."""
    with Pinned(member.archive_uri, options).open(2**20) as file:
        table = stream_parquet(file)
        sizes = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
        starts = list(itertools.accumulate(sizes, initial=0))
        group = bisect.bisect_right(starts, member.offset) - 1
        groups = range(group, len(sizes))
        batches = table.iter_batches(1, groups, [member.column], use_threads=False)
        for row, batch in enumerate(batches, starts[group]):
            value = batch.column(0)[0].as_py()
            while isinstance(value, dict):
                (value,) = value.values()
            yield row, value
