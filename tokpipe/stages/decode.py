"""The decode stage: work items -> pixels, resampled and resized, or rejections."""

from __future__ import annotations

import contextlib
from pathlib import Path

from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.errors import SourceError
from tokpipe.ids import clip_id
from tokpipe.media.decoder import Refused, VideoDecoder
from tokpipe.storage.fetch import fetch_to_file
from tokpipe.types import ArchiveMember, ClipRef, DecodedClip, Rejected, WorkItem


class DecodeStage:
    """Turns work items into decoded clips, one for one and in order.

    A clip that cannot be decoded through its own fault becomes a ``Rejected`` in its place;
    anything else that goes wrong raises. Between calls it keeps the last source file and the
    decoding child, which change no result: any item can be run again after a crash.
    """

    def __init__(
        self,
        sampling: SamplingConfig,
        frames: FramesConfig,
        decode: DecodeConfig,
        storage: StoreOptions,
    ) -> None:
        self.sampling = sampling
        self.frames = frames
        self.decode = decode
        self.storage = storage

    def setup(self, scratch: Path) -> None:
        """Runs once, inside the actor. ``scratch`` is a local folder for this actor alone.

        Raises:
            ConfigError: the decoder that the job names is not installed.
        """
        self._decoder = VideoDecoder(self.decode, self.sampling, self.frames)
        self._source = _SourceFile(scratch, self.storage, self.decode.max_source_bytes)

    def close(self) -> None:
        """End the decoding child and remove what was fetched."""
        self._decoder.close()
        self._source.release()

    def process(self, items: list[WorkItem]) -> list[DecodedClip | Rejected]:
        """Decode each item.

        Raises:
            StorageError: the store kept failing.
            RuntimeFault: decoding children do not start, or keep being killed from outside.
        """
        return [self._decode(item) for item in items]

    def _decode(self, item: WorkItem) -> DecodedClip | Rejected:
        if item.problem is not None:
            return Rejected(self._ref(item, None), "plan", "bad_row", item.problem)
        try:
            path = self._source.fetch(item.source_uri, item.member)
            video = self._decoder.decode(
                path,
                start_s=item.start_s,
                end_s=item.end_s,
                segment=item.segment,
                num_segments=item.num_segments,
            )
        except Refused as refusal:
            ref = self._ref(item, refusal.num_segments)
            return Rejected(ref, "decode", refusal.reason, str(refusal), refusal.backend)
        except SourceError as refusal:
            return Rejected(self._ref(item, None), "decode", refusal.reason, str(refusal))
        ref = self._ref(item, video.num_segments)
        return DecodedClip(ref, video.frames, video.pts_s, video.fps, video.backend)

    def _ref(self, item: WorkItem, found_segments: int | None) -> ClipRef:
        """Name the clip. A row whose source could not be read counts as one clip."""
        total = item.num_segments or found_segments or 1
        sampling = self.sampling
        name = clip_id(item.row_id, item.segment, total, sampling.max_clip_frames, sampling.fps)
        return ClipRef(name, item.row, item.segment, total, item.source_uri)


class _SourceFile:
    """The local copy of the source last asked for, which serves all segments of a film."""

    def __init__(self, folder: Path, options: StoreOptions, max_bytes: int) -> None:
        self._folder = folder
        self._options = options
        self._max_bytes = max_bytes
        self._held: tuple[str, ArchiveMember | None] | None = None
        self._path: Path | None = None

    def fetch(self, uri: str, member: ArchiveMember | None) -> Path:
        if self._path is None or (uri, member) != self._held:
            self.release()
            self._path = fetch_to_file(
                uri, member, self._folder, options=self._options, max_bytes=self._max_bytes
            )
            self._held = (uri, member)
        return self._path

    def release(self) -> None:
        """Remove the copy; a source that lies on local disk is used in place, and stays."""
        if self._path is not None and self._path.parent == self._folder:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        self._path = None
