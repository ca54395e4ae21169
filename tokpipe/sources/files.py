"""Files by name, by glob or in a folder: one row per file."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.errors import AccessDenied, NotFound
from tokpipe.sources.rows import ROW_SCHEMA, RowSource, make_batch, printable
from tokpipe.storage.client import client_of
from tokpipe.storage.listing import Match

_BATCH_ROWS = 65_536
_NAMES = pa.schema({"uri": pa.large_string(), "version": pa.uint64()})  # 10 M names exceed 2 GB


class FilesRows(RowSource):
    """One row per name that is listed, in the order of the names' UTF-8 bytes. A pipe, a dangling
    link or a folder ``x.mp4`` is a row too, and is rejected with its reason."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        names, problems = self._sorted_names()
        for batch in names.to_batches(_BATCH_ROWS):
            uris = batch["uri"].cast(pa.string())
            columns = {"source_uri": uris, "source_version": batch["version"]}
            if problems:
                columns["problem"] = pa.array(map(problems.get, uris.to_pylist()), pa.string())
            yield make_batch(columns, [], ROW_SCHEMA)

    def _sorted_names(self) -> tuple[pa.Table, dict[str, str]]:
        chunks: list[pa.RecordBatch] = []
        problems: dict[str, str] = {}
        matches = iter(self.listing)
        while some := list(itertools.islice(matches, _BATCH_ROWS)):
            names = [printable(match.uri) for match in some]
            for match, name in zip(some, names, strict=True):
                if match.is_folder:
                    problems[name] = f"{name} is a folder, not a file"
                elif name != match.uri:
                    problems[name] = f"the file name {name} is not valid UTF-8; rename the file"
            if not chunks:
                are_known = self._are_versions_known(some)
            versions = [match.version if are_known else None for match in some]
            chunks.append(pa.record_batch([names, versions], _NAMES))
        if not chunks:
            raise self.nothing_matches()
        found = pa.Table.from_batches(chunks).sort_by("uri")
        if "{" in self.listing.uri:  # two alternatives may match the same name
            uris = found["uri"].combine_chunks()
            is_first = pa.concat_arrays([pa.array([True]), pc.not_equal(uris[1:], uris[:-1])])
            found = found.filter(is_first)
        return found, problems

    def _are_versions_known(self, matches: Sequence[Match]) -> bool:
        """Whether the store says of an object alone what it says of it in a listing."""
        client = client_of(self.listing.uri, self.listing.options)
        with contextlib.suppress(NotFound, AccessDenied):
            return client.is_local or any(
                client.info(match.uri).source_version == match.version for match in matches[:3]
            )
        return False
