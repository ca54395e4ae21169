"""Frozen values that travel between stages. Imports nothing of tokpipe.

Shape letters: T frames, H rows and W columns of pixels; t, h, w the latent grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Stage = Literal["decode", "encode", "write"]
STAGES: tuple[Stage, ...] = ("decode", "encode", "write")
"""In the order that a clip passes them."""


class Travels:
    """A frozen value that is pickled often: as its class and its fields.

    What dataclasses with slots do by themselves looks the fields up each time, and takes ten times
    as long; a job of small clips spent half of its driver's time on that.
    """

    __slots__: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        return type(self), tuple([getattr(self, name) for name in self.__slots__])


@dataclass(frozen=True, slots=True)
class ArchiveMember(Travels):
    """A video inside a tar, read in place: ``size`` bytes from ``offset`` of the archive."""

    archive_uri: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class WorkItem(Travels):
    """One clip to make: a plan row, or one segment of a row whose source is cut.

    ``row`` is the position in the stored plan, which never changes once written. How many
    segments a source has is known only after its header was read, so the item of segment 0
    starts with ``num_segments=None``; items of later segments carry the number.
    """

    row: int
    row_id: str
    """Clip id of the whole row; a cut row's segments get ids derived from it."""
    source_uri: str
    """The video; a member of an archive is ``<archive uri>#<member name>``."""
    member: ArchiveMember | None = None
    start_s: float | None = None
    end_s: float | None = None
    segment: int = 0
    num_segments: int | None = None
    piece: int = 0
    """Which piece of the clip to decode, where clips are streamed and none is cut."""
    num_pieces: int | None = None
    """Known, as ``num_segments`` is, once piece 0 was decoded."""
    problem: str | None = None
    """Why the row cannot be a clip, when planning already knows (a null URI, end before start)."""


@dataclass(frozen=True, slots=True)
class ClipRef(Travels):
    """Names one clip, everywhere: in pixels, in codes, in receipts and in rejections."""

    clip_id: str
    row: int
    segment: int
    num_segments: int
    source_uri: str


@dataclass(frozen=True, slots=True)
class Cut:
    """How the frames of a span are divided: so many for the first part, so many for each later."""

    first: int
    later: int

    def bounds(self, part: int) -> tuple[int, int]:
        """First frame of a part, and the frame after its last if the span is long enough."""
        if part == 0:
            return 0, self.first
        start = self.first + (part - 1) * self.later
        return start, start + self.later

    def num_parts(self, num_frames: int) -> int:
        """Parts of a span of ``num_frames`` frames; none without a frame."""
        return -(-max(num_frames - self.first, 0) // self.later) + (num_frames > 0)


@dataclass(frozen=True, slots=True)
class Piece(Travels):
    """What part of its clip is at hand, where long clips are streamed. A short one is one piece."""

    index: int = 0
    num_pieces: int = 1
    first_frame: int = 0
    """Position in the clip of the piece's first frame."""

    @property
    def is_last(self) -> bool:
        return self.index == self.num_pieces - 1


@dataclass(frozen=True, slots=True)
class DecodedClip(Travels):
    """The pixels of one clip, or of one piece of it, resampled and resized."""

    ref: ClipRef
    frames: NDArray[np.uint8]
    """(T, H, W, 3) RGB."""
    pts_s: NDArray[np.float64]
    """(T,) true presentation time of each frame, from the start of the source's video stream."""
    fps: float
    backend: str
    piece: Piece = Piece()
    marks: tuple[str, ...] = ()
    """What a user of the clip should know: ``"damaged"`` if its video is not whole."""
    damage: str | None = None
    """What is missing, for a person, where the clip is marked ``"damaged"``."""


@dataclass(frozen=True, slots=True)
class ChunkSpan(Travels):
    """Frames encoded in one go, and which of the latent frames they give are kept.

    The encoder sees ``num_context_frames + num_frames + num_pad_frames`` frames, the first of
    which is frame ``first_frame - num_context_frames`` of the clip. Its first
    ``num_dropped_latents`` latent frames are dropped.
    """

    index: int
    first_frame: int
    """First real frame whose latent is kept, counted in the resampled clip."""
    num_frames: int
    """Real frames that the kept latent frames stand for."""
    num_pad_frames: int
    """Repeats of the clip's last frame at the end."""
    num_context_frames: int
    """Frames encoded in front only to be seen (policy ``overlap``)."""
    num_dropped_latents: int
    first_is_image: bool
    """The first latent frame kept stands for a single frame, where others stand for several."""

    @property
    def num_input_frames(self) -> int:
        return self.num_context_frames + self.num_frames + self.num_pad_frames


@dataclass(frozen=True, slots=True)
class EncodedClip(Travels):
    """The codes of one clip, or of one piece of it, chunk by chunk."""

    ref: ClipRef
    chunks: tuple[ChunkSpan, ...]
    codes: tuple[NDArray[np.uint16] | NDArray[np.uint32], ...]
    """One (t, h, w) array per chunk, in the dtype of the output."""
    pts_s: NDArray[np.float64]
    fps: float
    backend: str
    marks: tuple[str, ...] = ()
    """Those of the decoded clip, and of its encoding."""
    damage: str | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w): a shard holds one grid only."""
        _, h, w = self.codes[0].shape
        return h, w

    @property
    def num_codes(self) -> int:
        return sum(block.size for block in self.codes)


@dataclass(frozen=True, slots=True)
class Rejected(Travels):
    """A clip that was refused, with the reason: it takes the clip's place from then on."""

    ref: ClipRef
    stage: str
    """``"plan"``, ``"decode"``, ``"encode"`` or ``"runtime"``."""
    reason: str
    """Short stable word to group by: ``"no_video"``, ``"truncated"``, ``"timeout"`` ..."""
    message: str
    backend: str | None = None
    attempts: int = 1
    error: str | None = None
    """Class name of the exception behind it; None where the refusal is our own."""


@dataclass(frozen=True, slots=True)
class Failed(Travels):
    """A clip that a stage could not do, perhaps not through its own fault: it takes the clip's
    place in an answer. Whether it is tried again is the runtime's decision."""

    ref: ClipRef
    reason: str
    """What the rejection will say if trying again does not help, as in ``Rejected``."""
    message: str
    error: str | None = None
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt(Travels):
    """What a write actor returns for a shard it has put. Listed in the manifest, it exists."""

    shard: str
    """Key below the output, ``shards/<plan>-<lease>-<attempt>.parquet``."""
    size_bytes: int
    sha256: str
    num_rows: int
    num_codes: int
    num_frames: int
    """Real source frames, padding and context not counted."""
    grid: tuple[int, int]
    side_table: str
    """Key of the shard's per-clip table, ``clips/<same name>.parquet``."""
    side_table_sha256: str
    side_table_size_bytes: int
    clips: tuple[ClipRef, ...]
