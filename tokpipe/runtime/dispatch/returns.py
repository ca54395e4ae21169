"""What becomes of a lease that comes back: done, failed, or lost with its actor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from tokpipe.runtime.dispatch.account import Ledger
from tokpipe.runtime.dispatch.blame import Blame
from tokpipe.runtime.dispatch.fleet import Actor, Fleet
from tokpipe.runtime.dispatch.flights import Flight, Flights
from tokpipe.runtime.dispatch.pools import Pools
from tokpipe.runtime.dispatch.protocol import (
    AttemptId,
    ClipLease,
    DecodedInfo,
    DecodeLease,
    Emit,
    EncodedClips,
    EncodedInfo,
    EncodeLease,
    Info,
    Lease,
    LeaseDone,
    LeaseFailed,
    Note,
    Pick,
    Release,
    ReleaseState,
    WriteLease,
)
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.runtime.dispatch.settlement import Settlement
from tokpipe.runtime.dispatch.streams import StreamedClip, StreamedClips
from tokpipe.types import Failed, Receipt, Rejected, WorkItem


@dataclass(frozen=True, slots=True)
class Returns:
    """Passes on what leases made: pixels and codes to what comes next, failures to ``Blame``."""

    fleet: Fleet
    flights: Flights
    queues: Queues
    streams: StreamedClips
    blame: Blame
    settlement: Settlement
    pools: Pools
    new_id: Iterator[int]
    ledger: Ledger
    emit: Emit

    # --- done -----------------------------------------------------------------------------------

    def done(self, event: LeaseDone, now: float) -> None:
        """A stage answered."""
        if (flight := self.flights.find(event.attempt)) is None:
            self.emit(Release(event.attempt))
            return
        lease, answer = flight.lease, event.answer
        held_s = self._land(event.attempt, flight, now)
        self._spend(event, lease, held_s)
        self.fleet.did_a_lease(lease.stage)
        self.blame.answered(lease)
        if isinstance(lease, WriteLease):
            assert isinstance(answer, Receipt)
            self._written(lease, answer)
            return
        assert isinstance(answer, tuple)
        assert len(answer) == len(lease.items)
        failed = [one for one in answer if isinstance(one, Failed)]
        if len(failed) == len(answer):
            self.blame.failed(lease, failed[0].message)
        else:
            self.blame.had_result()
        if lease.stream is not None:
            self._piece(event, lease, answer[0], now)
        elif isinstance(lease, DecodeLease):
            self._decoded(event.attempt, lease, answer, now)
        else:
            self._encoded(event, lease, answer, now)
        if self.fleet.is_leaving(flight.actor):
            self.settlement.endanger(event.attempt)

    def _land(self, attempt: AttemptId, flight: Flight, now: float) -> float:
        """End an attempt; return for how many seconds it was its actor's first."""
        self.flights.end(attempt)
        return self.fleet.free(flight.actor, attempt, now)

    def _spend(self, event: LeaseDone, lease: Lease, held_s: float) -> None:
        """Note where an actor's seconds went."""
        stage, busy_s = lease.stage, event.busy_s
        self.pools.measure(stage, len(lease.items), busy_s)
        self.ledger.add("spent_s", busy_s - event.download_s, by=stage)
        if stage == "decode":
            self.ledger.add("spent_s", event.download_s, by="download")
            self.ledger.add("download_bytes", event.download_bytes)
        elif stage == "encode":  # it had a lease, and did not compute
            self.ledger.add("spent_s", max(0.0, held_s - busy_s), by="transfer")

    def _written(self, lease: WriteLease, receipt: Receipt) -> None:
        self.blame.had_result()
        self.blame.written(lease)
        self.settlement.written(receipt, lease.encode_s)
        for pick in lease.picks:
            self.flights.use_up(pick)

    def _decoded(
        self, attempt: AttemptId, lease: DecodeLease, answer: Sequence[Info], now: float
    ) -> None:
        items: list[WorkItem] = []
        positions: list[int] = []
        num_streamed = 0
        for position, (item, result) in enumerate(zip(lease.items, answer, strict=True)):
            total = result.ref.num_segments
            if item.num_segments is None and not isinstance(result, Failed):
                self.ledger.add("num_opened")
            if item.num_segments is None and total > 1:
                item = replace(item, num_segments=total)
                self.queues.add_segments(item, total)
                self.ledger.add("num_extra_clips", total - 1)
            if isinstance(result, Rejected):
                self._reject(result, now)
            elif isinstance(result, Failed):
                self._try_later(DecodeLease((item,)), result, now)
            elif isinstance(result, DecodedInfo) and result.num_pieces > 1:
                pixels = Pick(attempt, (position,))
                self.streams.start(next(self.new_id), item, result.num_pieces, pixels)
                num_streamed += 1
            else:
                items.append(item)
                positions.append(position)
        self.ledger.add("clips", len(items), by="decode")
        if items:
            pixels = Pick(attempt, tuple(positions))
            self.queues.add_decoded(EncodeLease(tuple(items), pixels))
        self.flights.keep(attempt, len(items) + num_streamed)

    def _encoded(
        self, event: LeaseDone, lease: EncodeLease, answer: Sequence[Info], now: float
    ) -> None:
        source, used = lease.pick.source, []
        by_grid: dict[tuple[int, int], list[tuple[int, WorkItem, EncodedInfo]]] = {}
        for at, (item, place, result) in enumerate(
            zip(lease.items, lease.pick.positions, answer, strict=True)
        ):
            if isinstance(result, Failed):  # its pixels are still needed
                self._try_later(EncodeLease((item,), Pick(source, (place,))), result, now)
                continue
            used.append(place)
            if isinstance(result, Rejected):
                self._reject(result, now)
            else:
                assert isinstance(result, EncodedInfo)
                by_grid.setdefault(result.grid, []).append((at, item, result))
                for mark in result.marks:
                    self.ledger.add("marked", by=mark)
        self.flights.use_up(Pick(source, tuple(used)))
        num_clips = sum(map(len, by_grid.values()))
        self.ledger.add("clips", num_clips, by="encode")
        self.flights.keep(event.attempt, num_clips)
        num_codes = sum(info.num_codes for clips in by_grid.values() for _, _, info in clips)
        for grid, clips in by_grid.items():
            pick = Pick(event.attempt, tuple(at for at, _, _ in clips))
            in_part = sum(info.num_codes for _, _, info in clips)
            encode_s = event.busy_s * in_part / max(1, num_codes)
            part = EncodedClips(tuple(item for _, item, _ in clips), (pick,), encode_s)
            self.settlement.add_codes(part, grid, in_part, now)

    def _piece(self, event: LeaseDone, lease: ClipLease, result: Info, now: float) -> None:
        attempt, clip = event.attempt, self.streams.of(lease)
        if clip is None:  # it ended while this was in flight
            self.emit(Release(attempt))
        elif isinstance(result, Rejected):
            self.emit(Release(attempt))
            self._reject_streamed(clip, result, now)
        elif isinstance(result, Failed):
            self.emit(Release(attempt))
            self._try_later(lease, result, now)
        elif isinstance(result, DecodedInfo):
            self.flights.keep(attempt, 1)
            self.streams.decoded(clip, lease.items[0].piece, attempt)
            self.ledger.add("clips", clip.is_decoded, by="decode")
        else:
            self.flights.keep(attempt, 1)
            pixels, state = self.streams.encoded(clip, attempt, result, event.busy_s)
            self.flights.use_up(pixels)
            if state is not None:
                self.emit(ReleaseState(state))
            if clip.is_encoded:
                self.ledger.add("clips", by="encode")
                self.settlement.add_codes(clip.result, result.grid, clip.num_codes, now)

    # --- failed ---------------------------------------------------------------------------------

    def failed(self, event: LeaseFailed, now: float) -> None:
        """A stage raised."""
        if (flight := self.flights.find(event.attempt)) is None:
            return
        lease, kind, message = flight.lease, event.kind, event.message
        self._land(event.attempt, flight, now)
        self._note_failure(flight, event)
        self.emit(Release(event.attempt))
        if kind == "inputs_lost":
            assert not isinstance(lease, DecodeLease)
            self._start_over(lease, frozenset(event.lost))
        elif kind == "storage":
            self._put_back(lease)
            self.blame.store_failed(lease, message)
        else:
            # An exception can leave a device or a library unusable: such a worker is replaced.
            actor = self.fleet.remove(flight.actor)
            self.lost(actor, now, blame=None)
            if kind == "node":
                self._put_back(lease)
                self.fleet.node_trouble(actor, message, now)
            else:
                self._blame_worker_loss(lease, "fault", message, now)

    def _note_failure(self, flight: Flight, event: LeaseFailed) -> None:
        stage, num_clips = flight.lease.stage, len(flight.lease.items)
        fields = {
            "stage": stage,
            "actor": flight.actor,
            "kind": event.kind,
            "reason": event.message,
            "num_clips": num_clips,
        }
        text = f"{stage}: a lease of {num_clips} clips failed ({event.kind}): {event.message}"
        is_warning = event.kind != "inputs_lost"  # which follows from the loss of a node
        self.emit(Note("lease_failed", text, fields, is_warning))

    def lost(self, actor: Actor, now: float, *, blame: str | None) -> None:
        """An actor is gone. Its leases go out again; only the first can be to blame for why."""
        if actor.stage == "encode" and actor.leases:
            self.settlement.lose(now - actor.head_since)
        for position, attempt in enumerate(actor.leases):
            lease = self.flights.end(attempt)
            self.emit(Release(attempt))
            if blame is not None and position == 0:
                self._blame_worker_loss(lease, "worker_lost", blame, now)
            else:
                self._put_back(lease)

    def _blame_worker_loss(self, lease: Lease, reason: str, why: str, now: float) -> None:
        if self.streams.has_ended(lease):
            return
        verdict = self.blame.worker_failed(lease, reason, why)
        if isinstance(verdict, Rejected):
            assert not isinstance(lease, WriteLease)
            self._give_up(lease, verdict, now)
        else:
            self.queues.add_suspects(verdict)

    def _try_later(self, lease: ClipLease, failed: Failed, now: float) -> None:
        """A stage gave up a clip: try it again after a pause."""
        verdict = self.blame.stage_gave_up(lease, failed)
        if isinstance(verdict, Rejected):
            self._give_up(lease, verdict, now)
        else:
            self.queues.add_retry(now + verdict, next(self.new_id), lease)

    def retry_due(self, now: float) -> None:
        """Hand out again what has paused. It took down no worker, so it need not be alone."""
        for lease in self.queues.due_retries(now):
            self._put_back(lease)

    def _put_back(self, lease: Lease) -> None:
        if isinstance(lease, WriteLease) or lease.stream is None:
            self.queues.put_back(lease)
        else:
            self.streams.take_back(lease)

    def _start_over(self, lease: EncodeLease | WriteLease, lost: frozenset[AttemptId]) -> None:
        """Pixels, codes or a state vanished with their node: decode the clips again."""
        if isinstance(lease, WriteLease):
            kept: list[EncodedClips] = []
            for part in lease.parts:
                if any(pick.source in lost for pick in part.picks):
                    self.ledger.add("clips", -len(part.items), by="encode")
                    self.settlement.lose(part.encode_s)
                    self._decode_again(part.items, part.picks)
                else:
                    kept.append(part)
            if kept:
                self.queues.put_back(replace(lease, parts=tuple(kept)))
        elif lease.stream is None:
            self._decode_again(lease.items, (lease.pick,))
        elif (clip := self.streams.of(lease)) is not None:
            self._end_streamed(clip)
            self.queues.decode_again((clip.item,))

    def _decode_again(self, items: tuple[WorkItem, ...], picks: tuple[Pick, ...]) -> None:
        self.queues.decode_again(items)
        self.ledger.add("clips", -len(items), by="decode")
        for pick in picks:
            self.flights.use_up(pick)

    # --- rejected -------------------------------------------------------------------------------

    def _give_up(self, lease: ClipLease, rejected: Rejected, now: float) -> None:
        """Reject the one clip of a lease."""
        if (clip := self.streams.of(lease)) is not None:
            self._reject_streamed(clip, rejected, now)
            return
        if isinstance(lease, EncodeLease):
            self.flights.use_up(lease.pick)
        self._reject(rejected, now)

    def _reject_streamed(self, clip: StreamedClip, rejected: Rejected, now: float) -> None:
        self._end_streamed(clip)
        # What the encode stage rejects counts as decoded, though not all pieces may have been.
        self.ledger.add("clips", rejected.stage == "encode", by="decode")
        self._reject(rejected, now)

    def _end_streamed(self, clip: StreamedClip) -> None:
        """Let go of all that a streamed clip has. Answers to its leases in flight are ignored."""
        self.streams.end(clip)
        self.queues.forget(clip.stream_id)
        self.ledger.add("clips", -clip.is_decoded, by="decode")
        self.settlement.lose(clip.encode_s)
        for pick in clip.held:
            self.flights.use_up(pick)

    def _reject(self, rejected: Rejected, now: float) -> None:
        self.settlement.reject(rejected, now)
        self.blame.settled((rejected.ref.row, rejected.ref.segment))
