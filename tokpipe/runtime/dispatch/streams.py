"""Streamed clips: decoded and encoded in pieces.

Piece 0 is decoded like any clip, and its answer says how many pieces there are. After that:

- Pieces are encoded in order, one at a time, each from its pixels and the state that encoding the
  previous piece left. A state is kept until the next one exists.
- At most ``AHEAD`` pieces beyond the one to encode next are decoded or being decoded.
- A lost worker costs one piece: its inputs are still held, so its lease is handed out again. Lost
  pixels, codes or states cost the whole clip: it restarts from its first piece under a new stream
  id, and answers to leases with the old id are ignored.
"""

from collections import deque
from dataclasses import dataclass, field, replace

from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.protocol import ActorId, AttemptId, Clip, Lease, Place, StreamId
from tokpipe.types import Stage, WorkItem

AHEAD = 2  # One piece is ready when its turn comes, and another is on its way
STREAMS_PER_ENCODER = 2  # In progress: while one is encoded, the state of the other travels


@dataclass(slots=True)
class StreamedClip:
    """One life of a streamed clip, from its first decoded piece to its last encoded one."""

    stream_id: StreamId
    item: WorkItem  # Its first piece, with the number of pieces: what a restart begins from
    num_pieces: int
    pixels: dict[int, Place]  # Pieces that are decoded but not encoded
    decoding: set[int] = field(default_factory=set)  # Pieces whose decode lease is out
    is_encoding: bool = False  # The encode lease of the next piece is out
    codes: list[Place] = field(default_factory=list)  # The codes of each encoded piece, in order
    state: AttemptId | None = None  # The attempt that left the latest state; None at first
    num_codes: int = 0
    encode_s: float = 0.0
    last_actor: dict[Stage, ActorId] = field(default_factory=dict)
    """Who had the latest piece, by stage: that actor has the source file, or is near the state."""

    @property
    def next_piece(self) -> int:
        """The piece to encode next."""
        return len(self.codes)

    @property
    def is_decoded(self) -> bool:
        return self.next_piece + len(self.pixels) == self.num_pieces

    @property
    def is_encoded(self) -> bool:
        return self.next_piece == self.num_pieces

    @property
    def piece_to_decode(self) -> int | None:
        """The next piece for a decoder, if it is time for one."""
        ahead = range(self.next_piece, min(self.next_piece + AHEAD + 1, self.num_pieces))
        return next((one for one in ahead if one not in {*self.pixels, *self.decoding}), None)

    @property
    def can_encode(self) -> bool:
        return not self.is_encoding and self.next_piece in self.pixels


class StreamedClips:
    """All streamed clips that have not ended, and the only code that changes them. Enough are in
    progress to keep encoders busy; the others wait with their first piece's pixels."""

    def __init__(self) -> None:
        self.waiting: deque[StreamedClip] = deque()
        self._in_progress: dict[StreamId, StreamedClip] = {}
        self.to_decode: dict[StreamId, StreamedClip] = {}  # Longest waiting first
        self.to_encode: dict[StreamId, StreamedClip] = {}  # The same

    def __len__(self) -> int:
        return len(self.waiting) + len(self._in_progress)

    @property
    def pieces(self) -> tuple[int, int, float]:
        """Of unfinished clips: encoded pieces, all pieces, and clips that the encoded are worth."""
        clips = [(one.next_piece, one.num_pieces) for one in self._in_progress.values()]
        clips += [(0, one.num_pieces) for one in self.waiting]
        return sum(a for a, _ in clips), sum(b for _, b in clips), sum(a / b for a, b in clips)

    def start(self, stream_id: StreamId, item: WorkItem, num_pieces: int, pixels: Place) -> None:
        """Add a clip whose first piece is decoded."""
        item = replace(item, piece=0, num_pieces=num_pieces)
        self.waiting.append(StreamedClip(stream_id, item, num_pieces, {0: pixels}))

    def admit(self, num_encoders: int) -> None:
        """Let waiting clips start while there is room."""
        most = STREAMS_PER_ENCODER * max(1, num_encoders)
        while self.waiting and len(self._in_progress) < most:
            clip = self.waiting.popleft()
            self._in_progress[clip.stream_id] = clip
            self._queue(clip)

    def of(self, lease: Lease) -> StreamedClip | None:
        """The clip that a lease is a piece of, if it is of one that has not ended."""
        return None if lease.stream is None else self._in_progress.get(lease.stream)

    def has_ended(self, lease: Lease) -> bool:
        """Whether a lease is a piece of a clip that has ended."""
        return lease.stream is not None and lease.stream not in self._in_progress

    def lease_decode(self, clip: StreamedClip, actor: ActorId) -> Lease:
        piece = clip.piece_to_decode
        assert piece is not None
        clip.decoding.add(piece)
        clip.last_actor["decode"] = actor
        self._queue(clip)
        return Lease("decode", (Clip(replace(clip.item, piece=piece)),), clip.stream_id)

    def lease_encode(self, clip: StreamedClip, actor: ActorId) -> Lease:
        assert clip.can_encode
        clip.is_encoding = True
        clip.last_actor["encode"] = actor
        self._queue(clip)
        piece = clip.next_piece
        whole = Clip(replace(clip.item, piece=piece), (clip.pixels[piece],))
        return Lease("encode", (whole,), clip.stream_id, clip.state)

    def take_back(self, lease: Lease) -> None:
        """A lease had no result; hand it out again, unless its clip has ended."""
        if (clip := self.of(lease)) is None:
            return
        if lease.stage == "decode":
            clip.decoding.discard(lease.clips[0].item.piece)
        else:
            clip.is_encoding = False
        self._queue(clip)

    def decoded(self, clip: StreamedClip, piece: int, pixels: Place) -> None:
        clip.decoding.discard(piece)
        clip.pixels[piece] = pixels
        self._queue(clip)

    def encoded(
        self, clip: StreamedClip, attempt: AttemptId, info: protocol.EncodedInfo, encode_s: float
    ) -> tuple[Place, AttemptId | None]:
        """An attempt has encoded the next piece, maybe the last; return the inputs it used up."""
        pixels, state = clip.pixels.pop(clip.next_piece), clip.state
        clip.is_encoding = False
        clip.codes.append(Place(attempt, 0))
        clip.num_codes += info.num_codes
        clip.encode_s += encode_s
        if clip.is_encoded:
            self.end(clip)
        else:
            clip.state = attempt
            self._queue(clip)
        return pixels, state

    def end(self, clip: StreamedClip) -> None:
        """Forget a clip; the caller releases what it holds."""
        for clips in (self._in_progress, self.to_decode, self.to_encode):
            clips.pop(clip.stream_id, None)

    def _queue(self, clip: StreamedClip) -> None:
        """Move a clip to the end of the queues that it belongs to now, and out of the others."""
        self.to_decode.pop(clip.stream_id, None)
        self.to_encode.pop(clip.stream_id, None)
        if clip.piece_to_decode is not None:
            self.to_decode[clip.stream_id] = clip
        if clip.can_encode:
            self.to_encode[clip.stream_id] = clip
