"""The key of each object below an output's prefix."""

import re

from tokpipe.types import SHARD_KEY

JOB_RECORD = "job.json"

MANIFEST_KEY = re.compile(r"manifest/([0-9]{8})(\.checkpoint)?\.json")
"""Keys of entries and checkpoints; other files beside them are not part of the output."""


def shard_key(name: str) -> str:
    """Key of a shard. Its name is ``<plan>-<lease>-<attempt>``."""
    key = f"shards/{name}.parquet"
    if not re.fullmatch(SHARD_KEY, key):
        raise ValueError(f"shard name {name!r} must be letters, digits, '-', '_' and '.'")
    return key


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
