"""Checksums of whole objects, and the one way to say that an object is damaged."""

from __future__ import annotations

import hashlib

from tokpipe.errors import CorruptOutput


def damaged(uri: str, found: str) -> CorruptOutput:
    """The error for an object that is not what was once written there."""
    return CorruptOutput(
        f"{uri} is damaged: {found.rstrip('.')}. Reading on could give wrong codes without a sign. "
        "Restore the object from a copy or an older version of it; if there is none, "
        "tokenize the dataset again to a new output prefix."
    )


def too_new(uri: str, found: int, known: int) -> CorruptOutput:
    """The error for an object that only a later tokpipe can understand."""
    return CorruptOutput(
        f"{uri} has format {found} and this tokpipe reads up to {known}. "
        "Read as an older one, it could be misunderstood. Upgrade tokpipe."
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def check_bytes(uri: str, data: bytes, *, size_bytes: int, sha256_hex: str) -> None:
    """Compare an object with what the manifest lists.

    Raises:
        CorruptOutput: other size, or same size and other content.
    """
    if len(data) != size_bytes:
        raise damaged(uri, f"it has {len(data)} bytes where the manifest lists {size_bytes}")
    if (found := sha256(data)) != sha256_hex:
        raise damaged(uri, f"its SHA-256 is {found} where the manifest lists {sha256_hex}")
