"""What a job waits for, in a sentence: workers that start, resources that are missing, a stop."""

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
    for stage in idle:
        pool: PoolConfig = getattr(parts.pools.limits.runtime, stage)
        wanted = pool.model_dump(include=_PLACEMENT, exclude_defaults=True)
        if wanted and (capacity := parts.pools.capacity) and not capacity.most(stage):
            return (
                f"no room for {stage} workers: no node has what runtime.{stage} requires, "
                f"{wanted} (`ray status -v` lists what nodes have). Add nodes (an autoscaler does)"
            )
    if "encode" in idle and (lack := _lack_of_gpus(parts, now - last_up["encode"])):
        return lack
    *others, last = [f"{parts.fleet.num(stage) or ''} {stage}".strip() for stage in idle]
    what = f"{', '.join(others)} and {last}" if others else last
    workers = "worker" if sum(map(parts.fleet.num, idle)) == 1 else "workers"
    return f"starting {what} {workers} ({now - min(map(last_up.__getitem__, idle)):.0f} s)"


def _lack_of_gpus(parts: Parts, waited_s: float) -> str:
    """Return why no encoder has a place. A stage that lacks CPUs starts one that requests none."""
    capacity, limits = parts.pools.capacity, parts.pools.limits
    encoders = [one for one in parts.fleet.actors.values() if one.stage == "encode"]
    if not (limits.on_gpu and capacity and encoders) or any(one.is_placed for one in encoders):
        return ""
    need = gpus_per_encoder(limits.runtime)
    if need > capacity.gpus:
        return (
            f"no room for encode workers: each requests {need:g} GPU, and the cluster has "
            f"{capacity.gpus:g} in all. Add nodes (an autoscaler does), or lower "
            "runtime.encode.gpus"
        )
    if waited_s < NO_ROOM_S or not any(map(parts.fleet.num_up, STAGES)):
        return ""
    return (
        f"no node has had {need:g} GPU free for encode workers for {duration(waited_s)}. Other "
        "jobs may hold them (`ray status` shows it); this one continues when they are free"
    )
