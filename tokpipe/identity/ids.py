"""Clip ids: pure functions of content, never of position."""

import hashlib
import json
import struct
from collections.abc import Iterable
from typing import Any


def digest(value: Any) -> str:
    """Return 128 bits of SHA-256 over the canonical JSON of ``value``, as 32 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


SPAN_BYTES = 18
"""Start and end, each as a byte that is 1 if it is set and a little-endian float64 in seconds; a
limit that is not set is all zeros."""


def row_digests(dataset: str, source_uris: Iterable[bytes], spans: bytes) -> bytes:
    """Return the binary ids of plan rows, 16 bytes each, from their ``SPAN_BYTES`` joined.

    An id is the first 128 bits of SHA-256 over the length of the dataset's name (4 bytes,
    little-endian), the name, the source uri (with any member) and the span. The length in front
    and the fixed size of the span make this input unique.
    """
    name = dataset.encode("utf-8", "surrogatepass")
    head = struct.pack("<I", len(name)) + name
    sha256 = hashlib.sha256
    return b"".join(
        [
            sha256(b"%b%b%b" % (head, uri, spans[at : at + SPAN_BYTES])).digest()[:16]
            for at, uri in zip(range(0, len(spans), SPAN_BYTES), source_uris, strict=True)
        ]
    )


def clip_id(
    row_id: str, segment: int, num_segments: int, max_clip_frames: int, fps: float | None
) -> str:
    """Return the id of one clip of a row.

    A row with a single clip keeps its own id, which does not depend on ``max_clip_frames``. Ids
    of segments depend on their span in frames at ``fps``.
    """
    if num_segments == 1:
        return row_id
    first = segment * max_clip_frames
    return digest([row_id, first, first + max_clip_frames, fps])


TAR_BLOCK = 512
MEMBER_VERSION_BYTES = TAR_BLOCK + 4096
"""What is known of a member of a tar: the last block of its header, and the start of its data."""


def version_of(*found: object) -> int:
    """Return 64 bits that identify the present content of a source.

    ``found`` is its size and its ETag or time of change, or the ``MEMBER_VERSION_BYTES``.
    """
    parts = (one if isinstance(one, bytes) else str(one).encode() for one in found)
    return int.from_bytes(hashlib.sha256(b" ".join(parts)).digest()[:8], "little")
