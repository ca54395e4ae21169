"""Carries the dispatcher's commands to Ray and Ray's answers back. Decides nothing."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    ObjectLostError,
    RayActorError,
    RayTaskError,
)

from tokpipe.errors import ConfigError, NodeTrouble, RuntimeFault, StorageError, TokpipeError
from tokpipe.runtime.actors import DecodeActor, EncodeActor, InputsLost, Report, WriteActor
from tokpipe.runtime.assemble import Run
from tokpipe.runtime.cluster import draining_nodes
from tokpipe.runtime.dispatch.pools import gpus_per_encoder
from tokpipe.runtime.dispatch.protocol import (
    Abort,
    ActorId,
    ActorLost,
    ActorPlaced,
    ActorUp,
    AttemptId,
    Capacity,
    Command,
    Commit,
    Committed,
    DecodeLease,
    Dispatch,
    Draining,
    Event,
    FetchPlan,
    Finish,
    KillActor,
    LeaseDone,
    LeaseFailed,
    NodeId,
    Note,
    Release,
    ReleaseState,
    SetupFailed,
    StartActor,
    StopRequested,
    Tick,
    WriteLease,
)
from tokpipe.runtime.packing import Packed
from tokpipe.telemetry.logs import WorkerLog, log_event
from tokpipe.types import Stage

TICK_S = 0.5
CAPACITY_EVERY_S = 3.0
WATCH_EVERY_S = 15.0
"""How often it is looked whether another driver has claimed the output."""
STOP_GRACE_S = 30.0
MAX_STANDSTILL_S = 1800.0
"""A driver that was frozen for longer commits nothing that it has: ``tokpipe clean`` removes shards
that nothing lists from twice this age on."""


_REMOTE: dict[Stage, Any] = {
    "decode": ray.remote(DecodeActor),
    "encode": ray.remote(EncodeActor),
    "write": ray.remote(WriteActor),
}


@dataclass(frozen=True, slots=True)
class _Death:
    """An actor died; whether with its node is for the loop to find out, not for Ray's threads."""

    actor: ActorId
    message: str


@dataclass
class _Handle:
    stage: Stage
    actor: Any
    node_id: str | None = None


