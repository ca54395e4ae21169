"""JSON objects with a checksum of their content, so that a flipped bit is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokpipe.formats.checks import damaged, too_new
from tokpipe.identity.ids import digest

CHECKSUM = "checksum"


def seal(body: dict[str, Any]) -> dict[str, Any]:
    """Append a checksum of all keys, as the last key."""
    return {**body, CHECKSUM: digest(body)}


def dump_lines(values: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> bytes:
    """Return JSON with one key per line, for people to grep and diff.

    ``texts`` replaces the values of some keys by JSON that the caller has laid out.
    """
    dumped = {key: json.dumps(value) for key, value in values.items()}
    return (object_text({**dumped, **(texts or {})}, separator=",\n") + "\n").encode()


def object_text(texts: Mapping[str, str], separator: str = ", ") -> str:
    """Join keys and values that are already JSON."""
    return "{" + separator.join(f'"{key}": {text}' for key, text in texts.items()) + "}"


def unseal(uri: str, data: bytes, *, newest_format: int) -> dict[str, Any]:
    """Parse a sealed object and return it without its checksum.

    Raises:
        CorruptOutput: not a JSON object, a wrong checksum, or a newer ``format``.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damaged(uri, f"it does not parse as JSON: {error}") from error
    if not isinstance(body, dict):
        raise damaged(uri, f"it holds a JSON {type(body).__name__}, not an object")
    if body.pop(CHECKSUM, None) != digest(body):
        raise damaged(uri, "its content does not match its checksum")
    version = body.pop("format", 0)
    if not isinstance(version, int):
        raise damaged(uri, f"its format is {version!r}")
    if version > newest_format:
        raise too_new(uri, version, newest_format)
    return body
