"""The decode stage: turns work items into pixels, resampled and resized, or rejections."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Self, TypeVar

from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.errors import SourceError
from tokpipe.identity import clip_id
from tokpipe.media.child_process import ChildProcess
from tokpipe.media.decoder import Probe, VideoDecoder
from tokpipe.storage.client import ALLOWED, split_protocol
from tokpipe.storage.fetch import LocalVideo, check_folders, check_readable, fetch_to_file
from tokpipe.telemetry.redact import redact
from tokpipe.types import (
    VIDEO,
    ArchiveMember,
    ClipRef,
    Cut,
    DecodedClip,
    EncodedClip,
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

    def setup(self, reuses: Sequence[Any] = ()) -> None:  # ReusedOutput, which imports pyarrow
        """Start up inside the actor. NodeTrouble: the job's decoders do not load here."""
        self.reuses = reuses
        self._decoder = VideoDecoder(
            *(self.decode, self.sampling, self.frames), pieces=self.pieces, versions=self.versions
        )
        self._decoder.start()
        self._held: dict[tuple[str, ArchiveMember | None], LocalVideo] = {}  # Oldest first

    @cached_property
    def _copy_embedded(self) -> Callable[..., LocalVideo]:
        from tokpipe.formats.embedded import EmbeddedVideos  # pyarrow would double the memory

        return EmbeddedVideos(self.storage).copy

    def close(self) -> None:
        """End the decoding child and drop fetched sources."""
        self._decoder.close()
        while self._held:
            self._held.popitem()[1].close()

    def __enter__(self) -> Self:
        self.setup()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def process(self, items: list[WorkItem]) -> list[DecodedClip | EncodedClip | Rejected | Failed]:
        """Decode each item, or take its codes. Errors raised are those of a store or this node."""
        self.fetched_s, self.fetched_bytes = 0.0, 0
        return [
            known if (known := self._unread(item)) else self._tried(item, partial(self._made, item))
            for item in items
        ]

    def probe(self, item: WorkItem) -> Probe | Rejected | Failed:
        """Return what decoding the item's row would produce; raises as ``process`` does."""
        return self._tried(item, self._decoder.probe)

    def is_reused(self, item: WorkItem) -> bool:
        """Whether another output has an item's clip; raises as ``process`` does."""
        if not self.reuses:
            return False
        known = self._unread(item) or self._tried(item, partial(self._known, item))
        return isinstance(known, EncodedClip)

    def _unread(self, item: WorkItem) -> EncodedClip | None:
        return self._first(item, item.version, (one.find_unread(item) for one in self.reuses))

    def _known(self, item: WorkItem, file: LocalVideo, **span: Any) -> EncodedClip | None:
        probe = partial(self._decoder.probe, file, **span)
        found = (one.find(item, file.sha256, probe) for one in self.reuses)
        return self._first(item, file.version, found)

    def _first(
        self, item: WorkItem, version: int | None, found: Iterable[EncodedClip | None]
    ) -> EncodedClip | None:
        for clip in filter(None, found):
            ref = self._ref(item, clip.ref.num_segments)
            return replace(clip, ref=ref, version=version)
        return None

    def _made(self, item: WorkItem, file: LocalVideo, **span: Any) -> DecodedClip | EncodedClip:
        if clip := self._known(item, file, **span):
            return clip
        sha256, piece = file.sha256, Piece()
        segment, num_segments = item.segment, item.num_segments
        if self.pieces is not None:
            segment, num_segments = item.piece, item.num_pieces
        video = self._decoder.decode(file, segment=segment, num_segments=num_segments, **span)
        if file.sha256 != sha256:  # it was used in place, and has changed
            sha256 = ""
        if self.pieces is not None:
            piece = Piece(item.piece, video.num_segments, self.pieces.bounds(item.piece)[0])
            if piece.is_last:
                self._held.popitem()[1].close()
        ref = self._ref(item, video.num_segments)
        pixels = video.frames, video.pts_s, video.fps, video.backend
        marks = (*video.marks, *["damaged"] * (video.damage is not None))
        return DecodedClip(ref, *pixels, piece, marks, video.damage, file.version, sha256)

    def _tried(self, item: WorkItem, call: Callable[..., T]) -> T | Rejected | Failed:
        """Call a method of the decoder with an item's source and span; rejections are returned."""
        if item.problem is not None:
            return Rejected(self._ref(item, None), "plan", "bad_row", item.problem)
        try:
            video = self._fetch(item)
            try:
                return call(video, start_s=item.start_s, end_s=item.end_s, media=item.media)
            except (SourceError, RuntimeError) as error:
                check_readable(video.path)  # the fault may be that of a disk or a mount
                if video.parts and getattr(error, "reason", None) == "changed":
                    self._held.popitem()[1].close()  # the next item takes what is there now
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
        """Return an item's source, which is kept for its next items."""
        started, unlimited = time.monotonic(), ALLOWED.set(item.allowed)
        source = item.source_uri, item.member
        held = self._held.pop(source, None)
        is_new = held is None
        while len(self._held) >= (KEPT_SOURCES if self.pieces else 1):
            self._held.pop(next(iter(self._held))).close()
        try:
            if held is None or held.copy is None:  # used in place, it may have changed
                held = self._get(item)
        finally:
            ALLOWED.reset(unlimited)
            self.fetched_s += time.monotonic() - started
        self._held[source] = held
        if is_new and held.parts is None:
            self.fetched_bytes += held.path.stat().st_size
        return held

    def _count(self, num_bytes: int, seconds: float) -> None:
        self.fetched_bytes += num_bytes
        self.fetched_s += seconds

    def _get(self, item: WorkItem) -> LocalVideo:
        """Fetch an item's source, or what has its name now if the item follows that."""
        uri, member, max_bytes = item.source_uri, item.member, self.decode.max_source_bytes
        get = partial(fetch_to_file, uri, options=self.storage, max_bytes=max_bytes)
        planned = None if item.follows else item.version
        if member is None:
            # Other decoders need whole files, and so do outputs that are reused by their hash.
            is_whole = item.media != VIDEO or self.decode.backends != ("pyav",)
            is_whole |= bool(self.reuses) or item.start_s is item.end_s is None
            return get(None, version=planned, count=None if is_whole else self._count)
        if member.column is not None:
            return self._copy_embedded(member, max_bytes, planned)
        try:
            return get(member, version=item.version)
        except SourceError as error:
            if error.reason != "changed" or not item.follows:
                raise
        from tokpipe.sources.webdataset import find_members  # pyarrow, too

        ending = uri.rpartition(".")[2].lower()
        row = find_members(member.archive_uri, ending, self.storage.model_dump_json()).get(uri)
        if row is None:
            raise SourceError("missing", f"{uri}: the tar was packed again, without this video")
        member = replace(member, offset=row["member_offset"], size=row["member_size"])
        return get(member, version=row["source_version"])

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
def decoder_versions(config: DecodeConfig, has_pictures: bool) -> dict[str, str]:
    """What a decoding child loads here: package metadata may describe other modules."""
    child = ChildProcess(config.memory_bytes, (*config.backends, *["pillow"] * has_pictures))
    child.kill()
    return child.versions
