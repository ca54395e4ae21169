"""Hands waiting work to actors with room.

Suspects first: each needs an idle actor. While any waits, nothing else of its stage goes out, or no
actor would ever be idle. Then pieces of streamed clips, since the longest of them may be what the
end of the job waits for.
"""

from tokpipe.runtime.dispatch.parts import Parts
from tokpipe.runtime.dispatch.protocol import ActorId, Dispatch, Lease
from tokpipe.types import Stage

SHARDS_AHEAD = 4
"""Shards per write actor that may wait before encoders pause: codes are small, but they add up."""


def decodes(parts: Parts) -> None:
    """Lease to decoders as far as credits go, so that few pixels wait for encoders.

    Suspects need no credits, because there are never more of them than one lease had clips;
    nor do the later pieces of streamed clips, of which each has few out.
    """
    fleet, queues = parts.fleet, parts.queues
    _suspects(parts, "decode")
    _pieces_to_decode(parts)
    clips = parts.pools.lease_clips
    pixels = queues.num_decoded / clips + len(parts.streams.waiting)
    of_encoder = 2 * max(1.0, parts.pools.limits.batch_chunks / clips)
    bound = of_encoder * max(1, fleet.num_up["encode"]) + fleet.num_up["decode"]
    while pixels + parts.flights.num["decode"] < bound and (actor := _room(parts, "decode")):
        if (lease := queues.next_decode(clips)) is None:
            return
        _send(parts, lease, actor)


def encodes(parts: Parts) -> None:
    """Lease to encoders, unless codes pile up because the output's store is slow."""
    if len(parts.queues.shards) > SHARDS_AHEAD * parts.fleet.num["write"]:
        return
    _suspects(parts, "encode")
    while parts.streams.to_encode and (actor := _room(parts, "encode")):
        clip = next(iter(parts.streams.to_encode.values()))
        actor = parts.fleet.same_actor("encode", clip.last_actor.get("encode")) or actor
        _send(parts, parts.streams.lease_encode(clip, actor), actor)
    clips = parts.pools.lease_clips
    while actor := _room(parts, "encode"):
        is_idle = parts.fleet.idle_actor("encode") is not None
        if (lease := parts.queues.next_encode(clips, is_idle=is_idle)) is None:
            return
        _send(parts, lease, actor)


def writes(parts: Parts) -> None:
    _suspects(parts, "write")
    while parts.queues.shards and (actor := _room(parts, "write")):
        _send(parts, parts.queues.shards.popleft(), actor)


def _suspects(parts: Parts, stage: Stage) -> None:
    suspects = parts.queues.suspects[stage]
    while suspects and (actor := parts.fleet.idle_actor(stage)):
        _send(parts, suspects.popleft(), actor, alone=True)


def _pieces_to_decode(parts: Parts) -> None:
    """Let streamed clips in progress have their next pieces decoded, in turns."""
    has_leased = True
    while has_leased and _room(parts, "decode"):
        has_leased = False
        for clip in list(parts.streams.to_decode.values()):
            actor = parts.fleet.same_actor("decode", clip.last_actor.get("decode"))
            if actor is not None:
                _send(parts, parts.streams.lease_decode(clip, actor), actor)
                has_leased = True


def _room(parts: Parts, stage: Stage) -> ActorId | None:
    """The actor for an ordinary lease, if one may go out."""
    return None if parts.queues.suspects[stage] else parts.fleet.actor_with_room(stage)


def _send(parts: Parts, lease: Lease, actor: ActorId, *, alone: bool = False) -> None:
    flight = Dispatch(parts.out.new_id(), actor, lease)
    parts.fleet.assign(actor, flight.attempt, alone=alone)
    parts.flights.start(flight)
    parts.out.emit(flight)
