"""JSON objects with a checksum of their content, so that a flipped bit is an error."""

import json
import math
from collections.abc import Mapping
from typing import Any

from tokpipe.formats.checks import as_damage, damaged, too_new
from tokpipe.identity import digest
from tokpipe.storage.store import Store

CHECKSUM = "checksum"

MAX_BYTES = 2**28
_MAX_VALUES = 2**23  # Each takes up to 100 bytes of memory, and an empty list two bytes of JSON


def seal(body: dict[str, Any]) -> dict[str, Any]:
    """Append a checksum of all keys, as the last key."""
    return {**body, CHECKSUM: digest(body)}


def dump_lines(values: Mapping[str, Any]) -> bytes:
    """Return JSON to grep and diff: a line per key, and per item of a list of objects or lists."""
    return (_text(values, ",\n") + "\n").encode()


def _text(value: Any, between: str = ", ") -> str:
    if isinstance(value, Mapping):
        pairs = (f"{json.dumps(key)}: {_text(inner)}" for key, inner in value.items())
        return "{" + between.join(pairs) + "}"
    if isinstance(value, list) and value and isinstance(value[0], Mapping | list):
        return "[\n" + ",\n".join(map(_text, value)) + "\n]"
    return json.dumps(value)


def read_sealed(store: Store, key: str) -> bytes:
    """Return an object for ``unseal``; NotFound if it does not exist."""
    data = store.get_range(key, 0, MAX_BYTES + 1)
    num_values = sum(map(data.count, (b",", b"[", b"{")))
    if len(data) > MAX_BYTES or num_values > _MAX_VALUES:
        found = f"it has {len(data):,} bytes with {num_values:,} values, more than tokpipe writes"
        raise damaged(store.uri_of(key), found)
    return data


def _finite(text: str) -> float:
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(f"{text} is not a finite number")


def unseal(
    uri: str, data: bytes, *, newest_format: int, may_lack_checksum: bool = False
) -> dict[str, Any]:
    """Parse a sealed object and return it without its checksum and format."""
    with as_damage(uri, "it does not parse as JSON", ValueError, RecursionError):
        body = json.loads(data, parse_float=_finite, parse_constant=_finite)
        if not isinstance(body, dict):
            raise damaged(uri, f"it holds a JSON {type(body).__name__}, not an object")
        checksum = body.pop(CHECKSUM, None)
        is_whole = checksum == digest(body)
    version = body.pop("format", None if may_lack_checksum else 0)
    is_newer = isinstance(version, int) and version > newest_format
    # What checksum a later version of a record has, is not known.
    if not is_whole and not (may_lack_checksum and (checksum is None or is_newer)):
        raise damaged(uri, "its content does not match its checksum")
    if not isinstance(version, int):
        raise damaged(uri, f"its format is {version!r}")
    if is_newer:
        raise too_new(uri, version, newest_format)
    return body
