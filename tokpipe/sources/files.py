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


class FilesRows(RowSource):
    """One row per name that is listed, in the order of the names' UTF-8 bytes.

    A pipe, a dangling link or a folder called ``x.mp4`` is a row too, which is rejected with its
    reason. Skipping it would hide that the dataset is broken.
    """

    def carried(self) -> pa.Schema:
        return pa.schema([])

    def batches(self) -> Iterator[pa.RecordBatch]:
        names, versions, problems = self._sorted_names()
        for start in range(0, len(names), _BATCH_ROWS):
            rows = slice(start, start + _BATCH_ROWS)
            uris = names[rows].cast(pa.string())
            columns = {"source_uri": uris, "source_version": versions[rows]}
            if problems:
                columns["problem"] = pa.array(map(problems.get, uris.to_pylist()), pa.string())
            yield make_batch(columns, [], ROW_SCHEMA)

    def _sorted_names(self) -> tuple[pa.Array, pa.Array, dict[str, str]]:
        chunks: list[pa.Array] = []
        versions: list[pa.Array] = []
        problems: dict[str, str] = {}
        matches = iter(self.listing)
        while some := list(itertools.islice(matches, _BATCH_ROWS)):
            names = [printable(match.uri) for match in some]
            for match, name in zip(some, names, strict=True):
                if match.is_folder:
                    problems[name] = f"{name} is a folder, not a video file"
                elif name != match.uri:
                    problems[name] = f"the file name {name} is not valid UTF-8; rename the file"
            if not chunks:
                are_known = self._are_versions_known(some)
            chunks.append(pa.array(names, pa.large_string()))  # 10 M names exceed 2 GB
            found = [match.version if are_known else None for match in some]
            versions.append(pa.array(found, pa.uint64()))
        if not chunks:
            raise self.nothing_matches()
        names = pa.chunked_array(chunks).combine_chunks()
        del chunks
        order = pc.array_sort_indices(names)
        names, known = names.take(order), pa.chunked_array(versions).combine_chunks().take(order)
        if "{" in self.listing.uri:  # two alternatives may match the same name
            is_first = pa.concat_arrays([pa.array([True]), pc.not_equal(names[1:], names[:-1])])
            names, known = names.filter(is_first), known.filter(is_first)
        return names, known, problems

    def _are_versions_known(self, matches: Sequence[Match]) -> bool:
        """Whether the store says of an object alone what it says of it in a listing."""
        client = client_of(self.listing.uri, self.options)
        with contextlib.suppress(NotFound, AccessDenied):
            return client.is_local or any(
                client.info(match.uri).source_version == match.version for match in matches[:3]
            )
        return False
