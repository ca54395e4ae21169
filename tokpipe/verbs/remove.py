"""``tokpipe remove``: takes clips out of a finished output, and on demand every trace of them."""

import re
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.audit.leftovers import Listing
from tokpipe.errors import ConfigError
from tokpipe.formats.checks import explained
from tokpipe.formats.job_record import rewrite_plan
from tokpipe.formats.layout import entry_key
from tokpipe.formats.manifest import Reopened, iter_rejected, read_entries
from tokpipe.formats.manifest.state import UNRECORDED
from tokpipe.formats.shard import ShardMetadata
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.plan.stored import is_purged, purged, read_part, store_part
from tokpipe.reader import Output
from tokpipe.reader.search import source_matcher
from tokpipe.reader.values import ShardInfo
from tokpipe.runtime.commit import REOPENED_PER_ENTRY, Committer
from tokpipe.stages.write import put_shard
from tokpipe.storage.store import Store
from tokpipe.telemetry.human import counted
from tokpipe.types import REMOVED, ClipRef, Receipt, Rejected

_SHARDS_PER_ENTRY = 64
_WHERE = re.compile(r"\s*(\w+)\s*(<=|>=|!=|==?|<|>)\s*(.*?)\s*")
_COMPARE: dict[str, Callable[..., pa.ChunkedArray]] = {
    "=": pc.equal, "==": pc.equal, "!=": pc.not_equal, "<": pc.less, "<=": pc.less_equal,
    ">": pc.greater, ">=": pc.greater_equal,
}  # fmt: skip


@dataclass
class Removal:
    """Takes clips out of an output, and counts them.

    They become rejections of stage ``"remove"``. Shards that have some of them are replaced by
    others without them, which one manifest entry lists for up to 64 shards. A crash leaves clips
    that are still there, and never some that are lost or doubled.
    """

    uri: str
    dry_run: bool
    purge: bool
    num_clips: int = 0
    num_rejected: int = 0  # Clips that had been rejected for another reason
    num_shards: int = 0
    num_deleted: int = 0  # Objects

    @classmethod
    def of(
        cls,
        store: Store,
        *,
        source: str | None = None,
        clip_ids: Collection[str] = (),
        where: str | None = None,
        purge: bool = False,
        dry_run: bool = False,
    ) -> "Removal":
        """Remove the clips of sources that match ``source``, with these ids, and ``where`` columns
        of the side table fulfil a condition.

        ``purge`` also deletes and rewrites what names these and other removed clips.

        Raises:
            ConfigError: the job has not finished, or the condition is none.
            Fenced: a job of the output was started.
        """
        listing = Listing(store) if purge else None  # before the claim, see _purge
        output = _settled(store)
        committer = Committer(store, output.state, secrets.token_hex(4))
        if not dry_run:
            committer.claim()
            output = _settled(store)
        found = cls(store.uri, dry_run, purge)
        matches = source_matcher(source) if source is not None else None
        touched = list[tuple[ShardInfo, set[str]]]()
        for info in output.shards:
            table = output.side_table(info)
            ids = table.column("clip_id").to_pylist()
            gone = set(ids).intersection(clip_ids)
            if matches is not None:
                uris = table.column("source_uri").to_pylist()
                gone.update(one for one, uri in zip(ids, uris, strict=True) if matches(uri))
            if where is not None:
                gone.update(table.filter(_mask(table, where)).column("clip_id").to_pylist())
            if gone:
                touched.append((info, gone))
        found.num_clips, found.num_shards = sum(len(gone) for _, gone in touched), len(touched)
        rejected = [
            one
            for one in output.rejected()
            if one.stage not in ("plan", "remove")
            and (one.ref.clip_id in clip_ids or (matches and matches(one.ref.source_uri)))
        ]
        found.num_rejected = len(rejected)
        if dry_run:
            return found
        for at in range(0, len(touched), _SHARDS_PER_ENTRY):
            _replace(committer, output, touched[at : at + _SHARDS_PER_ENTRY])
        for at in range(0, len(rejected), REOPENED_PER_ENTRY):
            some = rejected[at : at + REOPENED_PER_ENTRY]
            reopened = tuple(Reopened(one.ref, one.reason) for one in some)
            committer.append(reopened=reopened, rejected=tuple(_removed(one.ref) for one in some))
        if listing is not None:
            found.num_deleted = _purge(committer, output, listing)
        return found

    def lines(self) -> Iterator[str]:
        done = "would remove" if self.dry_run else "removed"
        shards = counted(self.num_shards, "shard")
        yield f"{self.uri}: {done} {counted(self.num_clips, 'clip')} of {shards}"
        if self.num_rejected:
            yield f"  {done} {self.num_rejected:,} that had been rejected"
        if self.purge and not self.dry_run:
            yield f"  purged: deleted {counted(self.num_deleted, 'object')}"

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def _settled(store: Store) -> Output:
    output = Output(store)
    if output.incomplete:
        raise ConfigError(
            f"{store.uri} is {output.incomplete}, so a job may still write what is to be removed. "
            "Finish it with tokpipe run first"
        )
    return output


