"""``tokpipe remove``: takes clips out of a finished output, and on demand every trace of them."""

import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tokpipe.audit.leftovers import Listing
from tokpipe.errors import ConfigError, CorruptOutput, NotFound
from tokpipe.formats.checks import explained
from tokpipe.formats.job_record import rewrite_plan
from tokpipe.formats.layout import checkpoint_key, checkpoint_shards_key, entry_key
from tokpipe.formats.manifest import Growth, read_entries, write_checkpoint
from tokpipe.formats.manifest.checkpoint import read_checkpoint
from tokpipe.formats.manifest.state import UNRECORDED
from tokpipe.formats.shard import ShardMetadata
from tokpipe.plan import PlanReader, StoredPlan
from tokpipe.plan.stored import purged, read_part, store_part
from tokpipe.reader import Output
from tokpipe.reader.search import source_matcher
from tokpipe.reader.values import ShardInfo
from tokpipe.runtime.commit import Committer
from tokpipe.stages.write import put_shard
from tokpipe.storage.store import Store
from tokpipe.telemetry.human import counted
from tokpipe.types import REMOVED, ClipRef, Receipt, Rejected

_SHARDS_PER_ENTRY = 64
_COMPARE: dict[str, Callable[..., pa.ChunkedArray]] = {
    "<=": pc.less_equal, ">=": pc.greater_equal, "!=": pc.not_equal, "=": pc.equal, "<": pc.less,
    ">": pc.greater,
}  # fmt: skip
_CONDITION = re.compile(rf"\s*(\w+)\s*({'|'.join(_COMPARE)})\s*(.*?)\s*")


@dataclass
class Removal:
    """What was, or would be, removed."""

    uri: str
    dry_run: bool
    num_clips: int = 0  # Also those that had been rejected for another reason
    num_shards: int = 0  # Shards that had some of them
    num_deleted: int = 0  # Objects, by a purge

    def lines(self) -> Iterator[str]:
        done = "would remove" if self.dry_run else "removed"
        counts = f"{counted(self.num_clips, 'clip')} of {counted(self.num_shards, 'shard')}"
        yield f"{self.uri}: {done} {counts}, and deleted {counted(self.num_deleted, 'object')}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def remove(
    store: Store,
    *,
    source: str | None = None,
    clip_ids: Collection[str] = (),
    where: str | None = None,
    purge: bool = False,
    dry_run: bool = False,
) -> Removal:
    """Remove clips of sources that match, with these ids, or where a column fulfils a condition.

    They become rejections of stage ``"remove"``, and shards without them replace those that had
    some. An entry of the manifest does that for up to 64 shards, or not at all. ``purge`` then
    deletes what names these clips and those that were removed before.

    Raises:
        ConfigError: the job has not finished, or ``where`` is not a condition.
        Fenced: a job of the output has started meanwhile.
    """
    listing = Listing(store)  # before the claim, see _purge
    output = Output(store)
    if output.incomplete:
        raise ConfigError(
            f"{store.uri} is {output.incomplete}, so a job may still write what is to be removed. "
            "Finish it with tokpipe run first"
        )
    committer = Committer(store, output.state, secrets.token_hex(4))
    if not dry_run:
        committer.claim()
        output = Output(store)
    matches: Callable[[str], bool] = source_matcher(source) if source else lambda _: False
    touched = list[tuple[ShardInfo, set[str]]]()
    for info in output.shards:
        table = output.side_table(info)
        ids, uris = (table.column(name).to_pylist() for name in ("clip_id", "source_uri"))
        gone = {name for name, uri in zip(ids, uris, strict=True) if matches(uri)}
        gone |= set(_where(table, where)) | set(ids).intersection(clip_ids)
        touched += [(info, gone)] if gone else []
    rejected = [
        one
        for one in output.rejected()
        if one.stage not in ("plan", "remove")
        and (one.ref.clip_id in clip_ids or matches(one.ref.source_uri))
    ]
    num_clips = len(rejected) + sum(len(gone) for _, gone in touched)
    removal = Removal(store.uri, dry_run, num_clips, len(touched))
    if dry_run:
        return removal
    for at in range(0, len(touched), _SHARDS_PER_ENTRY):
        _replace(committer, output, touched[at : at + _SHARDS_PER_ENTRY])
    committer.reopen(rejected, _removed(one.ref for one in rejected))
    if purge:
        removal.num_deleted = _purge(committer, Output(store), listing)
    return removal


