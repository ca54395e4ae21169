"""Clip ids, and the fingerprint, a hash of what determines codes. Neither depends on position."""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tokpipe.config.job import JobConfig

CODES_VERSION = 3  # Increased whenever tokpipe would produce different codes for the same settings


def digest(value: Any) -> str:
    """Return 128 bits of SHA-256 over the canonical JSON of ``value``, as 32 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def row_digests(dataset: str, source_uris: Iterable[bytes], spans: Iterable[bytes]) -> list[bytes]:
    """Return the binary ids of plan rows: the first 128 bits of SHA-256 over the length of the
    dataset's name (4 bytes, little-endian), the name, the source uri (with any member) and the
    span. That is its start and end, each as a byte that is 1 if it is set and a little-endian
    float64 in seconds, or else all zeros. The length and the span's fixed size make this unique."""
    name = dataset.encode("utf-8", "surrogatepass")
    head = struct.pack("<I", len(name)) + name
    return [
        hashlib.sha256(b"%b%b%b" % (head, uri, span)).digest()[:16]
        for uri, span in zip(source_uris, spans, strict=True)
    ]


def span_bytes(start_s: float | None, end_s: float | None) -> bytes:
    """Return one span as ``row_digests`` hashes it."""
    ends = start_s is not None, (start_s or 0.0) + 0.0, end_s is not None, (end_s or 0.0) + 0.0
    return struct.pack("<?d?d", *ends)  # -0.0 becomes 0.0


def clip_id(
    row_id: str, segment: int, num_segments: int, max_clip_frames: int, fps: float | None
) -> str:
    """The id of a clip: its row's if it is the only one, else by its span in frames at ``fps``."""
    if num_segments == 1:
        return row_id
    first = segment * max_clip_frames
    return digest([row_id, first, first + max_clip_frames, fps])


TAR_BLOCK = 512
MEMBER_VERSION_BYTES = TAR_BLOCK + 4096
"""What is known of a member of a tar: the last block of its header, and the start of its data."""


def version_of(*found: object) -> int:
    """Return 64 bits that identify the present content of a source, by its size and its ETag or
    time of change, or by its ``MEMBER_VERSION_BYTES``."""
    parts = (one if isinstance(one, bytes) else str(one).encode() for one in found)
    return int.from_bytes(hashlib.sha256(b" ".join(parts)).digest()[:8], "little")


def fingerprint_settings(
    job: JobConfig, *, weights_hash: str, device: str, decoders: Mapping[str, str]
) -> dict[str, Any]:
    """Return everything that determines the codes, as nested settings to compare one by one.

    The fingerprint is their ``digest``. Leaves out what no code depends on: names, pools, shard
    sizes, stores, deadlines. ``device`` is the kind that encodes, ``"cpu"`` or ``"cuda"``, and
    ``decoders`` the versions of the job's decoders and of their FFmpeg, as they load.
    """
    libraries = {}
    for name in ("torch", *job.tokenizer.libraries):
        with suppress(PackageNotFoundError):
            libraries[name] = version(name)
    return {
        "codes_version": CODES_VERSION,
        "weights": weights_hash,
        "tokenizer": job.tokenizer.codes_settings(),
        "sampling": job.sampling.model_dump(
            mode="json",
            # Streamed clips are not cut, so this does not change their codes.
            exclude={"max_clip_frames"} if job.chunking.policy == "streaming" else None,
        ),
        "frames": job.frames.model_dump(mode="json"),
        "chunking": job.chunking.model_dump(mode="json"),
        "decode": {
            "backends": list(job.decode.backends),
            "libraries": releases(decoders),
            "on_damage": job.decode.on_damage,
        },
        "encode": {
            "device": device,
            "dtype": job.encode.dtype,
            # CUDA kernels are selected by shape, so the batch size can change a rounding.
            **({"batch_chunks": job.encode.batch_chunks} if device == "cuda" else {}),
        },
        "libraries": libraries,
    }


def releases(versions: Mapping[str, str]) -> dict[str, str]:
    """Shorten versions to two numbers: a patch release leaves the frames of good files alone."""
    return {name: ".".join(version.split(".")[:2]) for name, version in versions.items()}
