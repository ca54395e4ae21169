"""One manifest entry: the shards and rejections of one commit, as JSON that checks itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

from pydantic import TypeAdapter

from tokpipe.formats.checks import damaged
from tokpipe.formats.sealed_json import dump_lines, object_text, seal, unseal
from tokpipe.types import ClipRef, Receipt, Rejected

MANIFEST_FORMAT = 1

_CLIP_FIELDS = [field.name for field in fields(ClipRef)]


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """What one commit added to the output."""

    seq: int
    """Position in the manifest, from 0 without gaps."""
    writer: str
    """Attempt id of the driver: no two drivers write the same bytes."""
    written_at: str
    """UTC, ISO 8601."""
    shards: tuple[Receipt, ...] = ()
    rejected: tuple[Rejected, ...] = ()

    def refs(self) -> Iterator[ClipRef]:
        """Yield every clip that this entry settles, tokenized or rejected."""
        for receipt in self.shards:
            yield from receipt.clips
        for rejection in self.rejected:
            yield rejection.ref

    def to_json(self) -> bytes:
        """Return JSON with a line for each clip and rejection, closed by a checksum.

        A clip is a list of values, in the order that ``clip_fields`` names once: a clip's keys
        would be half of the manifest of a large output.
        """
        sealed = seal(
            {
                "format": MANIFEST_FORMAT,
                "seq": self.seq,
                "writer": self.writer,
                "written_at": self.written_at,
                "clip_fields": _CLIP_FIELDS,
                "shards": [_shard_fields(receipt) for receipt in self.shards],
                "rejected": [asdict(rejection) for rejection in self.rejected],
            }
        )
        return dump_lines(
            sealed,
            texts={
                "shards": _one_a_line(_shard_text(shard) for shard in sealed["shards"]),
                "rejected": _one_a_line(json.dumps(item) for item in sealed["rejected"]),
            },
        )

    @classmethod
    def from_json(cls, uri: str, data: bytes) -> ManifestEntry:
        """Parse an entry.

        Raises:
            CorruptOutput: it does not parse, its checksum is wrong, or its format is newer.
        """
        body = unseal(uri, data, newest_format=MANIFEST_FORMAT)
        try:
            clip_fields = body["clip_fields"]
            for shard in body["shards"]:
                clips = shard["clips"]
                shard["clips"] = [dict(zip(clip_fields, clip, strict=True)) for clip in clips]
            return _ENTRY.validate_python(body)
        except (KeyError, TypeError, ValueError) as error:  # pydantic's is a ValueError
            raise damaged(uri, f"it does not parse as a manifest entry: {error}") from error


_ENTRY = TypeAdapter(ManifestEntry)


def _shard_fields(receipt: Receipt) -> dict[str, Any]:
    own = {field.name: getattr(receipt, field.name) for field in fields(Receipt)}
    clips = [[getattr(clip, name) for name in _CLIP_FIELDS] for clip in receipt.clips]
    return {**own, "clips": clips}


def _shard_text(shard: dict[str, Any]) -> str:
    texts = {key: json.dumps(value) for key, value in shard.items()}
    return object_text({**texts, "clips": _one_a_line(json.dumps(clip) for clip in shard["clips"])})


def _one_a_line(items: Iterable[str]) -> str:
    text = ",\n".join(items)
    return f"[\n{text}\n]" if text else "[]"
