"""Checksums of whole objects, and the errors for objects that are damaged or too new."""

import hashlib

from tokpipe.errors import CorruptOutput


def damaged(
    uri: str, found: str, effect: str = "Reading it could silently return wrong codes"
) -> CorruptOutput:
    """Return the error for an object that is not what was written."""
    return CorruptOutput(
        f"{uri} is damaged: {found.rstrip('.')}. {effect}. Restore the object from a copy or an "
        "older version; if there is none, tokenize the dataset again to a new output prefix."
    )


def too_new(uri: str, found: int, known: int) -> CorruptOutput:
    """Return the error for an object that only a later tokpipe can read."""
    return CorruptOutput(
        f"{uri} has format {found}, but this tokpipe reads formats up to {known}. "
        "Reading it as an older format could misinterpret it. Upgrade tokpipe."
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_bytes(uri: str, data: bytes, *, size_bytes: int, sha256_hex: str) -> None:
    """Raise CorruptOutput unless an object has the size and hash in the manifest."""
    if len(data) != size_bytes:
        raise damaged(uri, f"it has {len(data)} bytes, but the manifest lists {size_bytes}")
    if (found := sha256(data)) != sha256_hex:
        raise damaged(uri, f"its SHA-256 is {found}, but the manifest lists {sha256_hex}")
