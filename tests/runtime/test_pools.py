"""How a cluster is divided between the stages."""

from __future__ import annotations

import pytest

from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.pools import size_pools
from tokpipe.runtime.protocol import Capacity


@pytest.mark.parametrize(
    ("cpus", "decode", "encode"),
    [(0, 1, 1), (1, 1, 1), (2, 1, 1), (3, 1, 2), (8, 2, 6), (64, 16, 48)],
)
def test_on_cpus_encoders_get_most(cpus: int, decode: int, encode: int) -> None:
    sizes = size_pools(Capacity(cpus, 0), RuntimeConfig(), on_gpu=False)
    assert (sizes.decode, sizes.encode) == (decode, encode)


@pytest.mark.parametrize(
    ("cpus", "gpus", "decode", "encode"), [(16, 1, 15, 1), (256, 8, 248, 8), (4, 8, 1, 8)]
)
def test_on_gpus_every_gpu_gets_an_encoder_and_decoders_get_the_cpus(
    cpus: int, gpus: int, decode: int, encode: int
) -> None:
    sizes = size_pools(Capacity(cpus, gpus), RuntimeConfig(), on_gpu=True)
    assert (sizes.decode, sizes.encode) == (decode, encode)


def test_the_jobs_bounds_hold() -> None:
    config = RuntimeConfig(
        decode=PoolConfig(min_actors=3, max_actors=5), encode=PoolConfig(max_actors=2)
    )
    small = size_pools(Capacity(1, 0), config, on_gpu=False)
    large = size_pools(Capacity(1000, 0), config, on_gpu=False)
    assert (small.decode, small.encode) == (3, 1)
    assert (large.decode, large.encode) == (5, 2)


def test_half_a_gpu_each_makes_twice_as_many_encoders() -> None:
    config = RuntimeConfig(encode=PoolConfig(gpus=0.5))
    assert size_pools(Capacity(32, 4), config, on_gpu=True).encode == 8
