"""How many actors each stage should have, from what the cluster has and how long clips take."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, floor, inf
from typing import NamedTuple

from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import Capacity, Limits
from tokpipe.types import STAGES, Stage

WORTH_CHANGING = 1.1  # How many times faster a new division must be: actors take seconds to start
RESIZE_EVERY_S = 30.0  # How often pools are divided again by what was measured
NEED_LEASES = 8  # Leases of each stage before their pace counts as known
NEED_CLIPS = 2000  # Clips that the average pace covers; older ones count less and less
LEASE_S = 1.0  # Leases grow until they hold this much work: each costs the driver about 1 ms
LEASES_PER_S = 350  # They also grow until a stage needs no more, so that the driver keeps up
FIRST_WRITERS = 4  # The most write actors before the time to write a clip is known


class PoolSizes(NamedTuple):
    """Target number of actors by stage; at least one each."""

    decode: int
    encode: int
    write: int = 1
    decode_shares: bool = False  # One of the decoders requests zero CPUs


Need = Mapping[Stage, float]  # Seconds that a clip takes one actor of each stage


@dataclass(slots=True)
class _Pace:
    """How long clips take an actor of one stage."""

    leases: int = 0
    clips: float = 0.0
    seconds: float = 0.0


class Pools:
    """Target sizes of the stages' pools, and the size of leases."""

    def __init__(self, limits: Limits, out: Outbox) -> None:
        self.limits, self._out = limits, out
        self.capacity: Capacity | None = None
        self._cpus = 0.0
        self._pace: dict[Stage, _Pace] = {stage: _Pace() for stage in STAGES}
        self._resize_after = 0.0
        self.sizes: PoolSizes | None = None  # None until the cluster's capacity is known

    def measure(self, stage: Stage, num_clips: int, busy_s: float) -> None:
        """An actor of a stage has worked this long on a lease with this many clips."""
        pace = self._pace[stage]
        pace.leases += 1
        pace.clips += num_clips
        pace.seconds += busy_s
        if pace.clips > NEED_CLIPS:
            pace.clips /= 2
            pace.seconds /= 2

    def resize(self, capacity: Capacity) -> None:
        """Divide the cluster again: at once if it has changed, otherwise now and then."""
        if capacity == self.capacity and self._out.now < self._resize_after:
            return
        need, before, config = self._need(), self.sizes, self.limits.runtime
        if need is not None:
            self._resize_after = self._out.now + RESIZE_EVERY_S
        self.capacity, (self._cpus, gpus) = capacity, capacity.of()
        now_has = None if before is None else before.decode
        sizes = size_pools(capacity, config, need, on_gpu=self.limits.on_gpu, num_decoders=now_has)
        writers = _num_writers(sizes.encode, config, need)
        if before is not None and writers < before.write < 2 * writers:
            writers = before.write
        self.sizes = sizes._replace(write=writers)
        if self.sizes != before:
            wanted = {stage: getattr(self.sizes, stage) for stage in STAGES}
            text = ", ".join(f"{number} {stage}" for stage, number in wanted.items())
            self._out.note("pools_resized", text, actors=wanted, cpus=self._cpus, gpus=gpus)

    @property
    def lease_clips(self) -> int:
        most = self.limits.clips_per_lease
        usual = min(self.limits.usual_clips, most)
        if usual == most or (need := self._need()) is None:
            return usual
        clips = LEASE_S / max(need["decode"], need["encode"], 1e-9)
        if self.sizes is not None:
            rate = _clips_per_s(self.sizes, self._cpus, self.limits.runtime, need)
            clips = max(clips, rate / LEASES_PER_S)
        return max(usual, int(min(most, clips)))

    def _need(self) -> Need | None:
        """How long clips take each stage, once enough of them were seen."""
        if min(self._pace["decode"].leases, self._pace["encode"].leases) < NEED_LEASES:
            return None
        return {stage: one.seconds / max(1.0, one.clips) for stage, one in self._pace.items()}


