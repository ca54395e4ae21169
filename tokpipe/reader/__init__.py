"""Reads outputs: job record, manifest and shards, checked as they are read.

Needs pyarrow and a store, and neither Ray nor torch nor a GPU.
"""

from tokpipe.reader.output import Output, open_output
from tokpipe.reader.values import Chunk, Clip, ShardInfo

__all__ = ["Chunk", "Clip", "Output", "ShardInfo", "open_output"]
