"""How many actors each stage should have, from what the cluster has and how long clips take."""

from dataclasses import dataclass, replace
from math import ceil, floor

from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.protocol import Capacity, Limits
from tokpipe.types import STAGES, Stage

WORTH_CHANGING = 1.1
"""Change the division only if the new one promises to be this many times faster: an actor takes
seconds to start."""
RESIZE_EVERY_S = 30.0  # How often pools are divided again by what was measured
NEED_LEASES = 8  # Leases of each stage before their pace counts as known
NEED_CLIPS = 2000  # Clips that the average pace covers; older ones count less and less
LEASE_S = 1.0
"""Leases grow until they hold this much work, so that what each lease costs (about a millisecond
of the driver) stays a small part of it."""
LEASES_PER_S = 350
"""They also grow until a stage needs no more of them, so that the driver keeps up."""
FIRST_WRITERS = 4  # The most write actors before the time to write a clip is known


@dataclass(frozen=True, slots=True)
class PoolSizes:
    """Target number of actors by stage; at least one each."""

    decode: int
    encode: int
    write: int
    decode_shares: bool = False  # One of the decoders requests zero CPUs

    def of(self, stage: Stage) -> int:
        return int(getattr(self, stage))


@dataclass(frozen=True, slots=True)
class Need:
    """Measured seconds that a clip takes one actor of each stage."""

    decode_s: float
    encode_s: float
    write_s: float = 0.0


@dataclass(slots=True)
class _Pace:
    """How long clips take an actor of one stage."""

    leases: int = 0
    clips: float = 0.0
    seconds: float = 0.0

    @property
    def clip_s(self) -> float:
        return self.seconds / max(1.0, self.clips)


class Pools:
    """Target sizes of the stages' pools, and the size of leases."""

    def __init__(self, limits: Limits, out: Outbox) -> None:
        self.limits = limits
        self._out = out
        self.capacity: Capacity | None = None
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

    def resize(self, capacity: Capacity, now: float) -> None:
        """Divide the cluster again: at once if it has changed, otherwise now and then."""
        if capacity == self.capacity and now < self._resize_after:
            return
        need = self._need()
        if need is not None:
            self._resize_after = now + RESIZE_EVERY_S
        self.capacity = capacity
        before, limits = self.sizes, self.limits
        now_has = None if before is None else before.decode
        sizes = size_pools(
            capacity, limits.runtime, on_gpu=limits.on_gpu, need=need, num_decoders=now_has
        )
        writers = _num_writers(sizes.encode, limits.runtime, need)
        if before is not None and writers < before.write < 2 * writers:
            writers = before.write
        self.sizes = replace(sizes, write=writers)
        if self.sizes != before:
            wanted = {stage: self.sizes.of(stage) for stage in STAGES}
            text = ", ".join(f"{number} {stage}" for stage, number in wanted.items())
            self._out.note(
                "pools_resized", text, actors=wanted, cpus=capacity.cpus, gpus=capacity.gpus
            )

    @property
    def lease_clips(self) -> int:
        """Clips to put into a lease."""
        most = self.limits.clips_per_lease
        usual = min(self.limits.usual_clips, most)
        if usual == most or (need := self._need()) is None:
            return usual
        clips = LEASE_S / max(need.decode_s, need.encode_s, 1e-9)
        if self.sizes is not None and self.capacity is not None:
            rate = _clips_per_s(self.sizes, self.capacity, self.limits.runtime, need)
            clips = max(clips, rate / LEASES_PER_S)
        return max(usual, int(min(most, clips)))

    def _need(self) -> Need | None:
        """How long clips take each stage, once enough of them were seen."""
        decode, encode = self._pace["decode"], self._pace["encode"]
        if min(decode.leases, encode.leases) < NEED_LEASES:
            return None
        return Need(decode.clip_s, encode.clip_s, self._pace["write"].clip_s)


