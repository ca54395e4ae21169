"""Finds clips by what people remember of them."""

import fnmatch
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow.compute as pc

from tokpipe.reader.output import Output


def source_matcher(pattern: str) -> Callable[[str], bool]:
    """Return a test for source URIs that contain ``pattern``, or match it as a glob.

    A glob matches a whole URI, or its end after a ``/`` or ``#``; its ``*`` matches ``/`` too.
    Upper and lower case are the same, and so are composed and decomposed letters.
    """
    pattern = _folded(pattern)
    is_glob = any(one in pattern for one in "*?[")

    def matches(uri: str) -> bool:
        uri = _folded(uri)
        return pattern in uri or (is_glob and fnmatch.fnmatchcase(f"/{uri}", f"*[/#]{pattern}"))

    return matches


def side_rows(
    output: Output, columns: Sequence[str], source: str | None = None
) -> Iterator[dict[str, Any]]:
    """Yield each clip's row of the side tables: shard by shard, in each by source and segment.

    With ``source``, only clips whose source matches; ``columns`` has ``source_uri``.
    """
    matches = source_matcher(source or "")
    for table in output.iter_side_tables():
        # Not Table.sort_by: its threads can outlive it, and then abort the process as it exits.
        keys = [("source_uri", "ascending"), ("segment", "ascending")]
        order = pc.sort_indices(table, sort_keys=keys)
        for batch in table.select(columns).take(order).to_batches(max_chunksize=1024):
            yield from (row for row in batch.to_pylist() if matches(row["source_uri"]))


def _folded(text: str) -> str:
    is_short = len(text) < 2**12  # normalizing takes quadratic time
    return (unicodedata.normalize("NFC", text) if is_short else text).casefold()
