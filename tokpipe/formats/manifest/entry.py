"""One manifest entry: the shards and rejections of one commit, as JSON with a checksum."""

from collections.abc import Mapping, Set
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any, NamedTuple

from pydantic import Field, TypeAdapter

from tokpipe.formats.checks import as_damage, damaged
from tokpipe.formats.layout import entry_key
from tokpipe.formats.sealed_json import dump_lines, seal, unseal
from tokpipe.storage.store import Store
from tokpipe.telemetry.account import Account
from tokpipe.telemetry.redact import redact
from tokpipe.types import ClipRef, Count, Positive, Receipt, Rejected, Sha256

MANIFEST_FORMAT = 4
"""2 since entries can withdraw rejections, 3 since each holds the hash of the one before, and 4
since the plan can grow and shards can be replaced; an entry without that is written as 3. An
earlier version that resumed an output of format 3 would break the chain, so it must not."""

_RECORDED = {
    "encoders": ("paid_s", "useful_s", "lost_s", "slow_s"),
    "actors": ("spent_s", "up_s", "started", "starting_s"),
}
"""What an entry records of an account, and under which keys."""

_CLIP_FIELDS = list(ClipRef.__slots__)


@dataclass(frozen=True, slots=True)
class Claim:
    """Identifies a ``writer``. Each driver puts one in its first entry."""

    host: str
    pid: int
    tokpipe_version: str


@dataclass(frozen=True, slots=True)
class Reopened:
    """A clip whose rejection is withdrawn, so that it will be tokenized after all."""

    ref: ClipRef
    reason: str  # Why it had been rejected


@dataclass(frozen=True, slots=True)
class Growth:
    """Rows that join the plan."""

    first_row: Annotated[int, Field(ge=0, le=2**32)]  # Number of rows that the plan had before
    num_rows: Positive
    plan: dict[str, Any]  # The stored plan of these rows alone
    sources: list[dict[str, Any]]  # Those of the job by now: the ones before, and perhaps others


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """What one commit adds to the output, or the claim of a driver that starts."""

    seq: Count  # Position in the manifest, counted from 0 without gaps
    writer: str  # Attempt id of the driver, so no two drivers write the same bytes
    written_at: str  # UTC, ISO 8601
    shards: tuple[Receipt, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    claim: Claim | None = None  # In a driver's first entry: takes the next number of older ones
    reopened: tuple[Reopened, ...] = ()  # Unsettled before anything else in this entry counts
    growth: Growth | None = None
    replaced: tuple[Receipt, ...] = ()
    """Shards, without their clips, that no longer count. Each of the clips is in one of ``shards``
    instead, or removed by one of ``rejected``; such an entry settles none."""
    redacted: Sha256 | None = None  # Its hash before purged clips lost their id and source in it
    account: Account | None = None  # Since the same driver's previous entry, by ``_RECORDED``
    previous: str | None = None
    """SHA-256 of the entry before, empty in entry 0. None if a version before format 3 wrote it."""
    sha256: str | None = field(default=None, compare=False)  # Its own, once it is in the store

    @property
    def tail(self) -> "Tail":
        return Tail(self.sha256, self.previous is not None)

    @property
    def clips(self) -> list[ClipRef]:
        """Every clip of its shards and rejections."""
        of_shards = [ref for receipt in self.shards for ref in receipt.clips]
        return [*of_shards, *(rejection.ref for rejection in self.rejected)]

    def refs(self) -> list[ClipRef]:
        """Return every clip that this entry settles, tokenized or rejected."""
        return [] if self.replaced else self.clips

    def without(self, purged: Set[tuple[int, int]]) -> "ManifestEntry":
        """Return this entry with nothing of some clips but their row and segment."""

        def blank(ref: ClipRef) -> ClipRef:
            is_purged = (ref.row, ref.segment) in purged
            return replace(ref, clip_id="", source_uri="") if is_purged else ref

        shards = tuple(replace(one, clips=tuple(map(blank, one.clips))) for one in self.shards)
        reopened = tuple(replace(one, ref=blank(one.ref)) for one in self.reopened)
        less = [replace(one, ref=blank(one.ref)) for one in self.rejected]
        rejected = tuple(one if one.ref.clip_id else replace(one, message="") for one in less)
        return replace(self, shards=shards, rejected=rejected, reopened=reopened)

    def to_json(self) -> bytes:
        """Return JSON with one line per clip and rejection, and a checksum at the end.

        A clip is a list of values in the order of ``clip_fields``: repeating the keys for each
        clip would double the manifest of a large output.
        """
        body: dict[str, Any] = {
            "format": 1 + bool(self.reopened) if self.previous is None else 3,
            "seq": self.seq,
            "writer": self.writer,
            "written_at": self.written_at,
            "clip_fields": _CLIP_FIELDS,
            "shards": list(map(_fields, self.shards)),
            # Every message passes here, whatever library it quotes.
            "rejected": [{**asdict(one), "message": redact(one.message)} for one in self.rejected],
        }
        optional = {
            "previous": self.previous,
            "reopened": list(map(asdict, self.reopened)) or None,
            "claim": self.claim and asdict(self.claim),
            "growth": self.growth and asdict(self.growth),
            "replaced": list(map(_fields, self.replaced)) or None,
            "redacted": self.redacted,
        }
        body |= {key: value for key, value in optional.items() if value is not None}
        if body.keys() & {"growth", "replaced", "redacted"}:
            body["format"] = MANIFEST_FORMAT
        if self.account is not None:
            for key, names in _RECORDED.items():
                body[key] = {name: _rounded(getattr(self.account, name)) for name in names}
        return dump_lines(seal(body))

    @classmethod
    def from_json(cls, uri: str, data: bytes) -> "ManifestEntry":
        body = unseal(uri, data, newest_format=MANIFEST_FORMAT)
        kinds = KeyError, TypeError, ValueError
        with as_damage(uri, "it does not parse as a manifest entry", *kinds):
            clip_fields = body["clip_fields"]
            for shard in body["shards"]:
                clips = shard["clips"]
                shard["clips"] = [dict(zip(clip_fields, clip, strict=True)) for clip in clips]
            seconds = [body.pop(key, {}) for key in _RECORDED]
            if any(seconds):
                body["account"] = {key: value for one in seconds for key, value in one.items()}
            return _ENTRY.validate_python(body)


_ENTRY = TypeAdapter(ManifestEntry)


class Tail(NamedTuple):
    """What the next entry must continue."""

    sha256: str | None = ""  # Of the last entry; empty if there is none
    is_linked: bool = False  # Whether it holds the hash of the one before, as all later ones must

    def check(self, store: Store, entry: ManifestEntry) -> None:
        """Raise CorruptOutput unless ``entry`` can be the next one."""
        if entry.previous != self.sha256 and (self.is_linked or entry.previous is not None):
            raise damaged(
                store.uri_of(entry_key(entry.seq)),
                f"it continues an entry with the SHA-256 {entry.previous or 'none'}, but the "
                f"entry before it has {self.sha256 or 'none'}. One of the two was replaced",
            )


def _fields(one: Receipt) -> dict[str, Any]:
    clips = [[getattr(clip, name) for name in _CLIP_FIELDS] for clip in one.clips]
    return {name: getattr(one, name) for name in Receipt.__slots__} | {"clips": clips}


def _rounded(seconds: Any) -> Any:
    if isinstance(seconds, Mapping):
        return {key: round(value, 3) for key, value in seconds.items()}
    return round(seconds, 3)
