"""Who works on what: a pure state machine.

``handle(event, now)`` takes one event and returns the commands that follow. There is no ray, no
clock and no I/O in here: the Ray shell and the simulation drive the same object. It guarantees:

- Every planned clip ends in exactly one commit, tokenized or rejected, whatever actors do, as
  long as some actor of each stage makes progress.
- An answer counts only while its attempt is in flight, so a zombie's work is never used.
- A clip is blamed for a lost or failing worker only if it was there alone. After
  ``max_attempts`` such losses it is rejected, alone. A clip that a stage gives up
  (``Failed``) is tried again as often, after a pause.
- A draining node, or one with trouble, gets nothing new and blames nobody.
- What is in flight is bounded by credits, whatever the size of the plan.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from tokpipe.runtime.dispatch.account import Ledger
from tokpipe.runtime.dispatch.blame import Blame
from tokpipe.runtime.dispatch.fleet import Fleet
from tokpipe.runtime.dispatch.flights import Flights
from tokpipe.runtime.dispatch.leasing import Leasing
from tokpipe.runtime.dispatch.pools import Pools
from tokpipe.runtime.dispatch.protocol import (
    Abort,
    ActorLost,
    ActorPlaced,
    ActorRefused,
    ActorUp,
    Capacity,
    Command,
    Committed,
    Draining,
    Event,
    Finish,
    LeaseDone,
    LeaseFailed,
    Limits,
    Planned,
    StopRequested,
    Tick,
)
from tokpipe.runtime.dispatch.queues import Queues
from tokpipe.runtime.dispatch.returns import Returns
from tokpipe.runtime.dispatch.settlement import Settlement
from tokpipe.runtime.dispatch.streams import StreamedClips
from tokpipe.types import STAGES, ClipRef, WorkItem


class Dispatcher:
    """See the module. ``ref_of`` names the clip of an item that is rejected unseen.

    Each part owns its state: ``fleet`` the actors, ``flights`` the attempts in flight, ``queues``
    and ``streams`` what waits, ``blame`` the strikes, ``settlement`` what is to be committed.
    """

    def __init__(self, limits: Limits, ref_of: Callable[[WorkItem], ClipRef]) -> None:
        new_id, emit = count(1), self._emit
        self.ledger = ledger = Ledger()
        self.pools = Pools(limits, emit)
        self.fleet = Fleet(limits.runtime, new_id, ledger, emit)
        self.flights = Flights(emit)
        self.queues = Queues(emit)
        self.streams = StreamedClips()
        self.blame = Blame(limits.runtime.max_attempts, ref_of, ledger, emit)
        self.settlement = Settlement(limits, self.queues, new_id, ledger, emit)
        owners = self.fleet, self.flights, self.queues, self.streams
        self._leasing = Leasing(*owners, self.pools, new_id, emit)
        self._returns = Returns(
            *owners, self.blame, self.settlement, self.pools, new_id, ledger, emit
        )
        self._commands: list[Command] = []
        self._is_over = False

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event at time ``now`` (seconds, monotonic); return what must be done."""
        self._commands = []
        if not self._is_over:
            self._react(event, now)
            self._advance(now)
        return self._commands

    def _emit(self, command: Command) -> None:
        """Nothing follows the command that ends the job."""
        if not self._is_over:
            self._commands.append(command)
            self._is_over = isinstance(command, Abort | Finish)

    def _react(self, event: Event, now: float) -> None:
        match event:
            case LeaseDone():
                self._returns.done(event, now)
            case LeaseFailed():
                self._returns.failed(event, now)
            case Planned():
                self.queues.planned(event)
            case Committed():
                self.settlement.committed()
            case Tick():
                self.fleet.count_time(now)
                for actor, why in self.fleet.remove_overdue(now):
                    self._returns.lost(actor, now, blame=why)
            case Capacity():
                self.pools.resize(event, now)
            case ActorPlaced():
                self.fleet.placed(event)
            case ActorUp():
                self.fleet.came_up(event.actor)
            case ActorLost():
                if (dead := self.fleet.lost(event, now)) is not None:
                    blame = None if event.node_lost else event.message
                    self._returns.lost(dead, now, blame=blame)
            case ActorRefused():
                self.fleet.refused(event, now)
            case Draining():
                if self.fleet.drain(event.nodes):
                    self.settlement.close_all()  # nobody knows which nodes hold its codes
            case StopRequested():
                self.settlement.stop(event, now)

    # --- what follows from the state ------------------------------------------------------------

    def _advance(self, now: float) -> None:
        self.fleet.remove_left()
        if not self.settlement.is_stopping:
            self._follow_capacity(now)
            # A few leases' worth of items wait, and no more.
            self.queues.ask_for_plan(self.pools.lease_clips * 2 * max(1, self.fleet.num("decode")))
            self.streams.admit(self.fleet.num_up("encode"))
            self._returns.retry_due(now)
            self._leasing.decodes(now)
            self._leasing.encodes(now)
        self._settle(now)

    def _follow_capacity(self, now: float) -> None:
        """Start and remove actors until each stage has as many as it should have."""
        if (sizes := self.pools.sizes) is None:
            return
        for stage in STAGES:
            target = sizes.of(stage)
            self.fleet.replace_starved(stage, now)
            for actor_id in self.fleet.surplus(stage, target):
                self._returns.lost(self.fleet.remove(actor_id), now, blame=None)
            one_shares = stage == "decode" and sizes.decode_shares
            self.fleet.fill(stage, target, now, one_shares=one_shares)

    def _settle(self, now: float) -> None:
        """Write what is due, commit what is written, and end if that was all."""
        encoding = self.flights.num("encode") > 0
        all_encoded = (
            not encoding
            and not self.flights.num("decode")
            and not len(self.streams)
            and self.queues.nothing_before_write
        )
        is_stopping = self.settlement.is_stopping
        no_more_codes = all_encoded or (
            is_stopping and (not encoding or self.settlement.encoding_is_over(now))
        )
        self.settlement.close_due(now, hurry=no_more_codes)
        self._leasing.writes(now)
        all_written = not (
            self.settlement.has_open_shards
            or self.queues.num_shards
            or self.queues.has_suspects("write")
            or self.flights.num("write")
        )
        self.settlement.commit_due(now, is_last=all_written and (all_encoded or is_stopping))
        self.settlement.finish_if_over(
            now, all_written=all_written, all_encoded=all_encoded, encoding=encoding
        )
