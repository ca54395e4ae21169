"""Frozen values that travel between stages. Imports nothing from tokpipe.

Shape letters: T frames, H rows and W columns of pixels; t, h, w the latent grid.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import Field

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Stage = Literal["decode", "encode", "write"]

# Constraints of what is read back from an output, which anybody may have written.
Count = Annotated[int, Field(ge=0, le=2**40)]
Positive = Annotated[int, Field(gt=0, le=2**31 - 1)]
CodeDtype = Literal["uint16", "uint32", "uint64"]
Codes: TypeAlias = "NDArray[np.uint16] | NDArray[np.uint32] | NDArray[np.uint64]"
Side = Annotated[int, Field(gt=0, le=2**15 - 1)]  # Of a grid of codes, and a stride
# Codes per position, and the sizes of their codebooks: not written where there is one code.
PerPosition = Annotated[Side, Field(exclude_if=lambda c: c == 1)]
Sizes = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(exclude_if=operator.not_)]
Flag = Annotated[bool, Field(exclude_if=operator.not_)]
_NAME = r"[A-Za-z0-9_-][A-Za-z0-9_.-]*\.parquet"
SHARD_KEY, SIDE_TABLE_KEY, SHA256 = f"^shards/{_NAME}$", f"^clips/{_NAME}$", "^[0-9a-f]{64}$"
Sha256 = Annotated[str, Field(pattern=SHA256)]

REMOVED = "removed"  # Why a clip that was taken out is rejected, by stage ``"remove"``
STAGES: tuple[Stage, ...] = ("decode", "encode", "write")  # In pipeline order


class Travels:
    """Makes a frozen value fast to pickle, as its class and its fields.

    The default of dataclasses with slots looks up the fields each time and takes ten times as
    long, which was half of a driver's time in jobs with small clips.
    """

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), tuple([getattr(self, name) for name in self.__slots__])


@dataclass(frozen=True, slots=True)
class ArchiveMember(Travels):
    """A video inside a tar: ``size`` bytes from ``offset``, read in place. With a ``column``, it is
    the value of that column in row ``offset`` of a Parquet table."""

    archive_uri: str
    offset: int
    size: int
    column: str | None = None


class Media(NamedTuple):
    """What the files of a source may be, by its settings of these names."""

    media: str = "video"
    animation_as_picture: bool = False


VIDEO = Media()


@dataclass(frozen=True, slots=True)
class WorkItem(Travels):
    """One clip to make: a plan row, or one segment of a row whose source is cut.

    ``row`` is the position in the stored plan, which never changes. ``num_segments`` is known once
    the source's header has been read: None in the first item of segment 0, never in later ones.
    """

    row: int
    row_id: str  # Clip id of the whole row; ids of segments are derived from it
    source_uri: str  # The video, or ``<archive uri>#<member name>``
    member: ArchiveMember | None = None
    start_s: float | None = None
    end_s: float | None = None
    segment: int = 0
    num_segments: int | None = None
    piece: int = 0  # Piece of a streamed clip to decode; streamed clips are not cut into segments
    num_pieces: int | None = None  # Known once piece 0 is decoded
    problem: str | None = None  # Why planning rejects the row: a null URI, end before start
    version: int | None = None  # Identifies the content as planned, or first read; None if unknown
    follows: bool = False  # Whether to decode what has the source's name now, if another version
    allowed: tuple[str, ...] | None = ()
    """Prefixes below which web requests for it have to stay. With none, any public address is
    allowed, and with None also that which the job's author wrote."""
    media: Media = VIDEO


@dataclass(frozen=True, slots=True)
class ClipRef(Travels):
    """Identifies one clip in pixels, codes, receipts and rejections."""

    clip_id: str
    row: Count
    segment: Count
    num_segments: Positive
    source_uri: str


