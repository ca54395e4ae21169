"""Checksums of whole objects, and the errors for objects that are damaged or too new."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from pydantic import ValidationError

from tokpipe.errors import CorruptOutput


def damaged(
    uri: str, found: str, effect: str = "Reading it could silently return wrong codes"
) -> CorruptOutput:
    """Return the error for an object that is not what was written."""
    return CorruptOutput(
        f"{uri} is damaged: {found.rstrip('.')}. {effect}. Restore the object from a copy or an "
        "older version; if there is none, tokenize the dataset again to a new output prefix."
    )


@contextmanager
def as_damage(uri: str, found: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raise ``damaged`` in place of errors of these kinds: they say why, and ``found`` what."""
    try:
        yield
    except kinds as error:
        raise damaged(uri, f"{found}: {explained(error)}") from error


def too_new(uri: str, found: int, known: int) -> CorruptOutput:
    """Return the error for an object that only a later tokpipe can read."""
    return CorruptOutput(
        f"{uri} has format {found}, but this tokpipe reads formats up to {known}. "
        "Reading it as an older format could misinterpret it. Upgrade tokpipe."
    )


def explained(error: Exception) -> str:
    """Return what is wrong, in one line."""
    if isinstance(error, ValidationError):
        first, others = error.errors(include_url=False)[0], error.error_count() - 1
        more = f", and {others} more" if others else ""
        return f"{'.'.join(map(str, first['loc']))[:200]}: {first['msg'][:200]}{more}"
    return in_brief(str(error))


def in_brief(text: str) -> str:
    """Return text of any origin in one line, not too long for a message."""
    return " ".join(text.split())[:400]


def utc_time(text: str) -> datetime:
    """Return the time that a record of an output holds."""
    try:
        time = datetime.fromisoformat(text)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (OverflowError, ValueError) as error:
        raise damaged("the record of a time in this output", f"{text[:50]!r} is not one") from error


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_bytes(uri: str, data: bytes, *, size_bytes: int, sha256_hex: str) -> None:
    """Raise CorruptOutput unless an object has the size and hash in the manifest."""
    if len(data) != size_bytes:
        raise damaged(uri, f"it has {len(data)} bytes, but the manifest lists {size_bytes}")
    if (found := sha256(data)) != sha256_hex:
        raise damaged(uri, f"its SHA-256 is {found}, but the manifest lists {sha256_hex}")