class Shell:
    """One run of the job on a Ray cluster that the process is connected to."""

    def __init__(self, run: Run) -> None:
        self.config, self.stages = run.config, run.stages
        self.dispatcher, self.feed, self.committer = run.dispatcher, run.feed, run.committer
        self.was_drained = False
        """The run was stopped because the driver's own node is about to go."""
        self._events: queue.SimpleQueue[Event | _Death | TokpipeError] = queue.SimpleQueue()
        self._handles: dict[ActorId, _Handle] = {}
        self._payloads: dict[AttemptId, Any] = {}
        self._states: dict[AttemptId, Any] = {}
        # Both write or read the store, and both are ordered: one thread each.
        self._commits = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._plans = ThreadPoolExecutor(1, thread_name_prefix="plan")

    def stop(self) -> None:
        """Ask the run to commit what is finished and end. Safe in a signal handler."""
        self._events.put(StopRequested(STOP_GRACE_S))

    def run(self, on_progress: Callable[[], None]) -> Finish:
        """Work until every clip is committed, or until stopped.

        Args:
            on_progress: called twice a second.

        Raises:
            StorageError, Fenced, RuntimeFault: the job cannot go on; what is committed stays.
        """
        self._weights = ray.put(self.stages.weights)
        try:
            return self._loop(on_progress)
        finally:
            for handle in self._handles.values():
                ray.kill(handle.actor)
            self._commits.shutdown(wait=True)
            self._plans.shutdown(wait=False, cancel_futures=True)

    def _loop(self, on_progress: Callable[[], None]) -> Finish:
        next_tick = next_capacity = time.monotonic()
        next_watch = next_tick + WATCH_EVERY_S
        moved_at = time.time()  # by the clock that goes on while a machine is suspended
        while True:
            _check_moving(moved_at)
            moved_at = time.time()
            now = time.monotonic()
            if now >= next_capacity:
                next_capacity = now + CAPACITY_EVERY_S
                self._look_at_nodes()
            if now >= next_watch:
                next_watch = now + WATCH_EVERY_S
                self._commits.submit(self.committer.watch).add_done_callback(self._post_result)
            if now >= next_tick:
                next_tick = now + TICK_S
                self._events.put(Tick())
                on_progress()
            try:
                event = self._events.get(timeout=max(0.0, next_tick - now))
            except queue.Empty:
                continue
            if isinstance(event, TokpipeError):
                raise event
            if isinstance(event, _Death):
                event = ActorLost(event.actor, self._node_is_lost(event.actor), event.message)
            for command in self.dispatcher.handle(event, time.monotonic()):
                if isinstance(command, Finish):
                    return command
                self._carry_out(command)

    def _look_at_nodes(self) -> None:
        draining = draining_nodes()
        self._events.put(Draining(draining))
        if not self.was_drained and ray.get_runtime_context().get_node_id() in draining:
            self.was_drained = True
            self.stop()
        self._events.put(_capacity(without=draining))

    # --- commands -------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Dispatch):
            self._dispatch(command)
        elif isinstance(command, Release):
            self._payloads.pop(command.attempt, None)
            self._states.pop(command.attempt, None)
        elif isinstance(command, ReleaseState):
            self._states.pop(command.attempt, None)
        elif isinstance(command, StartActor):
            self._start(command)
        elif isinstance(command, KillActor):
            handle = self._handles.pop(command.actor, None)
            if handle is not None:
                ray.kill(handle.actor)
        elif isinstance(command, FetchPlan):
            future = self._plans.submit(self.feed.fetch, command.num_items)
            future.add_done_callback(self._post_result)
        elif isinstance(command, Commit):
            done = self._commits.submit(self._commit, command, time.time())
            done.add_done_callback(self._post_result)
        elif isinstance(command, Note):
            level = logging.WARNING if command.is_warning else logging.INFO
            log_event(command.event, command.message, level=level, **command.fields)
        elif isinstance(command, Abort):
            raise (
                StorageError(command.message)
                if command.kind == "storage"
                else RuntimeFault(command.message)
            )

    def _commit(self, command: Commit, ordered_at: float) -> Committed:
        _check_moving(ordered_at)
        self.committer.commit(command.receipts, command.rejected, command.account)
        return Committed()

    def _post_result(self, future: Future[Any]) -> None:
        """Hand on what the store threads return; their errors end the run."""
        error = None if future.cancelled() else future.exception()
        if future.cancelled():
            return
        if error is None:
            if (event := future.result()) is not None:
                self._events.put(event)
        elif isinstance(error, TokpipeError):
            self._events.put(error)
        else:
            fault = RuntimeFault(f"the driver's store thread failed: {error!r}")
            fault.__cause__ = error
            self._events.put(fault)

    def _start(self, command: StartActor) -> None:
        stage, stages = command.stage, self.stages
        pool = getattr(self.config, stage)
        cpus = 0.0 if command.zero_cpu else pool.cpus
        options: dict[str, Any] = {"num_cpus": cpus, "max_restarts": 0, "max_task_retries": 0}
        if command.avoid:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(command.avoid)})"}
        arguments: tuple[Any, ...] = ()
        log = WorkerLog(
            as_json=self.config.log_path is not None,
            context={**stages.log_context, "stage": stage, "actor": command.actor},
        )
        if stage == "decode":
            actor = _REMOTE[stage].options(**options).remote(stages.decode, log)
        elif stage == "encode":
            if stages.device == "cuda":
                options["num_gpus"] = gpus_per_encoder(self.config)
            actor = _REMOTE[stage].options(**options).remote(stages.encode, log, stages.device)
            arguments = (self._weights,)
        else:
            actor = _REMOTE[stage].options(**options).remote(stages.write, log)
        self._handles[command.actor] = _Handle(stage, actor)
        placed = actor.node_id.remote()
        ready = actor.setup.remote(*arguments)
        placed.future().add_done_callback(lambda f: self._heard_placed(command.actor, f))
        ready.future().add_done_callback(lambda f: self._heard_ready(command.actor, f))

    def _dispatch(self, command: Dispatch) -> None:
        lease, attempt = command.lease, command.attempt
        handle = self._handles[command.actor]
        if isinstance(lease, WriteLease):
            name = f"{self.stages.shard_prefix}.{lease.lease_id}-{attempt}"
            picks = [(p.source, self._payloads[p.source], p.positions) for p in lease.picks]
            report = handle.actor.work.remote(name, picks)
        elif isinstance(lease, DecodeLease):
            self._payloads[attempt], report = handle.actor.work.remote(Packed(lease.items))
        elif lease.stream is None:
            pixels = self._payloads[lease.pick.source]
            outputs = handle.actor.work.remote(lease.pick.positions, pixels)
            self._payloads[attempt], report = outputs
        else:
            (position,), pixels = lease.pick.positions, self._payloads[lease.pick.source]
            state = None if lease.state is None else self._states[lease.state]
            outputs = handle.actor.work_piece.remote(position, pixels, state)
            self._payloads[attempt], self._states[attempt], report = outputs
        report.future().add_done_callback(lambda future: self._heard_report(command, future))

    # --- answers (on Ray's threads: they only post events) --------------------------------------

    def _heard_placed(self, actor: ActorId, future: Future[str]) -> None:
        if future.exception() is None:
            handle = self._handles.get(actor)
            if handle is not None:
                handle.node_id = future.result()
            self._events.put(ActorPlaced(actor, future.result()))

    def _heard_ready(self, actor: ActorId, future: Future[None]) -> None:
        error = future.exception()
        if error is None:
            self._events.put(ActorUp(actor))
        elif isinstance(error, RayTaskError):
            cause = getattr(error, "cause", None)
            if isinstance(cause, ConfigError):
                self._events.put(cause)  # weights that do not fit do not fit any other actor
            else:
                self._events.put(SetupFailed(actor, _say(error), isinstance(cause, NodeTrouble)))
        elif isinstance(error, RayActorError) and error.actor_init_failed:
            # The node could not even build it: most often tokpipe is not installed there.
            last_line = str(error).strip().splitlines()[-1]
            self._events.put(SetupFailed(actor, f"it could not be built: {last_line}"))
        else:
            self._events.put(_Death(actor, _say(error)))

    def _heard_report(self, command: Dispatch, future: Future[Report | InputsLost]) -> None:
        attempt, error = command.attempt, future.exception()
        if error is None:
            report = future.result()
            if isinstance(report, InputsLost):
                self._events.put(
                    LeaseFailed(attempt, "inputs_lost", "a node was lost", report.attempts)
                )
            else:
                self._events.put(
                    LeaseDone(
                        attempt,
                        report.answer,
                        report.busy_s,
                        report.download_s,
                        report.download_bytes,
                    )
                )
        elif isinstance(error, RayTaskError):
            cause = getattr(error, "cause", None)
            if isinstance(cause, ObjectLostError):
                self._events.put(LeaseFailed(attempt, "inputs_lost", _say(error)))
            elif isinstance(cause, StorageError):
                self._events.put(LeaseFailed(attempt, "storage", _say(error)))
            elif isinstance(cause, NodeTrouble):
                self._events.put(LeaseFailed(attempt, "node", _say(error)))
            else:
                self._events.put(LeaseFailed(attempt, "fault", _say(error)))
        elif isinstance(error, ObjectLostError):
            self._events.put(LeaseFailed(attempt, "inputs_lost", _say(error)))
        else:
            self._events.put(_Death(command.actor, _say(error)))

    def _node_is_lost(self, actor: ActorId) -> bool:
        handle = self._handles.get(actor)
        if handle is None or handle.node_id is None:
            return False
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        return handle.node_id not in alive


def _check_moving(since: float) -> None:
    stood_still_s = time.time() - since
    if stood_still_s > MAX_STANDSTILL_S:
        raise RuntimeFault(
            f"this driver stood still for {stood_still_s / 3600:.1f} hours: it was frozen, or its "
            "machine was suspended. Shards that it knows of may have been cleaned away since, so "
            "it lists none of them. Run the job again; what was committed stays."
        )


def _capacity(*, without: frozenset[NodeId]) -> Capacity:
    alive = [
        node["Resources"] for node in ray.nodes() if node["Alive"] and node["NodeID"] not in without
    ]
    return Capacity(
        cpus=sum(resources.get("CPU", 0.0) for resources in alive),
        gpus=sum(resources.get("GPU", 0.0) for resources in alive),
    )


def _say(error: BaseException) -> str:
    """One line about an error that crossed Ray: the cause's own words where there is one."""
    cause = getattr(error, "cause", None) or error
    if isinstance(error, RayActorError):
        return f"its worker process died ({type(error).__name__})"
    first = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {first[0] if first else ''}"