def _where(table: pa.Table, condition: str | None) -> list[str]:
    """Return the ids of the clips for which ``NAME OP VALUE`` is true."""
    if condition is None:
        return []
    found = _CONDITION.fullmatch(condition)
    if found is None or found[1] not in table.column_names:
        names = ", ".join(table.column_names)
        how = f"write NAME=VALUE, with one of {' '.join(_COMPARE)}, for one of the columns {names}"
        raise ConfigError(f"--where {condition}: {how}")
    column = table.column(found[1])
    try:
        is_true = _COMPARE[found[2]](column, pa.scalar(found[3]).cast(column.type))
    except pa.ArrowException as error:
        kind = f"{found[1]} holds {column.type}"
        raise ConfigError(f"--where {condition}: {kind}: {explained(error)}") from error
    return list[str](table.filter(is_true).column("clip_id").to_pylist())


def _removed(clips: Iterable[ClipRef]) -> tuple[Rejected, ...]:
    return tuple(Rejected(one, "remove", REMOVED, "taken out by tokpipe remove") for one in clips)


def _replace(
    committer: Committer, output: Output, touched: Sequence[tuple[ShardInfo, set[str]]]
) -> None:
    """Write shards without these clips, and list them in place of those that have them."""
    plan = StoredPlan.of(output.record, output.state.growth)
    metadata = ShardMetadata(output.fingerprint, output.tokenizer)
    reader, new, old = PlanReader(output.store, plan), list[Receipt](), list[Receipt]()
    removed = list[ClipRef]()
    for info, gone in touched:
        clips = [*output.clips([info])]
        if kept := [clip.encoded() for clip in clips if clip.clip_id not in gone]:
            name = f"{plan.plan_id[:12]}-{committer.writer}.{committer.state.next_seq}-{len(new)}"
            new.append(put_shard(output.store, metadata, reader, name, kept))
        removed += [clip.ref for clip in clips if clip.clip_id in gone]
        same = {name: getattr(info, name) for name in Receipt.__slots__ if hasattr(info, name)}
        encoders = dict(Counter(clip.encoder or UNRECORDED for clip in clips))
        old.append(Receipt(info.key, **same, clips=(), encoders=encoders))
    committer.append(shards=tuple(new), replaced=tuple(old), rejected=_removed(removed))


def _purge(committer: Committer, output: Output, listing: Listing) -> int:
    """Leave nothing of removed clips but their row and segment; return how many objects went.

    The plan and the manifest forget them, and then what is not listed goes. At any moment all that
    is listed is there, and all of it may be done again. Only what was there before the claim is
    deleted: a driver that was planning an extension then has to plan again.
    """
    store, record = committer.store, output.record
    refs = [one.ref for one in output.rejected() if one.stage == "remove"]
    clips, counts = {(ref.row, ref.segment) for ref in refs}, Counter(ref.row for ref in refs)
    rows = {ref.row for ref in refs if counts[ref.row] == ref.num_segments}
    plan = StoredPlan.of(record, output.state.growth)
    parts = {part.key: part for part in plan.parts}
    for index, _, places in PlanReader(store, plan).by_part(np.array(sorted(rows), np.int64)):
        part = plan.parts[index]
        if (left := purged(table := read_part(store, part), places)) is not table:
            key = f"plan/{committer.writer}/{index:05d}.parquet"
            parts[part.key] = store_part(store, key, left, part.source)

    def purged_plan(stored: dict[str, Any]) -> dict[str, Any]:
        one = StoredPlan.from_json(stored)
        one = one.with_parts((parts[part.key] for part in one.parts), one.num_problems)
        left_out = replace(one.left_out, names={kind: [] for kind in one.left_out.names})
        one = replace(one, duplicate_examples=(), left_out=left_out)
        return dict(json.loads(json.dumps(asdict(one))))

    def purged_growth(one: Growth) -> Growth:
        return replace(one, plan=purged_plan(one.plan))

    newest = None  # of the checkpoints that name parts which will be gone
    for seq in sorted(listing.checkpoints):
        with suppress(CorruptOutput, NotFound):
            saved = read_checkpoint(store, seq, record.num_rows)
            if (growth := [*map(purged_growth, saved.growth)]) != saved.growth:
                newest, saved.growth = saved, growth
                store.delete(checkpoint_key(seq))
                store.delete(checkpoint_shards_key(seq))
    for entry in read_entries(store, range(output.state.next_seq - 1, -1, -1)):  # clips, then plan
        less = entry.without(clips)
        if entry.growth is not None:
            less = replace(less, growth=purged_growth(entry.growth))
        if less != entry:
            committer.watch()
            store.put(entry_key(entry.seq), replace(less, redacted=entry.sha256).to_json())
    if (planned := purged_plan(record.plan)) != record.plan:
        rewrite_plan(store, planned)
    if newest is not None:
        write_checkpoint(store, newest)
    committer.watch()
    left_over = listing.unlisted(output.state, parts.values())
    for found in left_over:
        store.delete(found.key)
    return len(left_over)
