"""What becomes of a lease that comes back: done, failed, or lost with its actor.

Pixels go to encoders, codes to shards, receipts to commits. What failed goes out again, or its
clip is rejected.
"""

from collections.abc import Sequence
from dataclasses import replace

from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.fleet import Actor
from tokpipe.runtime.dispatch.parts import Parts
from tokpipe.runtime.dispatch.protocol import AttemptId, Clip, Info, Lease, LeaseDone, Place
from tokpipe.runtime.dispatch.streams import StreamedClip
from tokpipe.types import Failed, Receipt, Rejected, Stage


def done(parts: Parts, event: LeaseDone) -> None:
    attempt, answer = event.attempt, event.answer
    if (flight := parts.flights.end(attempt)) is None:
        parts.out.emit(protocol.Release(attempt))
        return
    lease = flight.lease
    held_s = parts.fleet.free(flight.actor, attempt)
    parts.fleet.hear_path(flight.actor, event.path)
    if path := parts.fleet.actors[flight.actor].path:
        for why in path.slow:
            parts.out.count("slow_s", event.busy_s, by=why)
    _count_seconds(parts, event, lease, held_s)
    if isinstance(answer, Receipt):
        parts.blame.answered(lease, None)
        parts.settlement.written(answer, sum(clip.encode_s for clip in lease.clips))
        parts.flights.use_up(lease.places)
        return
    failed = [one for one in answer if isinstance(one, Failed)]
    num_decoded = sum(isinstance(one, protocol.DecodedInfo) for one in answer)
    parts.breaker.decoded(num_decoded, attempt)
    parts.blame.answered(lease, failed[0] if len(failed) == len(answer) else None)
    if lease.stream is not None:
        _piece_done(parts, event, lease, answer[0])
    elif lease.stage == "decode":
        _decoded(parts, attempt, lease, answer)
    else:
        _encoded(parts, event, lease, answer)
    if flight.actor in parts.fleet.leaving:
        parts.settlement.endanger(attempt)


def _count_seconds(parts: Parts, event: LeaseDone, lease: Lease, held_s: float) -> None:
    """Count an actor's seconds by activity; ``held_s``: since it could begin."""
    stage, busy_s, out = lease.stage, event.busy_s, parts.out
    parts.pools.measure(stage, len(lease.clips), busy_s)
    out.count("spent_s", busy_s - event.download_s, by=stage)
    if stage == "decode":
        out.count("spent_s", event.download_s, by="download")
        out.count("download_bytes", event.download_bytes)
    elif stage == "encode":  # it had a lease, but no pixels yet
        out.count("spent_s", max(0.0, held_s - busy_s), by="transfer")


def _decoded(parts: Parts, attempt: AttemptId, lease: Lease, answer: Sequence[Info]) -> None:
    kept, max_clips = list[Place](), parts.pools.lease_clips
    for at, (item, result) in enumerate(zip(lease.items, answer, strict=True)):
        total = result.ref.num_segments
        if item.num_segments is None and not isinstance(result, Failed):
            parts.out.count("num_opened")
        if isinstance(result, protocol.DecodedInfo) and item.version is None and not item.follows:
            item = replace(item, version=result.version)  # its other clips need the same content
        if item.num_segments is None and total > 1:
            item = replace(item, num_segments=total)
            parts.queues.add_segments(item, total)
            parts.out.count("num_extra_clips", total - 1)
        if isinstance(result, Rejected | Failed):
            _not_made(parts, Lease("decode", (Clip(item),)), result)
        elif isinstance(result, protocol.DecodedInfo):
            kept.append(pixels := Place(attempt, at, result.part))
            if result.num_pieces > 1:
                parts.streams.start(parts.out.new_id(), item, result.num_pieces, pixels)
            else:
                parts.queues.add_decoded(Clip(item, (pixels,)), result.num_frames, max_clips)
                parts.out.count("clips", by="decode")
    parts.flights.keep(attempt, kept)


def _encoded(parts: Parts, event: LeaseDone, lease: Lease, answer: Sequence[Info]) -> None:
    encoded = [one for one in answer if isinstance(one, protocol.EncodedInfo)]
    parts.out.count("clips", len(encoded), by="encode")
    parts.flights.keep(event.attempt, [Place(event.attempt, 0)] * len(encoded))
    num_codes = sum(one.num_codes for one in encoded)
    for at, (clip, result) in enumerate(zip(lease.clips, answer, strict=True)):
        if isinstance(result, Rejected | Failed):
            _not_made(parts, lease._replace(clips=(clip,)), result)
        elif isinstance(result, protocol.EncodedInfo):
            parts.flights.use_up(clip.places)
            encode_s = event.busy_s * result.num_codes / max(1, num_codes)
            done = Clip(clip.item, (Place(event.attempt, at),), encode_s)
            parts.settlement.add_codes(done, result.grid, result.num_codes)
            for mark in result.marks:
                parts.out.count("marked", by=mark)


def _piece_done(parts: Parts, event: LeaseDone, lease: Lease, result: Info) -> None:
    attempt, clip = event.attempt, parts.streams.of(lease)
    is_useful = clip is not None and isinstance(result, protocol.DecodedInfo | protocol.EncodedInfo)
    made = Place(attempt, 0, result.part if isinstance(result, protocol.DecodedInfo) else 0)
    parts.flights.keep(attempt, [made] * is_useful)
    if clip is None:
        return  # it ended while this was in flight
    if isinstance(result, Rejected | Failed):
        _not_made(parts, lease, result)
    elif isinstance(result, protocol.DecodedInfo):
        parts.streams.decoded(clip, lease.clips[0].item.piece, made)
        parts.out.count("clips", clip.is_decoded, by="decode")
    else:
        pixels, state = parts.streams.encoded(clip, attempt, result, event.busy_s)
        parts.flights.use_up([pixels])
        if state is not None:
            parts.out.emit(protocol.Release(state, protocol.STATE))
        if clip.is_encoded:
            parts.out.count("clips", by="encode")
            whole = Clip(clip.item, tuple(clip.codes), clip.encode_s)
            parts.settlement.add_codes(whole, result.grid, clip.num_codes)