def gpus_per_encoder(config: RuntimeConfig) -> float:
    """GPUs that an encode actor requests when encoding on GPUs."""
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
    decoders get a quarter of the CPUs until ``need`` is known, then as many as make the job
    fastest. One decoder requests zero CPUs and shares those of the others, so that neither stage
    gets a whole CPU more than it needs; on small machines that is a lot.

    A stage never gets fewer than its ``min_actors``, whether they fit or not: an actor that waits
    for room is what makes a cluster's autoscaler add a node. ``num_decoders``, the current number,
    is kept unless a change pays off. Only nodes that a stage may run on count for it.
    """
    cpus, (both, gpus_of_both) = capacity.of("decode")[0], capacity.of("decode", "encode")
    fits = capacity.most("decode")
    if on_gpu:
        each = gpus_per_encoder(config)
        number = min(_fit(capacity.of("encode")[1], each), capacity.most("encode"))
        encode = _bounded(number, config.encode)
        beside = min(encode, _fit(gpus_of_both, each))  # they take CPUs that decoders could have
        left = cpus - beside * config.encode.cpus
        decode = _bounded(min(_fit(left, config.decode.cpus), fits), config.decode)
        return PoolSizes(decode=decode, encode=encode, write=_num_writers(encode, config))
    share = max(config.decode.cpus, cpus - both + both / 4)
    decode = _bounded(min(_fit(share, config.decode.cpus), fits), config.decode)
    if need is not None:
        most = int(min(_fit(cpus, config.decode.cpus) + 1, fits))

        def rate(number: int) -> float:
            return _clips_per_s(_on_cpus(capacity, config, number), capacity, config, need)

        best = max(range(1, max(1, most) + 1), key=rate)
        decode = _bounded(best, config.decode)
        if num_decoders is not None and rate(decode) < WORTH_CHANGING * rate(num_decoders):
            decode = num_decoders
    return _on_cpus(capacity, config, decode)


def _on_cpus(capacity: Capacity, config: RuntimeConfig, decode: int) -> PoolSizes:
    """So many decoders, and encoders on the remaining CPUs."""
    decode = _bounded(decode, config.decode)
    both = capacity.of("decode", "encode")[0]
    shares = both >= 1 and config.decode.cpus > 0
    only_decode = capacity.of("decode")[0] - both
    taken = max(0.0, (decode - shares) * config.decode.cpus - only_decode)
    left = capacity.of("encode")[0] - taken
    number = min(_fit(left, config.encode.cpus), capacity.most("encode"))
    encode = _bounded(number, config.encode)
    return PoolSizes(decode, encode, _num_writers(encode, config), shares)


def _clips_per_s(sizes: PoolSizes, capacity: Capacity, config: RuntimeConfig, need: Need) -> float:
    """Speed of these pools, bounded by the slower stage and by all CPUs together."""
    decode_s, encode_s = max(need.decode_s, 1e-9), max(need.encode_s, 1e-9)
    cpu_s = decode_s * config.decode.cpus + encode_s * config.encode.cpus
    all_cpus = capacity.cpus / cpu_s if cpu_s > 0 else float("inf")
    return min(sizes.decode / decode_s, sizes.encode / encode_s, all_cpus)


def _num_writers(encode: int, config: RuntimeConfig, need: Need | None = None) -> int:
    """Writers that encoders at full speed would keep half busy, so that shards can come at once."""
    number = min(FIRST_WRITERS, 1 + encode // 16)
    if need is not None and need.write_s > 0:
        busy = encode * need.write_s / max(need.encode_s, 1e-9)
        number = min(ceil(2 * busy), max(FIRST_WRITERS, encode))
    return _bounded(number, config.write)


def _fit(have: float, need: float) -> int:
    """How many fit; a pool whose actors need nothing gets its ``min_actors``."""
    return floor(have / need + 1e-9) if need > 0 else 0


def _bounded(number: float, pool: PoolConfig) -> int:
    return int(max(pool.min_actors, min(number, pool.max_actors)))
