"""What becomes of a lease that was answered: its clips go on to the next stage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tokpipe.runtime.dispatch import failures
from tokpipe.runtime.dispatch.parts import Parts
from tokpipe.runtime.dispatch.protocol import (
    AttemptId,
    ClipLease,
    DecodedInfo,
    DecodeLease,
    EncodedClips,
    EncodedInfo,
    EncodeLease,
    Info,
    Lease,
    LeaseDone,
    Pick,
    Release,
    ReleaseState,
    WriteLease,
)
from tokpipe.types import Failed, Receipt, Rejected, WorkItem


def done(parts: Parts, event: LeaseDone, now: float) -> None:
    """A stage answered."""
    attempt, answer = event.attempt, event.answer
    if (flight := parts.flights.end(attempt)) is None:
        parts.out.emit(Release(attempt))
        return
    lease = flight.lease
    held_s = parts.fleet.free(flight.actor, attempt, now)
    _count_seconds(parts, event, lease, held_s)
    parts.fleet.did_a_lease(lease.stage)
    if isinstance(lease, WriteLease):
        assert isinstance(answer, Receipt)
        parts.blame.answered(lease, None)
        parts.settlement.written(answer, sum(part.encode_s for part in lease.parts))
        for pick in lease.picks:
            parts.flights.use_up(pick)
        return
    assert isinstance(answer, tuple)
    assert len(answer) == len(lease.items)
    failed = [one for one in answer if isinstance(one, Failed)]
    parts.blame.answered(lease, failed[0] if len(failed) == len(answer) else None)
    if lease.stream is not None:
        _piece_done(parts, event, lease, answer[0], now)
    elif isinstance(lease, DecodeLease):
        _decoded(parts, attempt, lease, answer, now)
    else:
        _encoded(parts, event, lease, answer, now)
    if parts.fleet.is_leaving(flight.actor):
        parts.settlement.endanger(attempt)


def _count_seconds(parts: Parts, event: LeaseDone, lease: Lease, held_s: float) -> None:
    """Count an actor's seconds by activity; ``held_s``: since it could begin."""
    stage, busy_s, out = lease.stage, event.busy_s, parts.out
    parts.pools.measure(stage, len(lease.items), busy_s)
    out.count("spent_s", busy_s - event.download_s, by=stage)
    if stage == "decode":
        out.count("spent_s", event.download_s, by="download")
        out.count("download_bytes", event.download_bytes)
    elif stage == "encode":  # it had a lease, but no pixels yet
        out.count("spent_s", max(0.0, held_s - busy_s), by="transfer")


def _decoded(
    parts: Parts, attempt: AttemptId, lease: DecodeLease, answer: Sequence[Info], now: float
) -> None:
    items: list[WorkItem] = []
    positions: list[int] = []
    num_streamed = 0
    for position, (item, result) in enumerate(zip(lease.items, answer, strict=True)):
        total = result.ref.num_segments
        if item.num_segments is None and not isinstance(result, Failed):
            parts.out.count("num_opened")
        if item.num_segments is None and total > 1:
            item = replace(item, num_segments=total)
            parts.queues.add_segments(item, total)
            parts.out.count("num_extra_clips", total - 1)
        if isinstance(result, Rejected):
            failures.reject(parts, result, now)
        elif isinstance(result, Failed):
            failures.try_later(parts, DecodeLease((item,)), result, now)
        elif isinstance(result, DecodedInfo) and result.num_pieces > 1:
            pixels = Pick(attempt, (position,))
            parts.streams.start(parts.out.new_id(), item, result.num_pieces, pixels)
            num_streamed += 1
        else:
            items.append(item)
            positions.append(position)
    parts.out.count("clips", len(items), by="decode")
    if items:
        parts.queues.add(EncodeLease(tuple(items), Pick(attempt, tuple(positions))))
    parts.flights.keep(attempt, len(items) + num_streamed)


def _encoded(
    parts: Parts, event: LeaseDone, lease: EncodeLease, answer: Sequence[Info], now: float
) -> None:
    source, used = lease.pick.source, []
    by_grid: dict[tuple[int, int], list[tuple[int, WorkItem, EncodedInfo]]] = {}
    for at, (item, place, result) in enumerate(
        zip(lease.items, lease.pick.positions, answer, strict=True)
    ):
        if isinstance(result, Failed):  # its pixels are still needed
            again = EncodeLease((item,), Pick(source, (place,)))
            failures.try_later(parts, again, result, now)
            continue
        used.append(place)
        if isinstance(result, Rejected):
            failures.reject(parts, result, now)
        else:
            assert isinstance(result, EncodedInfo)
            by_grid.setdefault(result.grid, []).append((at, item, result))
            for mark in result.marks:
                parts.out.count("marked", by=mark)
    parts.flights.use_up(Pick(source, tuple(used)))
    num_clips = sum(map(len, by_grid.values()))
    parts.out.count("clips", num_clips, by="encode")
    parts.flights.keep(event.attempt, num_clips)
    num_codes = sum(info.num_codes for clips in by_grid.values() for _, _, info in clips)
    for grid, clips in by_grid.items():
        pick = Pick(event.attempt, tuple(at for at, _, _ in clips))
        codes = sum(info.num_codes for _, _, info in clips)
        encode_s = event.busy_s * codes / max(1, num_codes)
        part = EncodedClips(tuple(item for _, item, _ in clips), (pick,), encode_s)
        parts.settlement.add_codes(part, grid, codes, now)


def _piece_done(parts: Parts, event: LeaseDone, lease: ClipLease, result: Info, now: float) -> None:
    """A piece of a streamed clip was decoded or encoded."""
    attempt, clip = event.attempt, parts.streams.of(lease)
    if clip is None:  # it ended while this was in flight
        parts.out.emit(Release(attempt))
    elif isinstance(result, Rejected):
        parts.out.emit(Release(attempt))
        failures.reject_streamed(parts, clip, result, now)
    elif isinstance(result, Failed):
        parts.out.emit(Release(attempt))
        failures.try_later(parts, lease, result, now)
    elif isinstance(result, DecodedInfo):
        parts.flights.keep(attempt, 1)
        parts.streams.decoded(clip, lease.items[0].piece, attempt)
        parts.out.count("clips", clip.is_decoded, by="decode")
    else:
        parts.flights.keep(attempt, 1)
        pixels, state = parts.streams.encoded(clip, attempt, result, event.busy_s)
        parts.flights.use_up(pixels)
        if state is not None:
            parts.out.emit(ReleaseState(state))
        if clip.is_encoded:
            parts.out.count("clips", by="encode")
            parts.settlement.add_codes(clip.result, result.grid, clip.num_codes, now)
