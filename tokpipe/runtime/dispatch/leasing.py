"""Hands waiting work to actors with room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tokpipe.runtime.dispatch.fleet import Fleet
from tokpipe.runtime.dispatch.flights import Flights
from tokpipe.runtime.dispatch.pools import Pools
from tokpipe.runtime.dispatch.protocol import ActorId, Dispatch, Emit, Lease
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.runtime.dispatch.streams import StreamedClips
from tokpipe.types import Stage

SHARDS_AHEAD = 4
"""Shards per write actor that may wait before encoders pause: codes are small, but they add up."""


@dataclass(frozen=True, slots=True)
class Leasing:
    """Which work goes out next, and to whom.

    Suspects first: each needs an idle actor. While any waits, nothing else of its stage goes out,
    or no actor would ever be idle. Then pieces of streamed clips, since the longest of them may
    be what the end of the job waits for.
    """

    fleet: Fleet
    flights: Flights
    queues: Queues
    streams: StreamedClips
    pools: Pools
    new_id: Iterator[int]
    emit: Emit

    def decodes(self, now: float) -> None:
        """Lease to decoders, as far as credits go: pixels that wait for encoders stay few.

        Suspects need no credits, because there are never more of them than one lease had clips;
        nor do the later pieces of streamed clips, of which each has few out.
        """
        self._suspects("decode", now)
        self._pieces_to_decode(now)
        pixels = self.queues.num_decoded + self.streams.num_waiting
        bound = 2 * max(1, self.fleet.num_up("encode")) + self.fleet.num_up("decode")
        while pixels + self.flights.num("decode") < bound and self._has_room("decode"):
            if (lease := self.queues.next_decode(self.pools.lease_clips)) is None:
                return
            self._send(lease, now)

    def encodes(self, now: float) -> None:
        """Lease to encoders, unless codes pile up because the output's store is slow."""
        if self.queues.num_shards > SHARDS_AHEAD * self.fleet.num("write"):
            return
        self._suspects("encode", now)
        while self._has_room("encode") and (clip := self.streams.next_to_encode()):
            actor = self.fleet.same_actor("encode", clip.last_actor.get("encode"))
            assert actor is not None
            self._send(self.streams.lease_encode(clip, actor), now, actor)
        while self._has_room("encode") and (lease := self.queues.next_encode()):
            self._send(lease, now)

    def writes(self, now: float) -> None:
        self._suspects("write", now)
        while self._has_room("write") and (lease := self.queues.next_write()):
            self._send(lease, now)

    def _suspects(self, stage: Stage, now: float) -> None:
        while self.fleet.has_idle(stage) and (lease := self.queues.next_suspect(stage)):
            self._send(lease, now, alone=True)

    def _pieces_to_decode(self, now: float) -> None:
        """Let streamed clips in progress have their next pieces decoded, in turns."""
        has_leased = True
        while has_leased and self._has_room("decode"):
            has_leased = False
            for clip in self.streams.to_decode():
                actor = self.fleet.same_actor("decode", clip.last_actor.get("decode"))
                if actor is not None:
                    self._send(self.streams.lease_decode(clip, actor), now, actor)
                    has_leased = True

    def _has_room(self, stage: Stage) -> bool:
        """Whether an ordinary lease may go out."""
        return self.fleet.has_room(stage) and not self.queues.has_suspects(stage)

    def _send(
        self, lease: Lease, now: float, actor: ActorId | None = None, *, alone: bool = False
    ) -> None:
        if actor is None:
            actor = self.fleet.actor_with_room(lease.stage)
            assert actor is not None
        attempt = next(self.new_id)
        self.fleet.assign(actor, attempt, now, alone=alone)
        self.flights.start(attempt, lease, actor)
        self.emit(Dispatch(attempt, actor, lease))
