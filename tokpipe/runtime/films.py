"""Films: clips that are streamed, decoded and encoded in pieces. Pure state, as the dispatcher is.

Piece 0 is decoded like any clip, and tells how many there are. From then on:

- Pieces are encoded in order, one at a time, each from its own pixels and from the state that the
  attempt for the piece before left. That state is held until the next one exists, and no longer.
- At most ``AHEAD`` pieces beyond the one whose turn it is are decoded or being decoded.
- A lost worker costs the piece that it was at: its inputs are still held, so its lease is given
  again. Lost pixels, codes or states cost the film all it had: it ends, and starts again from
  its first piece as another film with another id. What is heard of leases with the old id is moot.
- However a film ends, all that it holds is released: see ``held``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tokpipe.runtime.protocol import (
    ActorId,
    AttemptId,
    DecodeLease,
    EncodedClips,
    EncodedInfo,
    EncodeLease,
    FilmId,
    Pick,
)
from tokpipe.types import Stage, WorkItem

AHEAD = 2
"""One piece is ready when its turn comes, and one is on its way."""
FILMS_PER_ENCODER = 2
"""Films at work at a time: while a piece of one is encoded, the state of the other travels."""


@dataclass(slots=True)
class Film:
    """One life of a streamed clip, from its first decoded piece to its last encoded one."""

    film_id: FilmId
    item: WorkItem
    """Its first piece, with the number of pieces: what starts it again."""
    num_pieces: int
    pixels: dict[int, Pick]
    """Decoded pieces that are not encoded."""
    decoding: set[int] = field(default_factory=set)
    """Pieces whose decode lease is out."""
    is_encoding: bool = False
    """The encode lease of the next piece is out."""
    codes: list[Pick] = field(default_factory=list)
    """The codes of each encoded piece, in order."""
    state: AttemptId | None = None
    """The attempt that left the state after the last of them; none after the last piece."""
    num_codes: int = 0
    encode_s: float = 0.0
    """Seconds that encoders have spent on it."""
    seats: dict[Stage, ActorId] = field(default_factory=dict)
    """The actor of each stage that had a piece last: it has the source file, or the state."""

    @property
    def next_piece(self) -> int:
        """The piece whose turn it is to be encoded."""
        return len(self.codes)

    @property
    def is_decoded(self) -> bool:
        return self.next_piece + len(self.pixels) == self.num_pieces

    @property
    def is_encoded(self) -> bool:
        return self.next_piece == self.num_pieces

    @property
    def piece_to_decode(self) -> int | None:
        """The next piece to give a decoder, if it is time for one."""
        last = min(self.next_piece + AHEAD, self.num_pieces - 1)
        for piece in range(self.next_piece, last + 1):
            if piece not in self.pixels and piece not in self.decoding:
                return piece
        return None

    @property
    def can_encode(self) -> bool:
        return not self.is_encoding and self.next_piece in self.pixels

    @property
    def result(self) -> EncodedClips:
        """The whole clip, once every piece is encoded."""
        return EncodedClips((self.item,), tuple(self.codes), self.encode_s)

    @property
    def held(self) -> Iterator[Pick]:
        """Outputs that the film holds; its state is part of the last piece's."""
        yield from self.pixels.values()
        yield from self.codes


class Films:
    """All films that have not ended, and the only one to change them.

    So many are at work that encoders need not wait for a piece. The others wait with the pixels
    of their first one, and with those take their share of what may wait for encoders.
    """

    def __init__(self) -> None:
        self.waiting: deque[Film] = deque()
        self.at_work: dict[FilmId, Film] = {}
        self.to_decode: dict[FilmId, Film] = {}
        """Those at work that have a lease for a decoder, longest waiting first."""
        self.to_encode: dict[FilmId, Film] = {}

    def __len__(self) -> int:
        return len(self.waiting) + len(self.at_work)

    def start(self, film_id: FilmId, item: WorkItem, num_pieces: int, pixels: Pick) -> None:
        """Take in a film whose first piece is decoded."""
        item = replace(item, piece=0, num_pieces=num_pieces)
        self.waiting.append(Film(film_id, item, num_pieces, {0: pixels}))

    def admit(self, num_encoders: int) -> None:
        """Let waiting films go to work while there is room."""
        while self.waiting and len(self.at_work) < FILMS_PER_ENCODER * max(1, num_encoders):
            film = self.waiting.popleft()
            self.at_work[film.film_id] = film
            self._queue(film)

    def of(self, lease: DecodeLease | EncodeLease) -> Film | None:
        """The film that a lease is part of; None once it has ended, and for other leases."""
        return None if lease.film is None else self.at_work.get(lease.film)

    def lease_decode(self, film: Film) -> DecodeLease:
        piece = film.piece_to_decode
        assert piece is not None
        film.decoding.add(piece)
        self._queue(film)
        return DecodeLease((replace(film.item, piece=piece),), film.film_id)

    def lease_encode(self, film: Film) -> EncodeLease:
        assert film.can_encode
        film.is_encoding = True
        self._queue(film)
        piece = film.next_piece
        item = replace(film.item, piece=piece)
        return EncodeLease((item,), film.pixels[piece], film.film_id, film.state)

    def take_back(self, film: Film, lease: DecodeLease | EncodeLease) -> None:
        """A lease came to nothing, and is to be given again."""
        if isinstance(lease, DecodeLease):
            film.decoding.discard(lease.items[0].piece)
        else:
            film.is_encoding = False
        self._queue(film)

    def decoded(self, film: Film, piece: int, pixels: Pick) -> None:
        """The pixels of a piece are there."""
        film.decoding.discard(piece)
        film.pixels[piece] = pixels
        self._queue(film)

    def encoded(
        self, film: Film, attempt: AttemptId, info: EncodedInfo, encode_s: float
    ) -> tuple[Pick, AttemptId | None]:
        """The codes of the next piece are there; return the pixels and state that are used up."""
        pixels, state = film.pixels.pop(film.next_piece), film.state
        film.is_encoding = False
        film.codes.append(Pick(attempt, (0,)))
        film.num_codes += info.num_codes
        film.encode_s += encode_s
        film.state = None if film.is_encoded else attempt
        self._queue(film)
        return pixels, state

    def end(self, film: Film) -> None:
        """Forget a film, for whatever reason; what it holds is the caller's to release."""
        for films in (self.at_work, self.to_decode, self.to_encode):
            films.pop(film.film_id, None)

    def _queue(self, film: Film) -> None:
        """Put a film at the end of the queues that it belongs to now, and of no other."""
        self.to_decode.pop(film.film_id, None)
        self.to_encode.pop(film.film_id, None)
        if film.piece_to_decode is not None:
            self.to_decode[film.film_id] = film
        if film.can_encode:
            self.to_encode[film.film_id] = film
