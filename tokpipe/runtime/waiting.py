"""What a job waits for, in a sentence: workers that start, resources that are missing, a stop."""

import json
from collections.abc import Mapping

from tokpipe.config.job import PoolConfig
from tokpipe.runtime.dispatch.parts import Parts
from tokpipe.runtime.dispatch.pools import gpus_per_encoder
from tokpipe.telemetry.human import duration
from tokpipe.types import STAGES, Stage

_PLACEMENT = {"accelerator_type", "resources", "labels"}
NO_ROOM_S = 60.0
"""After this long, encoders without a place are said to lack GPUs: processes take seconds to start,
and on a busy machine tens of seconds."""


def waiting_for(parts: Parts, last_up: Mapping[Stage, float], now: float) -> str:
    """Return what holds the job up; empty while every stage has a worker.

    ``last_up``: when each stage last had one.
    """
    if parts.out.is_over:
        return ""
    if parts.settlement.is_stopping:
        left_s = max(0.0, parts.settlement.end_by - now)
        return f"stopping: committing finished clips, {duration(left_s)} at most"
    idle = [stage for stage in STAGES if not parts.fleet.num_up(stage)]
    if not idle:
        return ""
    if lack := no_room(parts):
        lower = ", or lower runtime.encode.gpus" if lack.endswith("in all") else ""
        return f"{lack}. Add nodes (an autoscaler does){lower}"
    waited_s, some_work = now - last_up["encode"], len(idle) < len(STAGES)
    if some_work and waited_s >= NO_ROOM_S and _waits_for_gpu(parts):
        need = gpus_per_encoder(parts.pools.limits.runtime)
        return (
            f"no node has had {need:g} GPU free for encode workers for {duration(waited_s)}. Other "
            "jobs may hold them (`ray status` shows it); this one continues when they are free"
        )
    *others, last = [f"{parts.fleet.num(stage) or ''} {stage}".strip() for stage in idle]
    what = f"{', '.join(others)} and {last}" if others else last
    workers = "worker" if sum(map(parts.fleet.num, idle)) == 1 else "workers"
    return f"starting {what} {workers} ({now - min(map(last_up.__getitem__, idle)):.0f} s)"


def no_room(parts: Parts) -> str:
    """Return which stage no node can run. One that lacks CPUs starts an actor that needs none."""
    capacity, limits, fleet = parts.pools.capacity, parts.pools.limits, parts.fleet
    if capacity is None or parts.out.is_over or parts.settlement.is_stopping:
        return ""
    for stage in STAGES:
        pool: PoolConfig = getattr(limits.runtime, stage)
        wanted = pool.model_dump(include=_PLACEMENT, exclude_defaults=True)
        if wanted and not fleet.num_up(stage) and not capacity.most(stage):
            asked = json.dumps(wanted, ensure_ascii=False)[1:-1].replace('"', "")
            return (
                f"no room for {stage} workers: no node has what runtime.{stage} requires, {asked} "
                "(`ray status -v` lists what nodes have)"
            )
    need, (_, gpus) = gpus_per_encoder(limits.runtime), capacity.of()
    if _waits_for_gpu(parts) and need > gpus:
        return (
            f"no room for encode workers: each requests {need:g} GPU, and the cluster has "
            f"{gpus:g} in all"
        )
    return ""


def _waits_for_gpu(parts: Parts) -> bool:
    encoders = [one for one in parts.fleet.actors.values() if one.stage == "encode"]
    is_placed = any(one.is_placed for one in encoders)
    return parts.pools.limits.on_gpu and bool(encoders) and not is_placed