def gpus_per_encoder(config: RuntimeConfig) -> float:
    """GPUs that an encode actor requests when encoding on GPUs."""
    return config.encode.gpus or 1.0


def size_pools(
    capacity: Capacity,
    config: RuntimeConfig,
    need: Need | None = None,
    *,
    on_gpu: bool,
    num_decoders: int | None = None,
) -> PoolSizes:
    """Divide the cluster between decoders and encoders.

    On GPUs, encoders take every GPU and decoders the CPUs that encoders leave. On CPUs alone,
    decoders get a quarter of the CPUs until ``need`` is known, then as many as make the job
    fastest. One decoder requests zero CPUs and shares those of the others, so that neither stage
    gets a whole CPU more than it needs; on small machines that is a lot.

    A stage never gets fewer than its ``min_actors``, whether they fit or not: an actor that waits
    for room is what makes a cluster's autoscaler add a node. ``num_decoders``, the current number,
    is kept unless a change pays off. Only nodes that a stage may run on count for it.
    """
    (cpus, _), (encode_cpus, encode_gpus) = capacity.of("decode"), capacity.of("encode")
    both, gpus_of_both = capacity.of("decode", "encode")
    fit, encoders_fit = capacity.most("decode"), capacity.most("encode")
    if on_gpu:
        each = gpus_per_encoder(config)
        encode = _bounded(min(_fit(encode_gpus, each), encoders_fit), config.encode)
        beside = min(encode, _fit(gpus_of_both, each))  # they take CPUs that decoders could have
        left = cpus - beside * config.encode.cpus
        return PoolSizes(_bounded(min(_fit(left, config.decode.cpus), fit), config.decode), encode)
    shares = both >= 1 and config.decode.cpus > 0

    def divided(number: float) -> PoolSizes:
        """So many decoders, and encoders on the remaining CPUs."""
        decode = _bounded(number, config.decode)
        taken = max(0.0, (decode - shares) * config.decode.cpus - (cpus - both))
        encode = min(_fit(encode_cpus - taken, config.encode.cpus), encoders_fit)
        return PoolSizes(decode, _bounded(encode, config.encode), decode_shares=shares)

    if need is None:
        share = max(config.decode.cpus, cpus - both + both / 4)
        return divided(min(_fit(share, config.decode.cpus), fit))

    def rate(number: int) -> float:
        return _clips_per_s(divided(number), all_cpus, config, need)

    most, all_cpus = min(_fit(cpus, config.decode.cpus) + 1, fit), capacity.of()[0]
    best = _bounded(max(range(1, max(1, int(most)) + 1), key=rate), config.decode)
    if num_decoders is not None and rate(best) < WORTH_CHANGING * rate(num_decoders):
        best = num_decoders
    return divided(best)


def _clips_per_s(sizes: PoolSizes, cpus: float, config: RuntimeConfig, need: Need) -> float:
    """Speed of these pools, bounded by the slower stage and by all CPUs together."""
    decode_s, encode_s = max(need["decode"], 1e-9), max(need["encode"], 1e-9)
    cpu_s = decode_s * config.decode.cpus + encode_s * config.encode.cpus
    all_cpus = cpus / cpu_s if cpu_s > 0 else inf
    return min(sizes.decode / decode_s, sizes.encode / encode_s, all_cpus)


def _num_writers(encode: int, config: RuntimeConfig, need: Need | None) -> int:
    """Writers that encoders at full speed would keep half busy, so that shards can come at once."""
    number = min(FIRST_WRITERS, 1 + encode // 16)
    if need is not None and need["write"] > 0:
        busy = encode * need["write"] / max(need["encode"], 1e-9)
        number = min(ceil(2 * busy), max(FIRST_WRITERS, encode))
    return _bounded(number, config.write)


def _fit(have: float, need: float) -> int:
    """How many fit; a pool whose actors need nothing gets its ``min_actors``."""
    return floor(have / need + 1e-9) if need > 0 else 0


def _bounded(number: float, pool: PoolConfig) -> int:
    return int(max(pool.min_actors, min(number, pool.max_actors)))
