"""Who works on what: a pure state machine.

``handle(event, now)`` takes one event and returns the commands that follow. There is no Ray, no
clock and no I/O in here: the Ray shell and the simulation drive the same object. It guarantees:

- Every planned clip ends in exactly one commit, tokenized or rejected, whatever actors do,
  provided that some actor of each stage makes progress.
- An answer counts only while its attempt is in flight, so a zombie's work is never used.
- A clip is blamed for a lost or failing worker only if it was there alone. After
  ``max_attempts`` such losses it is rejected, alone. A clip that a stage gives up on
  (``Failed``) is tried again as often, after a pause.
- A draining node, or one with trouble, gets nothing new and blames nobody.
- What is in flight is bounded by credits, whatever the size of the plan.
"""

from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.protocol import ActorId, Command, Event
from tokpipe.runtime.dispatch.returns import Returns
from tokpipe.types import Stage

SHARDS_AHEAD = 4  # Shards per write actor that may wait before encoders pause: codes add up


class Dispatcher(Returns):
    """Passes each event to its owner, then starts what can start, and leases waiting work.

    Of each stage, suspects go out first, each to an idle actor. While any waits, nothing else of
    its stage goes out, or no actor would ever be idle. Then come pieces of streamed clips, since
    the longest of them may be what the end of the job waits for.
    """

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event at time ``now`` (seconds, monotonic); return what must be done."""
        self.out.now = now
        was_over = self.out.is_over
        if not was_over:
            self._react(event)
            self._advance()
            if self.out.is_over:
                self.fleet.count_time()  # a short run may have no tick while its encoders are up
        return self.out.take()

    def _react(self, event: Event) -> None:
        match event:
            case protocol.LeaseDone():
                self._done(event)
            case protocol.LeaseFailed():
                self._failed(event)
            case protocol.Planned():
                self.queues.planned(event)
            case protocol.Committed():
                self.settlement.committed()
            case protocol.Tick():
                self.fleet.count_time()
                self.fleet.ask_about_late()
                for lost in self.fleet.overdue():
                    self._actor_lost(lost)
            case protocol.Capacity():
                if self.fleet.drain(event.draining):
                    # No one knows which nodes hold the codes of open shards.
                    self.settlement.close_due(all_of_them=True)
                self.pools.resize(self.fleet.fitting(event))
            case protocol.ActorPlaced():
                self.fleet.placed(event)
            case protocol.ActorUp():
                self.fleet.came_up(event)
            case protocol.ActorLost():
                self._actor_lost(event)
            case protocol.StopRequested():
                self.settlement.stop(event)

    def _advance(self) -> None:
        """Do what follows from the state, whatever the event was."""
        self.fleet.remove_left()
        if not self.settlement.is_stopping:
            self._follow_capacity()
            num_decoders = max(1, self.fleet.num["decode"])  # a few leases of each wait, no more
            self.queues.ask_for_plan(self.pools.lease_clips * 2 * num_decoders)
            self.streams.admit(self.fleet.num_up["encode"])
            for lease in self.queues.due_retries():
                self._put_back(lease)
            self._lease_decodes()
            self._lease_encodes()
        self._settle()

    def _follow_capacity(self) -> None:
        """Start and remove actors until each stage has as many as it should have."""
        fleet, pools = self.fleet, self.pools
        if (sizes := pools.sizes) is None or pools.capacity is None:
            return
        # Encoders first: a decoder on the last CPU beside a GPU would keep it idle.
        for stage in ("encode", "decode", "write"):
            target: int = getattr(sizes, stage)
            if pools.capacity.most(stage):  # else an autoscaler may add a node that may run it
                fleet.replace_starved(stage)
            for actor_id in fleet.surplus(stage, target):
                self._lost(fleet.remove(actor_id), blame=None)
            fleet.fill(stage, target, one_shares=stage == "decode" and sizes.decode_shares)

    def _settle(self) -> None:
        """Write what is due, commit what is written, and end if that was all."""
        leased, queues, settlement = self.fleet.num_leased, self.queues, self.settlement
        encoding, is_stopping = leased["encode"] > 0, settlement.is_stopping
        at_work = encoding or leased["decode"] or len(self.streams)
        all_encoded = queues.nothing_before_write and not at_work
        is_over = self.out.now >= settlement.encode_until or (is_stopping and not encoding)
        no_more_codes = all_encoded or is_over
        settlement.close_due(all_of_them=no_more_codes)
        self._lease_suspects("write")
        while queues.shards and (actor := self._room("write")):
            self.fleet.assign(queues.shards.popleft(), actor)
        if no_more_codes:
            self.breaker.settle(is_done=all_encoded)
        unwritten = settlement.open_shards, queues.shards, queues.suspects["write"]
        all_written = not (any(unwritten) or leased["write"])
        settlement.commit_due(is_last=all_written and (all_encoded or is_stopping))
        settlement.finish_if_over(
            all_written=all_written, all_encoded=all_encoded, encoding=encoding
        )

    def _lease_decodes(self) -> None:
        """Lease to decoders as far as credits go, so that few pixels wait for encoders. Suspects
        need none, as one lease had all, nor do later pieces, of which each clip has few out."""
        self._lease_suspects("decode")
        has_leased = True
        while has_leased and self._room("decode"):  # for streamed clips in progress, in turns
            has_leased = False
            for clip in list(self.streams.to_decode.values()):
                actor = self.fleet.same_actor("decode", clip.last_actor.get("decode"))
                if actor is not None:
                    self.fleet.assign(self.streams.lease_decode(clip, actor), actor)
                    has_leased = True
        clips = self.pools.lease_clips
        pixels = self.queues.num_decoded / clips + len(self.streams.waiting)
        of_encoder = 2 * max(1.0, self.pools.limits.batch_chunks / clips)
        bound = of_encoder * max(1, self.fleet.num_up["encode"]) + self.fleet.num_up["decode"]
        while pixels + self.fleet.num_leased["decode"] < bound and (actor := self._room("decode")):
            held = self.fleet.actors[actor].source_uri
            if (lease := self.queues.next_decode(clips, held)) is None:
                return
            self.fleet.assign(lease, actor)

    def _lease_encodes(self) -> None:
        """Lease to encoders, unless codes pile up because the output's store is slow."""
        if len(self.queues.shards) > SHARDS_AHEAD * self.fleet.num["write"]:
            return
        self._lease_suspects("encode")
        while self.streams.to_encode and (actor := self._room("encode")):
            clip = next(iter(self.streams.to_encode.values()))
            actor = self.fleet.same_actor("encode", clip.last_actor.get("encode")) or actor
            self.fleet.assign(self.streams.lease_encode(clip, actor), actor)
        clips = self.pools.lease_clips
        while actor := self._room("encode"):
            is_idle = self.fleet.idle_actor("encode") is not None
            if (lease := self.queues.next_encode(clips, is_idle=is_idle)) is None:
                return
            self.fleet.assign(lease, actor)

    def _lease_suspects(self, stage: Stage) -> None:
        suspects = self.queues.suspects[stage]
        while suspects and (actor := self.fleet.idle_actor(stage)):
            self.fleet.assign(suspects.popleft(), actor, alone=True)

    def _room(self, stage: Stage) -> ActorId | None:
        """The actor for an ordinary lease, if one may go out."""
        return None if self.queues.suspects[stage] else self.fleet.actor_with_room(stage)