def _mask(table: pa.Table, where: str) -> pa.ChunkedArray:
    """Evaluate ``NAME OP VALUE`` for each row; a null is not removed."""
    found = _WHERE.fullmatch(where)
    if found is None or found[1] not in table.column_names:
        names = ", ".join(table.column_names)
        raise ConfigError(
            f"--where {where}: write COLUMN=VALUE, or another of {' '.join(_COMPARE)}, for one of "
            f"the columns {names}"
        )
    column = table.column(found[1])
    try:
        return _COMPARE[found[2]](column, pa.scalar(found[3]).cast(column.type)).fill_null(False)
    except pa.ArrowException as error:
        kind = f"{found[1]} holds {column.type}"
        raise ConfigError(f"--where {where}: {kind}, {explained(error)}") from error


def _removed(ref: ClipRef) -> Rejected:
    return Rejected(ref, "remove", REMOVED, "taken out by tokpipe remove")


def _replace(
    committer: Committer, output: Output, touched: Sequence[tuple[ShardInfo, set[str]]]
) -> None:
    """Write shards without these clips, and list them in place of those that have them."""
    plan = StoredPlan.of(output.record, output.state.growth)
    metadata = ShardMetadata(output.fingerprint, output.tokenizer)
    reader, new, old = PlanReader(output.store, plan), list[Receipt](), list[Receipt]()
    rejected = list[Rejected]()
    for info, gone in touched:
        clips = [*output.clips([info])]
        if kept := [clip.encoded() for clip in clips if clip.clip_id not in gone]:
            name = f"{plan.plan_id[:12]}-{committer.writer}.{committer.state.next_seq}-{len(new)}"
            new.append(put_shard(output.store, metadata, reader, name, kept))
        rejected += [_removed(clip.ref) for clip in clips if clip.clip_id in gone]
        same = "size_bytes", "sha256", "num_rows", "num_codes", "num_frames", "grid"
        table = "side_table", "side_table_sha256", "side_table_size_bytes"
        fields = {name: getattr(info, name) for name in (*same, *table)}
        encoders = dict(Counter(clip.encoder or UNRECORDED for clip in clips))
        old.append(Receipt(info.key, **fields, clips=(), encoders=encoders))
    committer.append(shards=tuple(new), replaced=tuple(old), rejected=tuple(rejected))


def _purge(committer: Committer, output: Output, listing: Listing) -> int:
    """Leave nothing of removed clips in an output but their place in it; return what was deleted.

    First the manifest forgets them, then the plan, then unlisted objects go: so at any moment all
    that is listed is there, and any part of it can be done again. Only what was listed before the
    output was claimed is deleted: a driver that was planning its extension then plans again.
    """
    store, state = committer.store, committer.state
    every = [one.ref for one in iter_rejected(store, state.next_seq) if one.stage == "remove"]
    clips, counts = {(ref.row, ref.segment) for ref in every}, Counter(ref.row for ref in every)
    rows = {ref.row for ref in every if counts[ref.row] == ref.num_segments}
    plan = StoredPlan.of(output.record, state.growth)
    reader = PlanReader(store, plan)
    committer.watch()
    parts = {part.key: part for part in plan.parts}
    for index, _, places in reader.by_part(np.array(sorted(rows), np.int64)):
        part = plan.parts[index]
        table = read_part(store, part)
        if not is_purged(table)[places].all():
            key = f"plan/{committer.writer}/{index:05d}.parquet"
            parts[part.key] = store_part(store, key, purged(table, places), part.source)

    def clean(stored: dict[str, object]) -> dict[str, object]:
        one = StoredPlan.from_json(stored)
        one = one.with_parts((parts[part.key] for part in one.parts), one.num_problems)
        names = {kind: list[str]() for kind in one.left_out.names}
        left_out = replace(one.left_out, names=names)
        return asdict(replace(one, duplicate_examples=(), left_out=left_out))

    for entry in read_entries(store, range(state.next_seq)):
        left = entry.without(clips)
        if entry.growth is not None:
            left = replace(left, growth=replace(entry.growth, plan=clean(entry.growth.plan)))
        if left != entry:
            store.put(entry_key(entry.seq), replace(left, redacted=entry.sha256).to_json())
    rewrite_plan(store, clean(output.record.plan))
    committer.watch()
    table = state.shards
    listed = {*table.column("shard").to_pylist(), *table.column("side_table").to_pylist()}
    left = listing.unlisted(listed, {part.key for part in parts.values()})
    for found in left:
        store.delete(found.key)
    return len(left)
