"""The key of each object below an output's prefix."""

import re

JOB_RECORD = "job.json"

MANIFEST_KEY = re.compile(r"manifest/([0-9]{8})(\.checkpoint)?\.json")
"""Keys of entries and checkpoints; other files beside them are not part of the output."""
_SHARD_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")


def shard_key(name: str) -> str:
    """Key of a shard. Its name is ``<plan>-<lease>-<attempt>``."""
    if not _SHARD_NAME.fullmatch(name):
        raise ValueError(f"shard name {name!r} must be letters, digits, '-', '_' and '.'")
    return f"shards/{name}.parquet"


def side_table_key(name: str) -> str:
    """Key of the per-clip table beside the shard called ``name``."""
    return f"clips/{name}.parquet"


def entry_key(seq: int) -> str:
    """Key of manifest entry ``seq``, counted from 0 without gaps."""
    return f"manifest/{seq:08d}.json"


def checkpoint_key(seq: int) -> str:
    """Key of the checkpoint that summarizes the entries before ``seq``."""
    return f"manifest/{seq:08d}.checkpoint.json"


def checkpoint_shards_key(seq: int) -> str:
    """Key of the table of every shard listed before ``seq``."""
    return f"manifest/{seq:08d}.checkpoint.parquet"
