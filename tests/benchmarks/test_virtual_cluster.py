"""The dispatcher keeps encoders busy on clusters too large to start in a test."""

import pytest

from benchmarks.virtual_cluster import GPU_LIMITS, VirtualCluster
from tokpipe.runtime.dispatch.protocol import Room
from tokpipe.types import Stage


@pytest.mark.parametrize(("encoders", "decoders"), [(1, 1), (1, 8), (8, 64)])
def test_encoders_stay_busy_if_decoders_are_a_fifth_faster(encoders: int, decoders: int) -> None:
    decode_s = 0.2 * decoders / encoders / 1.2
    cluster = VirtualCluster(
        GPU_LIMITS,
        Room(encoders + decoders, encoders),
        {"decode": decode_s, "encode": 0.2, "write": 0.01},
        num_clips=1500 * encoders,
    )
    run = cluster.play()
    assert run.steady_share > 0.98
    assert cluster.dispatcher.out.account.clips["write"] == 1500 * encoders


def test_encoders_use_all_that_slow_decoders_produce() -> None:
    clip_s: dict[Stage, float] = {"decode": 0.4, "encode": 0.2, "write": 0.01}
    run = VirtualCluster(GPU_LIMITS, Room(2, 1), clip_s, num_clips=1500).play()
    assert run.steady_share == pytest.approx(0.5, abs=0.03)
