"""The key of each object below an output's prefix."""

import re

JOB_RECORD = "job.json"

_MANIFEST_KEY = re.compile(r"manifest/([0-9]{8})(\.checkpoint)?\.json")
_SHARD_NAME = re.compile(r"[A-Za-z0-9_.-]+")


def shard_key(name: str) -> str:
    """Key of a shard. Its name is ``<plan>-<lease>-<attempt>``."""
    return f"shards/{_checked(name)}.parquet"


def side_table_key(name: str) -> str:
    """Key of the per-clip table beside the shard called ``name``."""
    return f"clips/{_checked(name)}.parquet"


def entry_key(seq: int) -> str:
    """Key of manifest entry ``seq``, counted from 0 without gaps."""
    return f"manifest/{seq:08d}.json"


def checkpoint_key(seq: int) -> str:
    """Key of the checkpoint that summarizes the entries before ``seq``."""
    return f"manifest/{seq:08d}.checkpoint.json"


def checkpoint_shards_key(seq: int) -> str:
    """Key of the table of every shard listed before ``seq``."""
    return f"manifest/{seq:08d}.checkpoint.parquet"


def number_in(key: str) -> tuple[int, bool] | None:
    """Return the number in the key of an entry, or of a checkpoint (then True); else None."""
    match = _MANIFEST_KEY.fullmatch(key)
    return match and (int(match[1]), match[2] is not None)


def _checked(name: str) -> str:
    if not _SHARD_NAME.fullmatch(name) or name.startswith("."):
        raise ValueError(f"shard name {name!r} must be letters, digits, '-', '_' and '.'")
    return name
