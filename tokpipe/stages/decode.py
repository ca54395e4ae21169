"""The decode stage: work items -> pixels, resampled and resized, or rejections."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.errors import SourceError
from tokpipe.identity.ids import clip_id
from tokpipe.media.decoder import Probe, Undecodable, VideoDecoder
from tokpipe.storage.fetch import fetch_to_file
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

KEPT_SOURCES = 8
"""Films that one decoder may be in the middle of, and so files that it may hold."""

T = TypeVar("T")
_Source = tuple[str, ArchiveMember | None]


class DecodeStage:
    """Turns work items into decoded clips, one for one and in order.

    A clip that cannot be decoded through its own fault becomes a ``Rejected`` in its place, and one
    whose web server does not answer a ``Failed``; anything else that goes wrong raises. Between
    calls it keeps source files and the decoding child, which change no result: any item can be run
    again after a crash.

    With ``pieces`` no source is cut into clips: an item is a piece of its row's one clip.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        frames: FramesConfig,
        decode: DecodeConfig,
        storage: StoreOptions,
        pieces: Cut | None = None,
    ) -> None:
        self.sampling = sampling
        self.frames = frames
        self.decode = decode
        self.storage = storage
        self.pieces = pieces
        self.fetched_s = 0.0
        """Seconds that this process has spent on fetching sources."""
        self.fetched_bytes = 0
        """Bytes of the sources that it has fetched, or found on local disk."""

    def setup(self, scratch: Path) -> None:
        """Runs once, inside the actor. ``scratch`` is a local folder for this actor alone.

        Raises:
            ConfigError: the decoder that the job names is not installed.
        """
        self._decoder = VideoDecoder(self.decode, self.sampling, self.frames, pieces=self.pieces)
        self._sources = _SourceFiles(scratch, self.storage, self.decode.max_source_bytes)

    def close(self) -> None:
        """End the decoding child and remove what was fetched."""
        self._decoder.close()
        self._sources.release()

    def process(self, items: list[WorkItem]) -> list[DecodedClip | Rejected | Failed]:
        """Decode each item.

        Raises:
            StorageError: the store kept failing.
            RuntimeFault: decoding children do not start, or keep being killed from outside.
        """
        return [self._decode(item) for item in items]

    def probe(self, item: WorkItem) -> Probe | Rejected | Failed:
        """Say what the item's row will give, without decoding it.

        Raises:
            As ``process``.
        """
        return self._tried(
            item, partial(self._decoder.probe, start_s=item.start_s, end_s=item.end_s)
        )

    def _decode(self, item: WorkItem) -> DecodedClip | Rejected | Failed:
        in_pieces = self.pieces is not None
        video = self._tried(
            item,
            lambda path: self._decoder.decode(
                path,
                start_s=item.start_s,
                end_s=item.end_s,
                segment=item.piece if in_pieces else item.segment,
                num_segments=item.num_pieces if in_pieces else item.num_segments,
            ),
        )
        if isinstance(video, Rejected | Failed):
            return video
        piece = Piece()
        if self.pieces is not None:
            piece = Piece(item.piece, video.num_segments, self.pieces.bounds(item.piece)[0])
            if not piece.is_last:
                self._sources.keep()
        ref = self._ref(item, video.num_segments)
        return DecodedClip(
            ref,
            video.frames,
            video.pts_s,
            video.fps,
            video.backend,
            piece,
            marks=() if video.damage is None else ("damaged",),
            damage=video.damage,
        )

    def _tried(self, item: WorkItem, call: Callable[[Path], T]) -> T | Rejected | Failed:
        """Fetch an item's source and give it to ``call``; what they refuse is told as a value."""
        if item.problem is not None:
            return Rejected(self._ref(item, None), "plan", "bad_row", item.problem)
        try:
            return call(self._fetch(item))
        except Undecodable as refusal:
            ref = self._ref(item, refusal.num_segments)
            return Rejected(
                ref,
                "decode",
                refusal.reason,
                str(refusal),
                refusal.backend,
                error=refusal.error,
            )
        except SourceError as refusal:
            ref, error = self._ref(item, None), _error_behind(refusal)
            if refusal.reason == "unreachable":  # now; perhaps not for good
                return Failed(ref, refusal.reason, str(refusal), error)
            return Rejected(ref, "decode", refusal.reason, str(refusal), error=error)

    def _fetch(self, item: WorkItem) -> Path:
        started = time.monotonic()
        try:
            path, is_new = self._sources.fetch(item.source_uri, item.member)
        finally:
            self.fetched_s += time.monotonic() - started
        if is_new:
            self.fetched_bytes += path.stat().st_size
        return path

    def _ref(self, item: WorkItem, found_segments: int | None) -> ClipRef:
        """Name the clip. A row whose source could not be read counts as one clip.

        Only the plan keeps a URI by which a source behind a signature or a password is fetched.
        """
        total = 1 if self.pieces else item.num_segments or found_segments or 1
        sampling = self.sampling
        name = clip_id(item.row_id, item.segment, total, sampling.max_clip_frames, sampling.fps)
        return ClipRef(name, item.row, item.segment, total, redact(item.source_uri))


def _error_behind(refusal: SourceError) -> str | None:
    """Class name of the error that began it all, which is nearest to the truth."""
    error: BaseException = refusal
    while error.__cause__ is not None:
        error = error.__cause__
    return None if error is refusal else type(error).__name__


class _SourceFiles:
    """Local copies: of the source last asked for, which serves all segments of a film, and of
    those whose next pieces will be asked for.

    A film may be finished elsewhere, so copies that were kept go when others are: there are never
    more than ``KEPT_SOURCES`` of them.
    """

    def __init__(self, folder: Path, options: StoreOptions, max_bytes: int) -> None:
        self._folder = folder
        self._options = options
        self._max_bytes = max_bytes
        self._paths: dict[_Source, Path] = {}
        """By source, the one last asked for at the end."""
        self._kept: set[_Source] = set()

    def fetch(self, uri: str, member: ArchiveMember | None) -> tuple[Path, bool]:
        """Return a source's local file, and whether it was not at hand before."""
        source = uri, member
        self._kept.discard(source)  # unless the piece now asked for is not the last
        for other in [other for other in self._paths if other not in self._kept]:
            if other != source:
                self._drop(other)
        path = self._paths.pop(source, None)
        is_new = path is None
        if path is None:
            path = fetch_to_file(
                uri, member, self._folder, options=self._options, max_bytes=self._max_bytes
            )
        self._paths[source] = path
        return path, is_new

    def keep(self) -> None:
        """Keep the source last asked for until it is asked for again."""
        self._kept.add(next(reversed(self._paths)))
        if len(self._kept) > KEPT_SOURCES:
            self._drop(next(source for source in self._paths if source in self._kept))

    def release(self) -> None:
        """Remove all copies."""
        for source in list(self._paths):
            self._drop(source)

    def _drop(self, source: _Source) -> None:
        """Remove a copy; a source that lies on local disk is used in place, and stays."""
        self._kept.discard(source)
        path = self._paths.pop(source)
        if path.parent == self._folder:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
