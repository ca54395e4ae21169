"""The fingerprint: a hash of everything that decides which codes come out."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tokpipe.config.job import JobConfig
from tokpipe.identity.ids import digest

CODES_VERSION = 2
"""Raised whenever this package would give other codes for the same settings."""

LIBRARIES = ("torch", "decord", "av", "torchcodec")
"""Packages whose build can change a pixel or a rounding, and so a code."""


def fingerprint_settings(job: JobConfig, *, weights_hash: str, device: str) -> dict[str, Any]:
    """Return what decides the codes, as nested settings that a mismatch can name.

    ``device`` is the kind that encodes, ``"cpu"`` or ``"cuda"``, never ``"auto"``. Not in here,
    because no code depends on it: names, pools, shard sizes, stores, deadlines.
    """
    versions = {name: _version(name) for name in (*LIBRARIES, *job.tokenizer.libraries)}
    return {
        "codes_version": CODES_VERSION,
        "weights": weights_hash,
        "tokenizer": job.tokenizer.codes_settings(),
        "sampling": job.sampling.model_dump(
            mode="json",
            # Streamed clips are not cut: how much is decoded at a time changes no code.
            exclude={"max_clip_frames"} if job.chunking.policy == "streaming" else None,
        ),
        "frames": job.frames.model_dump(mode="json"),
        "chunking": job.chunking.model_dump(mode="json"),
        "decode": {
            "backend": job.decode.backend,
            # Outputs that were made before there was a choice keep their fingerprint.
            **({} if job.decode.on_damage == "reject" else {"on_damage": job.decode.on_damage}),
        },
        "encode": {
            "device": device,
            "dtype": job.encode.dtype,
            # Kernels are chosen by shape, so the size of a batch can decide a rounding.
            **({"batch_chunks": job.encode.batch_chunks} if device == "cuda" else {}),
        },
        "libraries": {name: found for name, found in versions.items() if found},
    }


def fingerprint(settings: dict[str, Any]) -> str:
    """Hash of ``fingerprint_settings``, 32 hex digits."""
    return digest(settings)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
