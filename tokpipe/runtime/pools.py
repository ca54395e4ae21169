"""How many actors each stage should have: a plain function of what the cluster has."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.protocol import Capacity
from tokpipe.types import Stage

WORTH_CHANGING = 1.1
"""How many times faster another division must promise to be: an actor takes seconds to start."""


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """Target number of actors by stage; at least one each."""

    decode: int
    encode: int
    write: int
    decode_shares: bool = False
    """One of the decoders asks for no CPU of its own."""

    def of(self, stage: Stage) -> int:
        return {"decode": self.decode, "encode": self.encode, "write": self.write}[stage]


@dataclass(frozen=True, slots=True)
class Need:
    """Seconds that a clip takes one actor of each stage, as measured."""

    decode_s: float
    encode_s: float


def gpus_per_encoder(config: RuntimeConfig) -> float:
    """GPUs that one encode actor asks for, when encoding on GPUs."""
    return config.encode.gpus or 1.0


def size_pools(
    capacity: Capacity,
    config: RuntimeConfig,
    *,
    on_gpu: bool,
    need: Need | None = None,
    num_decoders: int | None = None,
) -> PoolSizes:
    """Divide the cluster between the stages.

    On GPUs, encoders take every GPU and decoders the CPUs that encoders leave. On CPUs alone,
    both take CPUs: a quarter is for decoders until ``need`` is known, then as many as make the
    job fastest. One decoder has no CPU of its own but works on those of others, so that neither
    stage must have a whole CPU more than it needs; on small machines that is a lot.

    A stage never gets less than its ``min_actors``, fitting or not: an actor that waits for room is
    what makes a cluster's autoscaler add a node.

    Args:
        need: what was measured of this job; None before enough was.
        num_decoders: how many there are to be so far, which is kept unless a change pays.
    """
    if on_gpu:
        encode = _bounded(_fit(capacity.gpus, gpus_per_encoder(config)), config.encode)
        left = capacity.cpus - encode * config.encode.cpus
        decode = _bounded(_fit(left, config.decode.cpus), config.decode)
        return PoolSizes(decode=decode, encode=encode, write=_num_writers(encode, config))
    share = max(config.decode.cpus, capacity.cpus / 4)
    decode = _bounded(_fit(share, config.decode.cpus), config.decode)
    if need is not None:
        most = _fit(capacity.cpus, config.decode.cpus) + 1

        def rate(number: int) -> float:
            return _clips_per_s(_on_cpus(capacity, config, number), capacity, config, need)

        best = max(range(1, most + 1), key=rate)
        decode = _bounded(best, config.decode)
        if num_decoders is not None and rate(decode) < WORTH_CHANGING * rate(num_decoders):
            decode = num_decoders
    return _on_cpus(capacity, config, decode)


def _on_cpus(capacity: Capacity, config: RuntimeConfig, decode: int) -> PoolSizes:
    """So many decoders, and encoders on what they leave."""
    decode = _bounded(decode, config.decode)
    shares = capacity.cpus >= 1 and config.decode.cpus > 0
    left = capacity.cpus - (decode - shares) * config.decode.cpus
    encode = _bounded(_fit(left, config.encode.cpus), config.encode)
    return PoolSizes(decode, encode, _num_writers(encode, config), shares)


def _clips_per_s(sizes: PoolSizes, capacity: Capacity, config: RuntimeConfig, need: Need) -> float:
    """What these pools would do: as much as the slower stage, and as all CPUs together."""
    decode_s, encode_s = max(need.decode_s, 1e-9), max(need.encode_s, 1e-9)
    cpu_s = decode_s * config.decode.cpus + encode_s * config.encode.cpus
    all_cpus = capacity.cpus / cpu_s if cpu_s > 0 else float("inf")
    return min(sizes.decode / decode_s, sizes.encode / encode_s, all_cpus)


def _num_writers(encode: int, config: RuntimeConfig) -> int:
    return _bounded(1 + encode // 16, config.write)


def _fit(have: float, need: float) -> int:
    """How many fit; a pool whose actors need nothing keeps to its ``min_actors``."""
    return floor(have / need + 1e-9) if need > 0 else 0


def _bounded(number: int, pool: PoolConfig) -> int:
    return max(pool.min_actors, min(number, pool.max_actors))
