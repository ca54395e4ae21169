"""Which nodes a stage may run on: what its pool requires, and what Ray's nodes have."""

from collections.abc import Iterable, Mapping
from math import inf
from typing import Any

from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.dispatch.protocol import Capacity, NodeId, Room
from tokpipe.types import STAGES


def actor_options(pool: PoolConfig, *, zero_cpu: bool, avoid: Iterable[NodeId]) -> dict[str, Any]:
    """Return Ray's options for an actor of a pool, away from some nodes."""
    labels = dict(pool.labels)
    if nodes := ",".join(avoid):
        labels["ray.io/node-id"] = f"!in({nodes})"
    cpus = 0.0 if zero_cpu else pool.cpus
    return {"num_cpus": cpus, "resources": _resources(pool), "label_selector": labels}


def capacity_of(
    nodes: Iterable[Mapping[str, Any]], config: RuntimeConfig, *, on_gpu: bool
) -> Capacity:
    """Return what live nodes, as ``ray.nodes()`` lists them, have for each stage."""
    rooms = {}
    for node in nodes:
        has, labels = node["Resources"], node.get("Labels") or {}
        room = Room(has.get("CPU", 0.0), has.get("GPU", 0.0), slots := {})
        for stage in STAGES:
            pool: PoolConfig = getattr(config, stage)
            fits = [(has.get(name, 0.0) + 1e-9) // need for name, need in _resources(pool).items()]
            admits = (_admits(labels.get(key), wanted) for key, wanted in pool.labels.items())
            lacks = (pool.cpus and not room.cpus) or (
                stage == "encode" and on_gpu and not room.gpus
            )
            slots[stage] = 0.0 if lacks or not all(admits) else min(fits, default=inf)
        rooms[node["NodeID"]] = room
    return Capacity(rooms)


def _resources(pool: PoolConfig) -> dict[str, float]:
    """The custom resources of one actor. Ray lists kinds of GPUs among those of a node."""
    kind = pool.accelerator_type
    return {**pool.resources, **({f"accelerator_type:{kind}": 0.001} if kind else {})}


def _admits(found: str | None, selector: str) -> bool:
    """Whether a node's label matches a selector, as Ray decides it."""
    wanted = selector.removeprefix("!")
    values = wanted[3:-1].split(",") if wanted.startswith("in(") else [wanted]
    return (found in [one.strip() for one in values]) != selector.startswith("!")