@dataclass(frozen=True, slots=True)
class Cut:
    """How a span of frames is divided: frames of the first part, and of each later part."""

    first: int
    later: int

    def bounds(self, part: int) -> tuple[int, int]:
        """Return (first, end) of a part, in frames, end exclusive, in a span long enough."""
        if part == 0:
            return 0, self.first
        start = self.first + (part - 1) * self.later
        return start, start + self.later

    def num_parts(self, num_frames: int) -> int:
        """Return the number of parts of a span of ``num_frames`` frames; 0 for no frames."""
        return -(-max(num_frames - self.first, 0) // self.later) + (num_frames > 0)


@dataclass(frozen=True, slots=True)
class Piece(Travels):
    """A part of a streamed clip. Clips that are not streamed are one piece."""

    index: int = 0
    num_pieces: int = 1
    first_frame: int = 0  # Position of the piece's first frame in the clip

    @property
    def is_last(self) -> bool:
        return self.index == self.num_pieces - 1


@dataclass(frozen=True, slots=True)
class DecodedClip(Travels):
    """The pixels of one clip or one piece, resampled and resized."""

    ref: ClipRef
    frames: NDArray[np.uint8]  # (T, H, W, 3) RGB
    pts_s: NDArray[np.float64]  # (T,) presentation times, from the start of the video stream
    fps: float
    backend: str
    piece: Piece = Piece()
    marks: tuple[str, ...] = ()  # For users of the clip: ``"damaged"`` if video is missing
    damage: str | None = None  # What is missing, for people, if it is marked ``"damaged"``
    version: int | None = None  # Identifies the content of the source that was decoded
    source_sha256: str = ""  # Of its bytes, in hex; empty if it changed meanwhile


@dataclass(frozen=True, slots=True)
class ChunkSpan(Travels):
    """Frames that are encoded together, and which of their latent frames are kept.

    The encoder sees ``num_input_frames`` frames, from ``first_frame - num_context_frames`` on. The
    first ``num_dropped_latents`` latent frames are dropped.
    """

    index: int
    first_frame: int  # First frame of the resampled clip whose latent is kept
    num_frames: int  # Real frames that the kept latent frames cover
    num_pad_frames: int  # Repeats of the clip's last frame at the end
    num_context_frames: int  # Earlier frames that are encoded only as context (policy ``overlap``)
    num_dropped_latents: int
    first_is_image: bool  # The first latent frame kept covers one frame, while others cover more

    @property
    def num_input_frames(self) -> int:
        return self.num_context_frames + self.num_frames + self.num_pad_frames


@dataclass(frozen=True, slots=True)
class EncodedClip(Travels):
    """The codes of one clip or one piece, by chunk."""

    ref: ClipRef
    chunks: tuple[ChunkSpan, ...]
    codes: tuple[Codes, ...]  # (t, h, w) or (t, h, w, c) of each chunk, in the output's dtype
    pts_s: NDArray[np.float64]
    fps: float
    backend: str
    marks: tuple[str, ...] = ()  # Marks from decoding and encoding
    damage: str | None = None
    encoder: str = ""  # Encoder class; those of a streamed clip's pieces are joined by `` + ``
    source_sha256: str = ""  # See ``DecodedClip``
    version: int | None = None  # See ``DecodedClip``

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w). All clips in a shard have the same."""
        h, w = self.codes[0].shape[1:3]
        return h, w

    @property
    def num_codes(self) -> int:
        return sum(block.size for block in self.codes)


@dataclass(frozen=True, slots=True)
class Rejected(Travels):
    """Takes the place of a clip that was rejected, with the reason."""

    ref: ClipRef
    stage: str  # ``"plan"``, ``"decode"``, ``"encode"``, ``"runtime"`` or ``"remove"``
    reason: str  # Short, stable word to group by: ``"no_video"``, ``"truncated"``, ``"timeout"``
    message: str
    backend: str | None = None
    attempts: Count = 1
    error: str | None = None  # Class of the exception that caused it; None if tokpipe decided


@dataclass(frozen=True, slots=True)
class Failed(Travels):
    """In place of a clip that failed, perhaps because of the node: the runtime may try again."""

    ref: ClipRef
    reason: str  # Reason of the rejection if trying again does not help
    message: str
    error: str | None = None
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt(Travels):
    """Describes a shard that a writer has stored. The shard counts once the manifest lists it."""

    shard: Annotated[str, Field(pattern=SHARD_KEY)]  # Its key in the output
    size_bytes: Count
    sha256: Sha256
    num_rows: Count
    num_codes: Count
    num_frames: Count  # Real frames, without padding and context
    grid: tuple[Side, Side]
    side_table: Annotated[str, Field(pattern=SIDE_TABLE_KEY)]
    side_table_sha256: Sha256
    side_table_size_bytes: Count
    clips: tuple[ClipRef, ...]
    encoders: dict[str, Count] = field(default_factory=dict)
    """Clips by encoder class; empty if an earlier version wrote the shard."""


class EncoderPath(NamedTuple):
    """How an encoder on a GPU computes: on its fastest path, or why not."""

    dtype: str
    norms: str  # ``triton``, ``torch: `` and why, or ``other``: the tokenizer has none of ours
    graphs: str  # ``on`` and for how many shapes, or ``off: `` and why
    batch_chunks: int  # Now: fewer than the job says after its GPU ran out of memory
    cudnn: str
    slow: tuple[str, ...] = ()  # Why it is slower, without numbers that differ by encoder
