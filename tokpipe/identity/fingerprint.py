"""The fingerprint: a hash of everything that determines the codes."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tokpipe.config.job import JobConfig
from tokpipe.identity.ids import digest

CODES_VERSION = 3  # Increased whenever tokpipe would produce different codes for the same settings


def fingerprint_settings(
    job: JobConfig, *, weights_hash: str, device: str, decoders: Mapping[str, str]
) -> dict[str, Any]:
    """Return everything that determines the codes, as nested settings to compare one by one.

    Leaves out what no code depends on: names, pools, shard sizes, stores, deadlines. ``device``
    is the kind that encodes, ``"cpu"`` or ``"cuda"``, and ``decoders`` the versions of the job's
    decoders and of their FFmpeg, as they load.
    """
    versions = {name: installed_version(name) for name in ("torch", *job.tokenizer.libraries)}
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
        "libraries": {name: found for name, found in versions.items() if found},
    }


fingerprint = digest  # Returns the hash of ``fingerprint_settings``, as 32 hex digits


def releases(versions: Mapping[str, str]) -> dict[str, str]:
    """Shorten versions to two numbers: a patch release leaves the frames of good files alone."""
    return {name: ".".join(version.split(".")[:2]) for name, version in versions.items()}


def installed_version(package: str) -> str | None:
    """Return the version of a package, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
