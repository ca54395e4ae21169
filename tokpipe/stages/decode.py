"""The decode stage: turns work items into pixels, resampled and resized, or rejections."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Self, TypeVar

from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.errors import SourceError
from tokpipe.formats.embedded import EmbeddedVideos
from tokpipe.identity.ids import clip_id
from tokpipe.media.child_process import ChildProcess
from tokpipe.media.decoder import Probe, VideoDecoder
from tokpipe.sources.webdataset import find_members
from tokpipe.storage.client import ALLOWED, split_protocol
from tokpipe.storage.fetch import LocalVideo, check_folders, check_readable, fetch_to_file
from tokpipe.telemetry.redact import redact
from tokpipe.types import (
    ArchiveMember,
    ClipRef,
    Cut,
    DecodedClip,
    Failed,
    Piece,
    Rejected,
    WorkItem,
)

KEPT_SOURCES = 8  # Source files that one decoder holds for the next pieces of streamed clips

T = TypeVar("T")


@dataclass
class DecodeStage:
    """Turns each work item into a decoded clip, in order.

    A clip that cannot be decoded through its own fault becomes a ``Rejected``, and one whose web
    server does not answer a ``Failed``; every other problem raises. Any item can be repeated after
    a crash. With ``pieces``, an item is a piece of its row's one clip.
    """

    sampling: SamplingConfig
    frames: FramesConfig
    decode: DecodeConfig
    storage: StoreOptions
    pieces: Cut | None = None
    versions: Mapping[str, str] | None = None
    """What has to load on this node, as ``job.json`` lists it; None accepts any."""
    folders: tuple[Path, ...] = ()  # Local folders that were not empty when the job was planned
    fetched_s: float = field(default=0.0, init=False)
    """Time that the last call of ``process`` spent fetching sources."""
    fetched_bytes: int = field(default=0, init=False)  # The same; also of sources on local disk

    def setup(self) -> None:
        """Start up inside the actor. NodeTrouble: the job's decoders do not load here."""
        self._decoder = VideoDecoder(
            *(self.decode, self.sampling, self.frames), pieces=self.pieces, versions=self.versions
        )
        self._decoder.start()
        self._sources = _SourceFiles(
            self.storage, self.decode.max_source_bytes, KEPT_SOURCES if self.pieces else 1
        )

    def close(self) -> None:
        """End the decoding child and drop fetched sources."""
        self._decoder.close()
        self._sources.release()

    def __enter__(self) -> Self:
        self.setup()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def process(self, items: list[WorkItem]) -> list[DecodedClip | Rejected | Failed]:
        """Decode each item. Errors that are raised are those of a store or of this node."""
        self.fetched_s, self.fetched_bytes = 0.0, 0
        return [self._decode(item) for item in items]

    def probe(self, item: WorkItem) -> Probe | Rejected | Failed:
        """Return what decoding the item's row would produce; raises as ``process`` does."""
        probe = partial(self._decoder.probe, start_s=item.start_s, end_s=item.end_s)
        return self._tried(item, probe)

    def _decode(self, item: WorkItem) -> DecodedClip | Rejected | Failed:
        segment, num_segments = item.segment, item.num_segments
        if self.pieces is not None:
            segment, num_segments = item.piece, item.num_pieces
        decode = partial(
            self._decoder.decode,
            start_s=item.start_s,
            end_s=item.end_s,
            segment=segment,
            num_segments=num_segments,
        )
        video = self._tried(item, decode)
        if isinstance(video, Rejected | Failed):
            return video
        piece = Piece()
        if self.pieces is not None:
            piece = Piece(item.piece, video.num_segments, self.pieces.bounds(item.piece)[0])
            if piece.is_last:
                self._sources.drop_newest()
        return DecodedClip(
            self._ref(item, video.num_segments),
            video.frames,
            video.pts_s,
            video.fps,
            video.backend,
            piece,
            marks=(*video.marks, *(() if video.damage is None else ("damaged",))),
            damage=video.damage,
            version=self._sources.version,
        )

    def _tried(self, item: WorkItem, call: Callable[[LocalVideo], T]) -> T | Rejected | Failed:
        """Fetch an item's source and call ``call`` with it; rejections are returned."""
        if item.problem is not None:
            return Rejected(self._ref(item, None), "plan", "bad_row", item.problem)
        try:
            video = self._fetch(item)
            try:
                return call(video)
            except (SourceError, RuntimeError):
                check_readable(video.path)  # the fault may be that of a disk or a mount
                raise
        except SourceError as fault:
            if fault.reason == "missing":
                source = item.source_uri if item.member is None else item.member.archive_uri
                check_folders(Path(split_protocol(source)[1]), self.folders)
            ref, cause, name = self._ref(item, fault.num_segments), fault.__cause__, fault.error
            while cause is not None:
                cause, name = cause.__cause__, type(cause).__name__
            if fault.reason == "unreachable":  # perhaps only for now
                return Failed(ref, fault.reason, str(fault), name)
            return Rejected(ref, "decode", fault.reason, str(fault), fault.backend, error=name)

    def _fetch(self, item: WorkItem) -> LocalVideo:
        started, unlimited = time.monotonic(), ALLOWED.set(item.allowed)
        try:
            video, is_new = self._sources.fetch(item)
        finally:
            ALLOWED.reset(unlimited)
            self.fetched_s += time.monotonic() - started
        if is_new:
            self.fetched_bytes += video.path.stat().st_size
        return video

    def _ref(self, item: WorkItem, found_segments: int | None) -> ClipRef:
        return ref_of(item, self.sampling, None if self.pieces else found_segments)


