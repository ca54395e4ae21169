"""How many actors each stage should have: a plain function of what the cluster has."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.protocol import Capacity, Stage


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """Target number of actors by stage; at least one each."""

    decode: int
    encode: int
    write: int

    def of(self, stage: Stage) -> int:
        return {"decode": self.decode, "encode": self.encode, "write": self.write}[stage]


def gpus_per_encoder(config: RuntimeConfig) -> float:
    """GPUs that one encode actor asks for, when encoding on GPUs."""
    return config.encode.gpus or 1.0


def size_pools(capacity: Capacity, config: RuntimeConfig, *, on_gpu: bool) -> PoolSizes:
    """Divide the cluster between the stages.

    On GPUs, encoders take every GPU and decoders the CPUs that encoders leave. On CPUs alone,
    encoding is nearly all of the work: decoders take a quarter, encoders the rest. A stage
    never gets less than its ``min_actors``, fitting or not: an actor that waits for room is
    what makes a cluster's autoscaler add a node.
    """
    if on_gpu:
        encode = _bounded(_fit(capacity.gpus, gpus_per_encoder(config)), config.encode)
        left = capacity.cpus - encode * config.encode.cpus
        decode = _bounded(_fit(left, config.decode.cpus), config.decode)
    else:
        share = max(config.decode.cpus, capacity.cpus / 4)
        decode = _bounded(_fit(share, config.decode.cpus), config.decode)
        left = capacity.cpus - decode * config.decode.cpus
        encode = _bounded(_fit(left, config.encode.cpus), config.encode)
    write = _bounded(1 + encode // 16, config.write)
    return PoolSizes(decode=decode, encode=encode, write=write)


def _fit(have: float, need: float) -> int:
    """How many fit; a pool whose actors need nothing keeps to its ``min_actors``."""
    return floor(have / need + 1e-9) if need > 0 else 0


def _bounded(number: int, pool: PoolConfig) -> int:
    return max(pool.min_actors, min(number, pool.max_actors))
