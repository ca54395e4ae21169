"""JSON objects that carry a checksum of their own content, so that a flipped bit is an error."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokpipe.formats.checks import damaged, too_new
from tokpipe.identity.ids import digest

CHECKSUM = "checksum"


def seal(body: dict[str, Any]) -> dict[str, Any]:
    """Return the object with the checksum of all its other keys as its last key."""
    return {**body, CHECKSUM: digest(body)}


def dump_lines(values: Mapping[str, Any], texts: Mapping[str, str] | None = None) -> bytes:
    """Return an object as JSON with one key a line, so that a person can grep and diff it.

    Keys in ``texts`` have that JSON for a value, laid out by the caller.
    """
    own = {key: json.dumps(value) for key, value in values.items()}
    return (object_text({**own, **(texts or {})}, separator=",\n") + "\n").encode()


def object_text(texts: Mapping[str, str], separator: str = ", ") -> str:
    """Join keys with values that are JSON already."""
    return "{" + separator.join(f'"{key}": {text}' for key, text in texts.items()) + "}"


def unseal(uri: str, data: bytes, *, newest_format: int) -> dict[str, Any]:
    """Parse a sealed object and return it without its checksum.

    Raises:
        CorruptOutput: no JSON object, a wrong checksum, or a ``format`` this code cannot know.
    """
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:  # of the JSON or of its UTF-8
        raise damaged(uri, f"it does not parse as JSON: {error}") from error
    if not isinstance(body, dict):
        raise damaged(uri, f"it holds a JSON {type(body).__name__}, not an object")
    if body.pop(CHECKSUM, None) != digest(body):
        raise damaged(uri, "its content does not have the checksum that it carries")
    version = body.pop("format", 0)
    if not isinstance(version, int):
        raise damaged(uri, f"its format is {version!r}")
    if version > newest_format:
        raise too_new(uri, version, newest_format)
    return body
