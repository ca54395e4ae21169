"""How a cluster is divided between the stages."""

from dataclasses import replace

import pytest

from tests.runtime.bench import LIMITS, Bench, one_node, only
from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.dispatch.outbox import Outbox
from tokpipe.runtime.dispatch.pools import NEED_LEASES, Need, Pools, PoolSizes, size_pools
from tokpipe.runtime.dispatch.protocol import Dispatch
from tokpipe.types import STAGES


def needs(decode_s: float, encode_s: float) -> Need:
    return {"decode": decode_s, "encode": encode_s, "write": 0.0}


@pytest.mark.parametrize(
    ("cpus", "decode", "encode"),
    [(0, 1, 1), (1, 1, 1), (2, 1, 2), (3, 1, 3), (8, 2, 7), (64, 16, 49)],
)
def test_on_cpus_encoders_get_most(cpus: int, decode: int, encode: int) -> None:
    sizes = size_pools(one_node(cpus), RuntimeConfig(), on_gpu=False)
    assert (sizes.decode, sizes.encode) == (decode, encode)


@pytest.mark.parametrize(
    ("cpus", "gpus", "decode", "encode"), [(16, 1, 15, 1), (256, 8, 248, 8), (4, 8, 1, 8)]
)
def test_on_gpus_every_gpu_gets_an_encoder_and_decoders_get_the_cpus(
    cpus: int, gpus: int, decode: int, encode: int
) -> None:
    sizes = size_pools(one_node(cpus, gpus), RuntimeConfig(), on_gpu=True)
    assert (sizes.decode, sizes.encode) == (decode, encode)


def test_the_jobs_bounds_hold() -> None:
    config = RuntimeConfig(
        decode=PoolConfig(min_actors=3, max_actors=5), encode=PoolConfig(max_actors=2)
    )
    small = size_pools(one_node(1), config, on_gpu=False)
    large = size_pools(one_node(1000), config, on_gpu=False)
    assert (small.decode, small.encode) == (3, 1)
    assert (large.decode, large.encode) == (5, 2)


def test_half_a_gpu_each_makes_twice_as_many_encoders() -> None:
    config = RuntimeConfig(encode=PoolConfig(gpus=0.5))
    assert size_pools(one_node(32, 4), config, on_gpu=True).encode == 8


@pytest.mark.parametrize(
    ("decode_s", "encode_s", "decode", "encode"),
    [(0.1, 0.9, 1, 8), (0.5, 0.5, 4, 5), (0.9, 0.1, 8, 1), (0.0, 1.0, 1, 8)],
)
def test_on_cpus_stages_are_divided_by_measured_need(
    decode_s: float, encode_s: float, decode: int, encode: int
) -> None:
    need = needs(decode_s, encode_s)
    sizes = size_pools(one_node(8), RuntimeConfig(), on_gpu=False, need=need)
    assert (sizes.decode, sizes.encode) == (decode, encode)


def test_measurements_never_make_pools_slower() -> None:
    for cpus in (2, 3, 8, 31):
        for tenths in range(1, 10):
            need = needs(tenths / 10, 1 - tenths / 10)
            first = size_pools(one_node(cpus), RuntimeConfig(), on_gpu=False)
            then = size_pools(one_node(cpus), RuntimeConfig(), on_gpu=False, need=need)
            assert rate(then, cpus, need) >= rate(first, cpus, need)


def rate(sizes: PoolSizes, cpus: int, need: Need) -> float:
    return min(
        sizes.decode / need["decode"],
        sizes.encode / need["encode"],
        cpus / (need["decode"] + need["encode"]),
    )


def test_pools_do_not_change_for_a_small_gain() -> None:
    def sizes(need: Need) -> PoolSizes:
        return size_pools(one_node(32), RuntimeConfig(), on_gpu=False, need=need, num_decoders=16)

    assert sizes(needs(0.48, 0.52)).decode == 16
    assert sizes(needs(0.2, 0.8)).decode == 7


@pytest.mark.parametrize(
    ("gpus", "write_s", "writers"),
    [(1000, 0.0, 4), (1000, 0.001, 10), (1000, 0.002, 20), (8, 0.1, 8), (1000, 1.0, 100)],
)
def test_writers_follow_the_measured_time_per_clip(gpus: int, write_s: float, writers: int) -> None:
    out = Outbox()
    pools = Pools(replace(LIMITS, on_gpu=True, runtime=RuntimeConfig()), out)
    for now, seconds in ((0, write_s), (99, write_s / 1.5)):  # no reason to stop any
        for stage, clip_s in (("decode", 1.4), ("encode", 0.2), ("write", seconds)):
            for _ in range(NEED_LEASES):
                pools.measure(stage, 2000, 2000 * clip_s)  # type: ignore[arg-type]
        out.now = now
        pools.resize(one_node(9 * gpus, gpus))
        assert pools.sizes is not None
        assert pools.sizes.write == writers


def test_one_decoder_shares_the_cpus_of_others() -> None:
    for cpus in range(1, 20):
        sizes = size_pools(one_node(cpus), RuntimeConfig(), on_gpu=False)
        assert sizes.decode_shares
        assert sizes.decode - 1 + sizes.encode == cpus
    assert not size_pools(one_node(0), RuntimeConfig(), on_gpu=False).decode_shares
    assert not size_pools(one_node(8, 1), RuntimeConfig(), on_gpu=True).decode_shares


def test_leases_grow_only_if_clips_are_quick() -> None:
    for clip_s, num_clips in ((0.00025, 32), (0.125, 8), (2.5, 4)):
        limits = replace(LIMITS, clips_per_lease=32, usual_clips=4, shard_bytes=10**9)
        bench = Bench(*range(1000), limits=limits)
        bench.play(60, clip_s)
        decodes = [one for one in only(Dispatch, bench.log) if one.lease.stage == "decode"]
        assert len(decodes[0].lease.items) == 4
        assert len(decodes[-1].lease.items) == num_clips


def test_pools_follow_the_measured_pace_of_clips() -> None:
    pools = RuntimeConfig(write=PoolConfig(cpus=0, max_actors=1))
    bench = Bench(*range(1000), limits=replace(LIMITS, runtime=pools, shard_bytes=10**9))
    fleet = bench.dispatcher.fleet
    assert [fleet.num[stage] for stage in STAGES] == [2, 7, 1]
    bench.play(60, 0.25)  # both stages need the same
    bench.now += 100
    bench.send(one_node(8))
    assert [fleet.num[stage] for stage in STAGES] == [4, 5, 1]
