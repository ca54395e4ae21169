"""The owners of the dispatcher's state, and what becomes of a lease that comes back to them."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.blame import Blame
from tokpipe.runtime.dispatch.fleet import Actor, Fleet
from tokpipe.runtime.dispatch.outbox import Outbox, Outputs
from tokpipe.runtime.dispatch.pools import Pools
from tokpipe.runtime.dispatch.protocol import AttemptId, Clip, Info, Lease, LeaseDone, Limits, Place
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.runtime.dispatch.settlement import Breaker, Settlement
from tokpipe.runtime.dispatch.streams import StreamedClip, StreamedClips
from tokpipe.types import ClipRef, Failed, Receipt, Rejected, Stage, WorkItem


class Returns:
    """Takes back leases that are done, failed, or lost with their actors.

    Pixels go to encoders, codes to shards, receipts to commits. What failed goes out again, or its
    clip is rejected. Each part owns its state; this and ``Dispatcher`` move work between them.
    """

    def __init__(self, limits: Limits, ref_of: Callable[[WorkItem], ClipRef]) -> None:
        self.out = out = Outbox()
        self.pools = Pools(limits, out)
        self.fleet = Fleet(limits, out)
        self.outputs = Outputs(out)
        self.queues = Queues(limits, out)
        self.streams = StreamedClips()
        self.blame = Blame(limits.runtime.max_attempts, ref_of, out)
        self.settlement = Settlement(limits, self.queues, out)
        self.breaker = Breaker(limits, self.settlement, out)

    def _done(self, event: LeaseDone) -> None:
        attempt, answer = event.attempt, event.answer
        if (ended := self.fleet.end(attempt)) is None:
            self.out.emit(protocol.Release(attempt))
            return
        flight, held_s = ended
        lease = flight.lease
        self.fleet.hear_path(flight.actor, event.path)
        if path := self.fleet.actors[flight.actor].path:
            for why in path.slow:
                self.out.count("slow_s", event.busy_s, by=why)
        self._count_seconds(event, lease, held_s)
        if isinstance(answer, Receipt):
            self.blame.answered(lease, None)
            self.settlement.written(answer, sum(clip.encode_s for clip in lease.clips))
            self.outputs.use_up(lease.places)
            return
        failed = [one for one in answer if isinstance(one, Failed)]
        if lease.stage == "decode":
            num_failed = sum(isinstance(one, Rejected | Failed) for one in answer)
            self.breaker.decoded(len(answer) - num_failed, attempt)
        self.blame.answered(lease, failed[0] if len(failed) == len(answer) else None)
        if lease.stream is not None:
            self._piece_done(event, lease, answer[0])
        elif lease.stage == "decode":
            self._decoded(attempt, lease, answer)
        else:
            self._encoded(event, lease, answer)
        if flight.actor in self.fleet.leaving:
            self.settlement.endanger(attempt)

    def _count_seconds(self, event: LeaseDone, lease: Lease, held_s: float) -> None:
        """Count an actor's seconds by activity; ``held_s``: since it could begin."""
        stage, busy_s, out = lease.stage, event.busy_s, self.out
        self.pools.measure(stage, len(lease.clips), busy_s)
        out.count("spent_s", busy_s - event.download_s, by=stage)
        if stage == "decode":
            out.count("spent_s", event.download_s, by="download")
            out.count("download_bytes", event.download_bytes)
        elif stage == "encode":  # it had a lease, but no pixels yet
            out.count("spent_s", max(0.0, held_s - busy_s), by="transfer")

    def _decoded(self, attempt: AttemptId, lease: Lease, answer: Sequence[Info]) -> None:
        kept, max_clips = list[Place](), self.pools.lease_clips
        for at, (item, result) in enumerate(zip(lease.items, answer, strict=True)):
            total = result.ref.num_segments
            if item.num_segments is None and not isinstance(result, Failed):
                self.out.count("num_opened")
            is_first = item.version is None and not item.follows
            if is_first and not isinstance(result, Rejected | Failed):
                item = replace(item, version=result.version)  # its other clips need the same
            if item.num_segments is None and total > 1:
                item = replace(item, num_segments=total)
                self.queues.add_segments(item, total)
                self.out.count("num_extra_clips", total - 1)
            if isinstance(result, Rejected | Failed):
                self._not_made(Lease("decode", (Clip(item),)), result)
            elif isinstance(result, protocol.DecodedInfo):
                kept.append(pixels := Place(attempt, at, result.part))
                if result.num_pieces > 1:
                    self.streams.start(self.out.new_id(), item, result.num_pieces, pixels)
                else:
                    self.queues.add_decoded(Clip(item, (pixels,)), result.num_frames, max_clips)
                    self.out.count("clips", by="decode")
            else:
                kept.append(codes := Place(attempt, at, protocol.REUSED))
                self.settlement.add_codes(Clip(item, (codes,)), result.grid, result.num_codes)
                self.out.count("clips", by="decode")
                self.out.count("clips", by="reuse")
        self.outputs.keep(attempt, kept)

    def _encoded(self, event: LeaseDone, lease: Lease, answer: Sequence[Info]) -> None:
        encoded = [one for one in answer if isinstance(one, protocol.EncodedInfo)]
        self.out.count("clips", len(encoded), by="encode")
        self.outputs.keep(event.attempt, [Place(event.attempt, 0)] * len(encoded))
        num_codes = sum(one.num_codes for one in encoded)
        for at, (clip, result) in enumerate(zip(lease.clips, answer, strict=True)):
            if isinstance(result, Rejected | Failed):
                self._not_made(lease._replace(clips=(clip,)), result)
            elif isinstance(result, protocol.EncodedInfo):
                self.outputs.use_up(clip.places)
                encode_s = event.busy_s * result.num_codes / max(1, num_codes)
                done = Clip(clip.item, (Place(event.attempt, at),), encode_s)
                self.settlement.add_codes(done, result.grid, result.num_codes)
                for mark in result.marks:
                    self.out.count("marked", by=mark)

    def _piece_done(self, event: LeaseDone, lease: Lease, result: Info) -> None:
        attempt, clip = event.attempt, self.streams.of(lease)
        is_useful = clip is not None and not isinstance(result, Rejected | Failed)
        made = Place(attempt, 0, result.part if isinstance(result, protocol.DecodedInfo) else 0)
        self.outputs.keep(attempt, [made] * is_useful)
        if clip is None:
            return  # it ended while this was in flight
        if isinstance(result, Rejected | Failed):
            self._not_made(lease, result)
        elif isinstance(result, protocol.DecodedInfo):
            self.streams.decoded(clip, lease.clips[0].item.piece, made)
            self.out.count("clips", clip.is_decoded, by="decode")
        else:
            pixels, state = self.streams.encoded(clip, attempt, result, event.busy_s)
            self.outputs.use_up([pixels])
            if state is not None:
                self.out.emit(protocol.Release(state, protocol.STATE))
            if clip.is_encoded:
                self.out.count("clips", by="encode")
                whole = Clip(clip.item, tuple(clip.codes), clip.encode_s)
                self.settlement.add_codes(whole, result.grid, clip.num_codes)

    def _failed(self, event: protocol.LeaseFailed) -> None:
        if (ended := self.fleet.end(event.attempt)) is None:
            return
        (_, actor_id, lease), _ = ended
        kind, message, num_clips = event.kind, event.message, len(lease.clips)
        text = f"{lease.stage}: a lease of {num_clips} clips failed ({kind}): {message}"
        fields = {"stage": lease.stage, "actor": actor_id, "kind": kind, "reason": message}
        is_warning = kind != "inputs_lost"  # the loss of the node was a warning already
        self.out.note("lease_failed", text, is_warning=is_warning, **fields, num_clips=num_clips)
        self.out.emit(protocol.Release(event.attempt))
        if kind == "inputs_lost":
            self._start_over(lease, event.lost)
        elif kind == "storage":
            self._put_back(lease)
            self.blame.store_failed(lease, message)
        else:
            # An exception can leave a device or a library unusable, so the worker is replaced.
            self._lost(actor := self.fleet.remove(actor_id), blame=None)
            if kind == "node":
                since_s = self.blame.node_failed(lease, message)
                if event.lost:  # by another node, which made them
                    self._start_over(lease, event.lost)
                else:
                    self._put_back(lease)
                    self.fleet.starts.node_trouble(actor, message, max(2.0, since_s / 2))
            else:
                self._blame_worker_loss(lease, "fault", message)

    def _actor_lost(self, event: protocol.ActorLost) -> None:
        if (actor := self.fleet.lose(event)) is not None:
            self._lost(actor, blame=event.message if event.how in ("died", "overdue") else None)

    def _lost(self, actor: Actor, *, blame: str | None) -> None:
        """Hand out again what an actor held. Only its first lease can be the cause (``blame``)."""
        if actor.stage == "encode" and actor.leases:
            self.out.count("lost_s", self.out.now - actor.head_since)
        for position, flight in enumerate(actor.leases.values()):
            self.out.emit(protocol.Release(flight.attempt))
            if blame is not None and position == 0:
                self._blame_worker_loss(flight.lease, "worker_lost", blame)
            else:
                self._put_back(flight.lease)

    def _blame_worker_loss(self, lease: Lease, reason: str, why: str) -> None:
        if self.streams.has_ended(lease):
            return
        verdict = self.blame.worker_failed(lease, reason, why)
        if isinstance(verdict, Rejected):
            self._give_up(lease, verdict)
        else:
            self.queues.suspects[lease.stage].extend(verdict)

    def _not_made(self, lease: Lease, result: Rejected | Failed) -> None:
        """A stage did not make the one clip of a lease: reject it, or try again after a pause."""
        verdict = self.blame.stage_gave_up(lease, result) if isinstance(result, Failed) else result
        if isinstance(verdict, Rejected):
            self._give_up(lease, verdict)
        else:
            self.queues.add_retry(verdict, lease)

    def _put_back(self, lease: Lease) -> None:
        """Hand a lease out again before others. It took down no worker, so it need not be alone."""
        if lease.stream is None:
            self.queues.put_back(lease)
        else:
            self.streams.take_back(lease)

    def _start_over(self, lease: Lease, lost: Sequence[AttemptId]) -> None:
        """Pixels, codes or a state vanished with their node: decode the clips again."""
        if lease.stream is None:
            kept, gone = list[Clip](), list[Clip]()
            for clip in lease.clips:  # an encoder does not find out which of its inputs are gone
                is_lost = any(place.source in lost for place in clip.places)
                (gone if is_lost or lease.stage == "encode" else kept).append(clip)
            self._decode_again(lease.stage, gone)
            if kept:
                self.queues.put_back(lease._replace(clips=tuple(kept)))
        elif (streamed := self.streams.of(lease)) is not None:
            self._end_streamed(streamed)
            self.queues.decode_again([streamed.item])

    def _decode_again(self, stage: Stage, clips: Sequence[Clip]) -> None:
        self.queues.decode_again([clip.item for clip in clips])
        self.out.count("clips", -len(clips), by="decode")
        if stage == "write":
            num_reused = sum(clip.places[0].part == protocol.REUSED for clip in clips)
            self.out.count("clips", -num_reused, by="reuse")
            self.out.count("clips", num_reused - len(clips), by="encode")
            self.out.count("lost_s", sum(clip.encode_s for clip in clips))
        for clip in clips:
            self.outputs.use_up(clip.places)

    def _give_up(self, lease: Lease, rejected: Rejected) -> None:
        """Reject the one clip of a lease, and release what it holds."""
        if (clip := self.streams.of(lease)) is not None:
            self._end_streamed(clip)
            # What the encode stage rejects counts as decoded, though not all pieces may have been.
            self.out.count("clips", rejected.stage == "encode", by="decode")
        else:
            self.outputs.use_up(lease.places)
        self.breaker.rejected(rejected)
        self.blame.settled((rejected.ref.row, rejected.ref.segment))

    def _end_streamed(self, clip: StreamedClip) -> None:
        """Release everything that a streamed clip holds. Answers to its open leases are ignored."""
        self.streams.end(clip)
        self.queues.forget(clip.stream_id)
        self.out.count("clips", -clip.is_decoded, by="decode")
        self.out.count("lost_s", clip.encode_s)
        self.outputs.use_up([*clip.pixels.values(), *clip.codes])  # with the last, its state goes
