"""The write stage: puts encoded clips into the store as a shard and a side table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, groupby

import numpy as np

from tokpipe.config.job import OutputConfig, StoreOptions
from tokpipe.formats.shard import ShardMetadata, TokenizerSpec, build_shard, receipt_of
from tokpipe.formats.shard_reader import check_shard
from tokpipe.formats.side_table import build_side_table
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.storage import Store
from tokpipe.types import EncodedClip, Receipt


@dataclass
class WriteStage:
    """Writes and checks shards. It does not list them, so it never changes the dataset.

    Objects are complete before they are put, because an exception inside an open remote file would
    publish half of it. Nothing is kept between shards, so any shard can be written again.
    """

    output: OutputConfig
    storage: StoreOptions
    tokenizer: TokenizerSpec
    fingerprint: str
    plan: StoredPlan

    def setup(self) -> None:
        """Connect to the store. Runs once, inside the actor."""
        self.metadata = ShardMetadata(self.fingerprint, self.tokenizer)
        self.store = Store(self.output.uri, self.storage)
        self.plan_reader = PlanReader(self.store, self.plan)

    def process(self, shard_name: str, clips: Sequence[EncodedClip]) -> Receipt:
        """Put a shard, as ``put_shard``. The pieces of a streamed clip must be in sequence."""
        clips = [_joined(list(pieces)) for _, pieces in groupby(clips, lambda clip: clip.ref)]
        return put_shard(self.store, self.metadata, self.plan_reader, shard_name, clips)


def put_shard(
    store: Store, metadata: ShardMetadata, plan: PlanReader, name: str, clips: Sequence[EncodedClip]
) -> Receipt:
    """Put one shard of whole clips of one grid, and its side table.

    Before it is put, the shard is parsed again and every row is compared with the CRC of the codes
    passed here. No other attempt may write to this ``name``.
    """
    shard = build_shard(clips, metadata)
    side_table = build_side_table(clips, plan.extras([clip.ref.row for clip in clips]))
    receipt = receipt_of(name, clips, shard, side_table)
    check_shard(store.uri_of(receipt.shard), shard, receipt, metadata)
    store.put(receipt.side_table, side_table)
    store.put(receipt.shard, shard)
    return receipt


def _joined(pieces: list[EncodedClip]) -> EncodedClip:
    return replace(
        pieces[0],
        chunks=tuple(chain.from_iterable(piece.chunks for piece in pieces)),
        codes=tuple(chain.from_iterable(piece.codes for piece in pieces)),
        pts_s=np.concatenate([piece.pts_s for piece in pieces]),
        marks=tuple(dict.fromkeys(chain.from_iterable(piece.marks for piece in pieces))),
        damage=next((piece.damage for piece in pieces if piece.damage), None),
        encoder=" + ".join(sorted({piece.encoder for piece in pieces})),
    )
