"""Files by name, by glob or in a folder: one row per file."""

import itertools
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.sources.rows import ROW_SCHEMA, RowSource, make_batch, printable

_BATCH_ROWS = 65_536


class FilesRows(RowSource):
    """One row per name that is listed, in the order of the names' UTF-8 bytes.

    A pipe, a dangling link or a folder called ``x.mp4`` is a row too, which is rejected with its
    reason. Skipping it would hide that the dataset is broken.
    """

    def carried(self) -> pa.Schema:
        return pa.schema([])

    def batches(self) -> Iterator[pa.RecordBatch]:
        names, problems = self._sorted_names()
        for start in range(0, len(names), _BATCH_ROWS):
            uris = names[start : start + _BATCH_ROWS].cast(pa.string())
            columns = {"source_uri": uris}
            if problems:
                columns["problem"] = pa.array(map(problems.get, uris.to_pylist()), pa.string())
            yield make_batch(columns, [], ROW_SCHEMA)

    def _sorted_names(self) -> tuple[pa.Array, dict[str, str]]:
        chunks, problems = [], {}
        matches = iter(self.listing)
        while some := list(itertools.islice(matches, _BATCH_ROWS)):
            names = [printable(match.uri) for match in some]
            for match, name in zip(some, names, strict=True):
                if match.is_folder:
                    problems[name] = f"{name} is a folder, not a video file"
                elif name != match.uri:
                    problems[name] = f"the file name {name} is not valid UTF-8; rename the file"
            chunks.append(pa.array(names, pa.large_string()))  # 10 M names exceed 2 GB
        if not chunks:
            raise self.nothing_matches()
        names = pa.chunked_array(chunks).combine_chunks()
        del chunks
        if "{" in self.listing.uri:  # two alternatives may match the same name
            names = names.unique()
        return names.take(pc.array_sort_indices(names)), problems
