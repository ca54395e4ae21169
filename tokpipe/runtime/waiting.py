"""What a job waits for, in a sentence: workers that start, resources that are missing, a stop."""

from collections.abc import Mapping

from tokpipe.runtime.dispatch.parts import Parts
from tokpipe.runtime.dispatch.pools import gpus_per_encoder
from tokpipe.telemetry.human import duration
from tokpipe.types import STAGES, Stage

NO_ROOM_S = 60.0
"""After this long, a stage that Ray has no place for is said to lack room. Processes take seconds
to start, and on a busy machine tens of seconds."""


def waiting_for(parts: Parts, last_up: Mapping[Stage, float], now: float) -> str:
    """Return what holds the job up; empty while every stage has a worker.

    Args:
        last_up: when each stage last had a worker.
    """
    if parts.out.is_over:
        return ""
    if parts.settlement.is_stopping:
        left_s = max(0.0, parts.settlement.end_by - now)
        return f"stopping: committing finished clips, {duration(left_s)} at most"
    idle = [stage for stage in STAGES if not parts.fleet.num_up(stage)]
    for stage in idle:
        if lack := _lack(parts, stage, now - last_up[stage]):
            return lack
    if not idle:
        return ""
    *others, last = [f"{parts.fleet.num(stage) or ''} {stage}".strip() for stage in idle]
    what = f"{', '.join(others)} and {last}" if others else last
    workers = "worker" if sum(map(parts.fleet.num, idle)) == 1 else "workers"
    return f"starting {what} {workers} ({now - min(map(last_up.__getitem__, idle)):.0f} s)"


def _lack(parts: Parts, stage: Stage, waited_s: float) -> str:
    """Return which resource keeps a stage from starting; empty if nothing points to one."""
    actors = [one for one in parts.fleet.actors.values() if one.stage == stage]
    capacity, limits = parts.pools.capacity, parts.pools.limits
    if capacity is None or not actors or any(one.is_placed for one in actors):
        return ""
    zero_cpu = any(one.zero_cpu for one in actors)
    cpus = 0.0 if zero_cpu else float(getattr(limits.runtime, stage).cpus)
    gpus = gpus_per_encoder(limits.runtime) if stage == "encode" and limits.on_gpu else 0.0
    for kind, need, have in (("CPU", cpus, capacity.cpus), ("GPU", gpus, capacity.gpus)):
        if need > have:
            return (
                f"no room for {stage} workers: each requests {need:g} {kind}, and the cluster has "
                f"{have:g} in all. Add nodes (an autoscaler does), or lower "
                f"runtime.{stage}.{kind.lower()}s"
            )
    if waited_s < NO_ROOM_S or not (cpus or gpus) or not any(map(parts.fleet.num_up, STAGES)):
        return ""
    needs = " and ".join(f"{n:g} {kind}" for n, kind in ((cpus, "CPU"), (gpus, "GPU")) if n)
    return (
        f"no node has had {needs} free for {stage} workers for {duration(waited_s)}. Other jobs "
        "may hold them (`ray status` shows it); this one continues when they are free"
    )