def failed(parts: Parts, event: protocol.LeaseFailed) -> None:
    if (flight := parts.flights.end(event.attempt)) is None:
        return
    lease, kind, message = flight.lease, event.kind, event.message
    parts.fleet.free(flight.actor, event.attempt)
    num_clips = len(lease.clips)
    parts.out.note(
        "lease_failed",
        f"{lease.stage}: a lease of {num_clips} clips failed ({kind}): {message}",
        is_warning=kind != "inputs_lost",  # the loss of the node was a warning already
        stage=lease.stage,
        actor=flight.actor,
        kind=kind,
        reason=message,
        num_clips=num_clips,
    )
    parts.out.emit(protocol.Release(event.attempt))
    if kind == "inputs_lost":
        _start_over(parts, lease, event.lost)
    elif kind == "storage":
        put_back(parts, lease)
        parts.blame.store_failed(lease, message)
    else:
        # An exception can leave a device or a library unusable, so the worker is replaced.
        actor = parts.fleet.remove(flight.actor)
        lost(parts, actor, blame=None)
        if kind == "node":
            since_s = parts.blame.node_failed(lease, message)
            if event.lost:  # by another node, which made them
                _start_over(parts, lease, event.lost)
            else:
                put_back(parts, lease)
                parts.fleet.starts.node_trouble(actor, message, max(2.0, since_s / 2))
        else:
            _blame_worker_loss(parts, lease, "fault", message)


def lost(parts: Parts, actor: Actor, *, blame: str | None) -> None:
    """An actor is gone; hand out its leases again. Only the first can be the cause (``blame``)."""
    if actor.stage == "encode" and actor.leases:
        parts.out.count("lost_s", parts.out.now - actor.head_since)
    for position, attempt in enumerate(actor.leases):
        flight = parts.flights.end(attempt)
        assert flight is not None
        parts.out.emit(protocol.Release(attempt))
        if blame is not None and position == 0:
            _blame_worker_loss(parts, flight.lease, "worker_lost", blame)
        else:
            put_back(parts, flight.lease)


def _blame_worker_loss(parts: Parts, lease: Lease, reason: str, why: str) -> None:
    if parts.streams.has_ended(lease):
        return
    verdict = parts.blame.worker_failed(lease, reason, why)
    if isinstance(verdict, Rejected):
        _give_up(parts, lease, verdict)
    else:
        parts.queues.suspects[lease.stage].extend(verdict)


def _not_made(parts: Parts, lease: Lease, result: Rejected | Failed) -> None:
    """A stage did not make the one clip of a lease: reject it, or try again after a pause."""
    verdict = parts.blame.stage_gave_up(lease, result) if isinstance(result, Failed) else result
    if isinstance(verdict, Rejected):
        _give_up(parts, lease, verdict)
    else:
        parts.queues.add_retry(verdict, lease)


def put_back(parts: Parts, lease: Lease) -> None:
    """Hand a lease out again before others. It took down no worker, so it need not be alone."""
    if lease.stream is None:
        parts.queues.put_back(lease)
    else:
        parts.streams.take_back(lease)


def _start_over(parts: Parts, lease: Lease, lost: Sequence[AttemptId]) -> None:
    """Pixels, codes or a state vanished with their node: decode the clips again."""
    if lease.stream is None:
        kept: list[Clip] = []
        gone: list[Clip] = []
        for clip in lease.clips:  # an encoder does not find out which of its inputs are gone
            is_gone = lease.stage == "encode" or any(source in lost for source, *_ in clip.places)
            (gone if is_gone else kept).append(clip)
        _decode_again(parts, lease.stage, gone)
        if kept:
            parts.queues.put_back(lease._replace(clips=tuple(kept)))
    elif (streamed := parts.streams.of(lease)) is not None:
        _end_streamed(parts, streamed)
        parts.queues.decode_again([streamed.item])


def _decode_again(parts: Parts, stage: Stage, clips: Sequence[Clip]) -> None:
    parts.queues.decode_again([clip.item for clip in clips])
    parts.out.count("clips", -len(clips), by="decode")
    if stage == "write":
        parts.out.count("clips", -len(clips), by="encode")
        parts.out.count("lost_s", sum(clip.encode_s for clip in clips))
    for clip in clips:
        parts.flights.use_up(clip.places)


def _give_up(parts: Parts, lease: Lease, rejected: Rejected) -> None:
    """Reject the one clip of a lease, and release what it holds."""
    if (clip := parts.streams.of(lease)) is not None:
        _end_streamed(parts, clip)
        # What the encode stage rejects counts as decoded, though not all pieces may have been.
        parts.out.count("clips", rejected.stage == "encode", by="decode")
    else:
        parts.flights.use_up(lease.places)
    parts.breaker.rejected(rejected)
    parts.blame.settled((rejected.ref.row, rejected.ref.segment))


def _end_streamed(parts: Parts, clip: StreamedClip) -> None:
    """Release everything that a streamed clip holds. Answers to its open leases are ignored."""
    parts.streams.end(clip)
    parts.queues.forget(clip.stream_id)
    parts.out.count("clips", -clip.is_decoded, by="decode")
    parts.out.count("lost_s", clip.encode_s)
    # Its state goes with the last codes.
    parts.flights.use_up([*clip.pixels.values(), *clip.codes])