def ref_of(item: WorkItem, sampling: SamplingConfig, found_segments: int | None = None) -> ClipRef:
    """Name the clip of an item, with secrets removed from its URI; only the plan keeps them.

    A row whose source could not be read counts as one clip.
    """
    total = item.num_segments or found_segments or 1
    name = clip_id(item.row_id, item.segment, total, sampling.max_clip_frames, sampling.fps)
    return ClipRef(name, item.row, item.segment, total, redact(item.source_uri))


@cache
def decoder_versions(config: DecodeConfig) -> dict[str, str]:
    """What a decoding child loads here: package metadata may describe other modules."""
    child = ChildProcess(config.memory_bytes, config.backends)
    child.kill()
    return child.versions


class _SourceFiles:
    def __init__(self, options: StoreOptions, max_bytes: int, num_kept: int) -> None:
        self._options = options
        self._max_bytes = max_bytes
        self._num_kept = num_kept
        self._embedded = EmbeddedVideos(options)
        self.version: int | None = None  # Of the last source requested; None if unknown
        self._held: dict[tuple[str, ArchiveMember | None], LocalVideo] = {}  # Oldest first

    def fetch(self, item: WorkItem) -> tuple[LocalVideo, bool]:
        """Return an item's source, and whether it was newly fetched."""
        source = item.source_uri, item.member
        held = self._held.pop(source, None)
        is_new = held is None
        while len(self._held) >= self._num_kept:
            self._held.pop(next(iter(self._held))).close()
        if held is None or held.copy is None:  # used in place, it may have changed
            held = self._get(item)
        self._held[source] = held
        self.version = held.version
        return held, is_new

    def _get(self, item: WorkItem) -> LocalVideo:
        """Fetch an item's source, or what has its name now if the item follows that."""
        uri, member, version = item.source_uri, item.member, item.version
        get = partial(fetch_to_file, options=self._options, max_bytes=self._max_bytes)
        if member is not None and member.column is not None:
            planned = None if item.follows else version
            return self._embedded.copy(member, self._max_bytes, planned)
        if member is None:
            return get(uri, None, version=None if item.follows else version)
        try:
            return get(uri, member, version=version)
        except SourceError as error:
            if error.reason != "changed" or not item.follows:
                raise
        ending = uri.rpartition(".")[2].lower()
        row = find_members(member.archive_uri, ending, self._options.model_dump_json()).get(uri)
        if row is None:
            raise SourceError("missing", f"{uri}: the tar was packed again, without this video")
        member = replace(member, offset=row["member_offset"], size=row["member_size"])
        return get(uri, member, version=row["source_version"])

    def release(self) -> None:
        """Drop all copies."""
        while self._held:
            self.drop_newest()

    def drop_newest(self) -> None:
        self._held.popitem()[1].close()
