"""Reads outputs: job record, manifest and shards, checked as they are read.

Needs pyarrow and a store, but neither Ray, torch nor a GPU.
"""

from tokpipe.formats.shard_reader import Chunk
from tokpipe.reader.code_cache import CodeCache
from tokpipe.reader.output import Output, open_output
from tokpipe.reader.sequences import TokenSequences, document_mask
from tokpipe.reader.shard_codes import ShardCodes
from tokpipe.reader.stream import ClipIterator, ClipMix, ClipStream
from tokpipe.reader.values import Clip, ShardInfo

__all__ = [
    "Chunk", "Clip", "ClipIterator", "ClipMix", "ClipStream", "CodeCache", "Output", "ShardCodes",
    "ShardInfo", "TokenSequences", "document_mask", "open_output",
]  # fmt: skip
