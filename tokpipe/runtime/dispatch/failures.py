"""What becomes of a lease that failed, or was lost with its actor: it goes out again, or a clip
is rejected."""

from __future__ import annotations

from dataclasses import replace

from tokpipe.runtime.dispatch.fleet import Actor
from tokpipe.runtime.dispatch.parts import Parts
from tokpipe.runtime.dispatch.protocol import (
    AttemptId,
    ClipLease,
    DecodeLease,
    Dispatch,
    EncodedClips,
    EncodeLease,
    Lease,
    LeaseFailed,
    Pick,
    Release,
    WriteLease,
)
from tokpipe.runtime.dispatch.streams import StreamedClip
from tokpipe.types import Failed, Rejected, WorkItem


def failed(parts: Parts, event: LeaseFailed, now: float) -> None:
    """A stage raised."""
    if (flight := parts.flights.end(event.attempt)) is None:
        return
    lease, kind, message = flight.lease, event.kind, event.message
    parts.fleet.free(flight.actor, event.attempt, now)
    _note_failure(parts, flight, event)
    parts.out.emit(Release(event.attempt))
    if kind == "inputs_lost":
        assert not isinstance(lease, DecodeLease)
        _start_over(parts, lease, frozenset(event.lost))
    elif kind == "storage":
        _put_back(parts, lease)
        parts.blame.store_failed(lease, message)
    else:
        # An exception can leave a device or a library unusable, so the worker is replaced.
        actor = parts.fleet.remove(flight.actor)
        lost(parts, actor, now, blame=None)
        if kind == "node":
            _put_back(parts, lease)
            parts.fleet.node_trouble(actor, message, now)
        else:
            _blame_worker_loss(parts, lease, "fault", message, now)


def _note_failure(parts: Parts, flight: Dispatch, event: LeaseFailed) -> None:
    stage, num_clips = flight.lease.stage, len(flight.lease.items)
    parts.out.note(
        "lease_failed",
        f"{stage}: a lease of {num_clips} clips failed ({event.kind}): {event.message}",
        is_warning=event.kind != "inputs_lost",  # the loss of the node was a warning already
        stage=stage,
        actor=flight.actor,
        kind=event.kind,
        reason=event.message,
        num_clips=num_clips,
    )


def lost(parts: Parts, actor: Actor, now: float, *, blame: str | None) -> None:
    """An actor is gone; hand out its leases again. Only the first can be the cause (``blame``)."""
    if actor.stage == "encode" and actor.leases:
        parts.out.count("lost_s", now - actor.head_since)
    for position, attempt in enumerate(actor.leases):
        flight = parts.flights.end(attempt)
        assert flight is not None
        parts.out.emit(Release(attempt))
        if blame is not None and position == 0:
            _blame_worker_loss(parts, flight.lease, "worker_lost", blame, now)
        else:
            _put_back(parts, flight.lease)


def _blame_worker_loss(parts: Parts, lease: Lease, reason: str, why: str, now: float) -> None:
    if parts.streams.has_ended(lease):
        return
    verdict = parts.blame.worker_failed(lease, reason, why)
    if isinstance(verdict, Rejected):
        assert not isinstance(lease, WriteLease)
        _give_up(parts, lease, verdict, now)
    else:
        parts.queues.add_suspects(verdict)


def try_later(parts: Parts, lease: ClipLease, failed: Failed, now: float) -> None:
    """A stage gave up a clip: try it again after a pause, or reject it."""
    verdict = parts.blame.stage_gave_up(lease, failed)
    if isinstance(verdict, Rejected):
        _give_up(parts, lease, verdict, now)
    else:
        parts.queues.add_retry(now + verdict, parts.out.new_id(), lease)


def retry_due(parts: Parts, now: float) -> None:
    """Hand out again what has paused. It took down no worker, so it need not be alone."""
    for lease in parts.queues.due_retries(now):
        _put_back(parts, lease)


def _put_back(parts: Parts, lease: Lease) -> None:
    if isinstance(lease, WriteLease) or lease.stream is None:
        parts.queues.put_back(lease)
    else:
        parts.streams.take_back(lease)


def _start_over(
    parts: Parts, lease: EncodeLease | WriteLease, lost_outputs: frozenset[AttemptId]
) -> None:
    """Pixels, codes or a state vanished with their node: decode the clips again."""
    if isinstance(lease, WriteLease):
        kept: list[EncodedClips] = []
        for part in lease.parts:
            if any(pick.source in lost_outputs for pick in part.picks):
                parts.out.count("clips", -len(part.items), by="encode")
                parts.out.count("lost_s", part.encode_s)
                _decode_again(parts, part.items, part.picks)
            else:
                kept.append(part)
        if kept:
            parts.queues.put_back(replace(lease, parts=tuple(kept)))
    elif lease.stream is None:
        _decode_again(parts, lease.items, (lease.pick,))
    elif (clip := parts.streams.of(lease)) is not None:
        _end_streamed(parts, clip)
        parts.queues.decode_again((clip.item,))


def _decode_again(parts: Parts, items: tuple[WorkItem, ...], picks: tuple[Pick, ...]) -> None:
    parts.queues.decode_again(items)
    parts.out.count("clips", -len(items), by="decode")
    for pick in picks:
        parts.flights.use_up(pick)


# --- rejected -----------------------------------------------------------------------------------


def reject(parts: Parts, rejected: Rejected, now: float) -> None:
    parts.settlement.reject(rejected, now)
    parts.blame.settled((rejected.ref.row, rejected.ref.segment))


def reject_streamed(parts: Parts, clip: StreamedClip, rejected: Rejected, now: float) -> None:
    _end_streamed(parts, clip)
    # What the encode stage rejects counts as decoded, though not all pieces may have been.
    parts.out.count("clips", rejected.stage == "encode", by="decode")
    reject(parts, rejected, now)


def _give_up(parts: Parts, lease: ClipLease, rejected: Rejected, now: float) -> None:
    """Reject the one clip of a lease."""
    if (clip := parts.streams.of(lease)) is not None:
        reject_streamed(parts, clip, rejected, now)
        return
    if isinstance(lease, EncodeLease):
        parts.flights.use_up(lease.pick)
    reject(parts, rejected, now)


def _end_streamed(parts: Parts, clip: StreamedClip) -> None:
    """Release everything that a streamed clip holds. Answers to its open leases are ignored."""
    parts.streams.end(clip)
    parts.queues.forget(clip.stream_id)
    parts.out.count("clips", -clip.is_decoded, by="decode")
    parts.out.count("lost_s", clip.encode_s)
    for pick in clip.held:
        parts.flights.use_up(pick)
