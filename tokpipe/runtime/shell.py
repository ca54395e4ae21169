"""Carries the dispatcher's commands to Ray and Ray's answers back. Decides nothing."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import groupby
from math import inf
from operator import attrgetter
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from tokpipe.config.job import LISTED_WITHIN_S
from tokpipe.errors import (
    ConfigError,
    HeadLost,
    NodeTrouble,
    RuntimeFault,
    StorageError,
    TokpipeError,
    UnfitNode,
)
from tokpipe.formats.layout import shard_key
from tokpipe.runtime import actors
from tokpipe.runtime.assemble import Run
from tokpipe.runtime.cluster import actor_options, capacity_of, draining_nodes, live_nodes
from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.fleet import INPUTS_WITHIN_S
from tokpipe.runtime.dispatch.pools import gpus_per_encoder
from tokpipe.runtime.dispatch.protocol import ActorId, ActorLost, AttemptId, Event, LeaseFailed
from tokpipe.runtime.trouble import explain, one_line
from tokpipe.storage.retry import Moment
from tokpipe.telemetry.logs import log_event, start_worker_log
from tokpipe.types import Stage

TICK_S = 0.5
TICKS_PER_LOOK = 6  # How often to look at the nodes
TICKS_PER_WATCH = 30  # How often to check whether another driver has claimed the output
HEAD_SILENT_S = 5.0  # How long the head may take to answer before people are informed
GIVE_UP_ON_HEAD_S = 40.0  # When to end the run: after 60 s Ray would, with a stack trace

_REMOTE: dict[Stage, Any] = {
    "decode": ray.remote(actors.DecodeActor),
    "encode": ray.remote(actors.EncodeActor),
    "write": ray.remote(actors.WriteActor),
}
_MISSING_INPUTS = ray.remote(num_cpus=0)(actors.missing_inputs)


class Shell:
    """One run of the job on a Ray cluster that the process is connected to."""

    def __init__(self, run: Run) -> None:
        self.job = run
        self.dispatcher, self.feed, self.committer = run.dispatcher, run.feed, run.committer
        self.was_drained = False  # The run was stopped because the driver's own node is draining
        self._events: queue.SimpleQueue[Event | TokpipeError] = queue.SimpleQueue()
        self._actors: dict[ActorId, Any] = {}
        self._payloads: dict[AttemptId, list[Any]] = {}  # Their parts
        self._begun: dict[str, Moment] = {}  # When the lease of each uncommitted shard began
        # Both access the store, and both are ordered: one thread each.
        self._commits = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._plans = ThreadPoolExecutor(1, thread_name_prefix="plan")
        # The head too has a thread: Ray waits a minute for a dead one, then ends the process.
        self._questions: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._asked_at: float | None = None
        self._put: dict[Stage, list[Any]] = {}  # What setups of actors share, by stage
        self._put_at = -inf

    def stop(self) -> None:
        """Ask the run to commit what is finished and end. Safe in a signal handler."""
        self._events.put(protocol.StopRequested())

    def run(self, on_progress: Callable[[], object]) -> protocol.Finish:
        """Work until every clip is committed or until stopped; twice a second, ``on_progress``.
        StorageError, Fenced, RuntimeFault: the job cannot continue; committed work is kept."""
        head = threading.Thread(target=self._ask_head, daemon=True)
        head.start()
        try:
            return self._loop(on_progress)
        except RayError as error:
            raise RuntimeFault(f"{explain(error)[2]}. Committed work is kept") from error
        finally:
            for actor in self._actors.values():
                self._questions.put(partial(ray.kill, actor))
            self._questions.put(None)
            head.join(10.0 if self._silent_s < HEAD_SILENT_S else 0.0)
            self._commits.shutdown(wait=True)
            self._plans.shutdown(wait=False, cancel_futures=True)

    def _loop(self, on_progress: Callable[[], object]) -> protocol.Finish:
        num_ticks, next_tick = 0, time.monotonic()
        while True:
            if (now := time.monotonic()) >= next_tick:
                if num_ticks % TICKS_PER_LOOK == 0:
                    self._look_at_nodes()
                num_ticks, next_tick = num_ticks + 1, now + TICK_S
                if num_ticks % TICKS_PER_WATCH == 0:
                    self._commits.submit(self.committer.watch).add_done_callback(self._post_result)
                self._events.put(protocol.Tick())
                on_progress()
            try:
                event = self._events.get(timeout=max(0.0, next_tick - now))
            except queue.Empty:
                continue
            if isinstance(event, TokpipeError):
                raise event
            for command in self.dispatcher.handle(event, time.monotonic()):
                if isinstance(command, protocol.Finish):
                    return command
                self._carry_out(command)

    @property
    def _silent_s(self) -> float:
        return 0.0 if (asked_at := self._asked_at) is None else time.monotonic() - asked_at

    def _ask_head(self) -> None:
        while (question := self._questions.get()) is not None:
            self._asked_at = time.monotonic()
            try:
                question()
            except Exception as error:
                self._events.put(RuntimeFault(explain(error)[2]))
            self._asked_at = None

    def _look_at_nodes(self) -> None:
        if (silent_s := self._silent_s) > GIVE_UP_ON_HEAD_S:
            found = f"the head of the Ray cluster has not answered for {silent_s:.0f} s"
            do = "Committed work is kept; once the cluster runs, run the job again"
            raise HeadLost(f"{found}. {do}")
        if silent_s > HEAD_SILENT_S:
            text = f"waiting for the head of the Ray cluster, silent for {silent_s:.0f} s"
            log_event("head_silent", text, level=logging.WARNING, silent_s=round(silent_s, 1))
        elif not silent_s:
            self._questions.put(self._find_nodes)

    def _find_nodes(self) -> None:
        draining, alive = draining_nodes(), live_nodes()
        if not self.was_drained and ray.get_runtime_context().get_node_id() in draining:
            self.was_drained = True
            self.stop()
        staying = (one for node, one in alive.items() if node not in draining)
        capacity = capacity_of(staying, self.job.config, on_gpu=self.job.device == "cuda")
        self._events.put(capacity._replace(draining=draining))

    def _bury(self, actor: ActorId, message: str) -> None:
        """Find out whether an actor died alone or with its node. Ray may only not reach it."""
        known = self.dispatcher.fleet.actors.get(actor)
        is_node_lost = known is not None and known.node not in (None, *live_nodes())
        self._events.put(ActorLost(actor, "node_died" if is_node_lost else "died", message))

    def _carry_out(self, command: protocol.Command) -> None:
        match command:
            case protocol.Dispatch():
                self._dispatch(command)
            case protocol.FindInputs(flight, node):
                self._find_inputs(flight, node)
            case protocol.Release(attempt, int(part)):
                self._payloads[attempt][part] = None
            case protocol.Release(attempt):
                self._payloads.pop(attempt, None)
            case protocol.StartActor():
                self._start(command)
            case protocol.KillActor(actor):
                if (handle := self._actors.pop(actor, None)) is not None:
                    self._questions.put(partial(ray.kill, handle))
            case protocol.FetchPlan(num_items):
                planned = self._plans.submit(self.feed.fetch, num_items)
                planned.add_done_callback(self._post_result)
            case protocol.Commit():
                committed = self._commits.submit(self._commit, command)
                committed.add_done_callback(self._post_result)
            case protocol.Note(event, message, fields, is_warning):
                level = logging.WARNING if is_warning else logging.INFO
                log_event(event, message, level=level, **fields)
            case protocol.Abort(kind, message):
                kinds = {"storage": StorageError, "config": ConfigError, "runtime": RuntimeFault}
                raise kinds[kind](message)

    def _commit(self, command: protocol.Commit) -> protocol.Committed:
        begun = [self._begun.pop(one.shard) for one in command.receipts]
        check_in_time(begun, self.job.write.storage.deadline_s)
        self.committer.commit(command.receipts, command.rejected, command.account)
        check_in_time(begun)
        return protocol.Committed()

    def _post_result(self, future: Future[Any]) -> None:
        if future.cancelled():
            return
        event = future.exception() or future.result()
        if isinstance(event, BaseException) and not isinstance(event, TokpipeError):
            event = RuntimeFault(f"the driver's store thread failed: {event!r}")
        if event is not None:
            self._events.put(event)

    def _start(self, command: protocol.StartActor) -> None:
        actor_id, stage, job = command.actor, command.stage, self.job
        pool, capacity = getattr(job.config, stage), self.dispatcher.pools.capacity
        fits = set(capacity.nodes_for(stage)) if capacity else set()
        avoid = command.avoid if fits - {*command.avoid} else ()  # else no node is better
        options = actor_options(pool, zero_cpu=command.zero_cpu, avoid=avoid)
        options |= {"max_restarts": 0, "max_task_retries": 0}
        # Put them again if an actor may have waited for them in vain.
        if time.monotonic() - self._put_at > job.config.start_timeout_s:
            reused, weights = ray.put(job.reused), ray.put(job.weights)
            self._put = {"decode": [reused], "encode": [job.device, weights], "write": []}
            self._put_at = time.monotonic()
        if stage == "encode" and job.device == "cuda":
            options["num_gpus"] = gpus_per_encoder(job.config)
        context = {**job.log_context, "stage": stage, "actor": actor_id}
        log = partial(start_worker_log, context, as_json=job.config.log_path is not None)
        actor = _REMOTE[stage].options(**options).remote(log)
        self._actors[actor_id] = actor
        placed = actor.node_id.remote()
        ready = actor.setup.remote(job.landmark, getattr(job, stage), *self._put[stage])
        placed.future().add_done_callback(lambda f: self._heard_placed(actor_id, f))
        ready.future().add_done_callback(lambda f: self._heard_ready(actor_id, f))

    def _dispatch(self, command: protocol.Dispatch) -> None:
        lease, attempt, actor = command.lease, command.attempt, self._actors[command.actor]
        picks = [  # of each output in turn, in the lease's order
            (source, self._payloads[source][part], tuple(place.at for place in places))
            for (source, part), places in groupby(lease.places, attrgetter("source", "part"))
        ]
        if lease.stage == "write":
            name = f"{self.job.shard_prefix}.{lease.lease_id}-{attempt}"
            self._begun[shard_key(name)] = Moment.now()
            done = actor.work.remote(attempt, name, picks)
        elif lease.stage == "decode":
            sizes = self.dispatcher.pools.limits.frame_sizes
            work = actor.work.options(num_returns=len(sizes) + 2)
            *self._payloads[attempt], done = work.remote(attempt, actors.Packed(lease.items), sizes)
        else:
            _, pixels, positions = zip(*picks, strict=True)
            state = None if lease.state is None else self._payloads[lease.state][protocol.STATE]
            *self._payloads[attempt], done = actor.work.remote(attempt, positions, state, *pixels)
        done.future().add_done_callback(lambda future: self._heard_done(command, future))

    def _find_inputs(self, flight: protocol.Dispatch, node: str | None) -> None:
        """Look for them from the actor's node: the actor itself is deaf while it waits."""
        lease = flight.lease
        sources = tuple({place.source for place in lease.places})
        inputs = [*{self._payloads[place.source][place.part] for place in lease.places}]
        inputs += [] if lease.state is None else [self._payloads[lease.state][protocol.STATE]]
        there = {"ray.io/node-id": node} if node else {}
        found = _MISSING_INPUTS.options(label_selector=there).remote(inputs, INPUTS_WITHIN_S)
        failed = LeaseFailed(flight.attempt, "node", actors.STUCK, sources)
        found.future().add_done_callback(lambda future: self._heard_found(failed, future))

    # Answers come on Ray's threads, so these methods only post events.

    def _heard_placed(self, actor: ActorId, future: Future[str]) -> None:
        if future.exception() is None:
            self._events.put(protocol.ActorPlaced(actor, future.result()))

    def _heard_ready(self, actor: ActorId, future: Future[Any]) -> None:
        if (error := future.exception()) is None:
            self._events.put(protocol.ActorUp(actor, *future.result()))
            return
        cause, fault, line = explain(error)
        is_unfit = isinstance(cause, UnfitNode | ModuleNotFoundError)
        if isinstance(cause, ConfigError) and not is_unfit:
            self._events.put(cause)  # weights that do not fit will not fit any other actor
        elif isinstance(error, RayActorError) and error.actor_init_failed:
            # The node could not even build it: most often tokpipe is not installed there.
            line = f"it could not be built: {one_line(str(error).strip().splitlines()[-1])}"
            self._events.put(ActorLost(actor, "raised", line))
        elif fault == "worker":
            self._questions.put(partial(self._bury, actor, line))
        elif is_unfit:
            self._events.put(ActorLost(actor, "node_unfit", line))
        else:
            is_trouble = isinstance(cause, NodeTrouble) or fault == "node"
            self._events.put(ActorLost(actor, "node_trouble" if is_trouble else "raised", line))

    def _heard_found(self, failed: LeaseFailed, future: Future[list[int]]) -> None:
        if future.exception() is None and future.result():
            self._events.put(failed)

    def _heard_done(self, command: protocol.Dispatch, future: Future[Event]) -> None:
        if (error := future.exception()) is None:
            self._events.put(future.result())
            return
        attempt, (cause, fault, line) = command.attempt, explain(error)
        if isinstance(cause, ConfigError):
            self._events.put(cause)  # such as a missing package: no clip is to blame
        elif isinstance(cause, StorageError):
            self._events.put(LeaseFailed(attempt, "storage", str(cause)))
        elif fault == "worker":
            self._questions.put(partial(self._bury, command.actor, line))
        elif fault == "cluster":
            self._events.put(RuntimeFault(line))
        else:
            kind = "node" if isinstance(cause, NodeTrouble) else fault
            self._events.put(LeaseFailed(attempt, kind, line))


def check_in_time(begun: Iterable[Moment], needs_s: float = 0.0) -> None:
    """Raise RuntimeFault if shards are too old to be listed in ``needs_s`` seconds; 0: they are."""
    age_s = max((one.age_s for one in begun), default=0.0)
    if age_s + needs_s > LISTED_WITHIN_S:
        none_listed = "It lists none of them. Run the job again; committed work is kept."
        listed = "The last manifest entry lists them: check the output with `tokpipe audit`."
        raise RuntimeFault(
            f"this driver took {age_s / 3600:.1f} hours to list shards: it was frozen, its machine "
            "was suspended, its clock was set, or the store is slow. `tokpipe clean` may have "
            f"removed them since. {none_listed if needs_s else listed}"
        )
