"""Decoded clips wait for others of their kind, so that encoders compute few empty rows."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from benchmarks.control import RARE_SIZE, THREE_SIZES
from benchmarks.virtual_cluster import GPU_LIMITS, Kind, VirtualCluster
from tests.runtime.bench import LIMITS, Bench, refs_of
from tokpipe.runtime.dispatch.outbox import Outbox, Outputs
from tokpipe.runtime.dispatch.protocol import DecodedInfo, Dispatch, Place, Release, Room

LENGTHS = {(size, frames): 1.0 for size, _ in THREE_SIZES for frames in range(20, 140, 3)}
"""Chunks of 17 frames, and a last one of any length."""
ROW_S = 0.05
DECODERS = 8


@pytest.mark.parametrize(
    ("kinds", "batch_chunks", "num_encoders", "least"),
    [
        (THREE_SIZES, 4, 1, 0.98),  # before, 0.63
        (THREE_SIZES, 8, 2, 0.98),  # before, 0.34
        (RARE_SIZE, 4, 2, 0.98),
        (RARE_SIZE, 8, 1, 0.98),
        (LENGTHS, 4, 2, 0.91),  # before, 0.59
    ],
)
def test_rows_of_batches_hold_chunks_while_encoders_stay_busy(
    kinds: Mapping[Kind, float], batch_chunks: int, num_encoders: int, least: float
) -> None:
    rows = len(list(GPU_LIMITS.plan_chunks(120))) / 2 if kinds is LENGTHS else 1
    clips = 2 if kinds is LENGTHS else 20
    limits = replace(GPU_LIMITS, batch_chunks=batch_chunks, clips_per_lease=clips)
    cluster = VirtualCluster(
        limits,
        Room(num_encoders * (DECODERS + 1), num_encoders),
        {"decode": ROW_S * rows * DECODERS / 1.14, "encode": ROW_S, "write": 0.001},
        800 * num_encoders,
        kinds=kinds,
    )
    run = cluster.play()
    assert run.useful_share > least
    assert run.steady_share > 0.98
    assert run.fetched < 1.6, "pixels travel more than once"
    leases = num_encoders * (4 + DECODERS)  # two per encoder wait, and two are there
    assert run.most_held <= 1.5 * leases * max(clips, batch_chunks)


def rows_of(dispatch: Dispatch) -> list[int]:
    return [item.row for item in dispatch.lease.items]


def test_part_of_a_batch_goes_out_only_when_an_encoder_would_idle() -> None:
    sizes, plan = ((8, 8), (8, 16)), GPU_LIMITS.plan_chunks
    limits = replace(LIMITS, batch_chunks=2, frame_sizes=sizes, plan_chunks=plan)
    bench = Bench(*range(8), limits=limits)
    encoded = []
    parts = iter([0, 1, 0, 0, 0, 0, 1, 1])
    for decode in bench.in_flight("decode"):
        bench.done(decode, *[DecodedInfo(ref, 17, part=next(parts)) for ref in refs_of(decode)])
    while leases := bench.in_flight("encode"):
        encoded.append([rows_of(one) for one in leases])
        bench.done(leases[0])
    assert encoded == [
        [[0, 2], [3, 4]],
        [[3, 4], [1, 6]],
        [[1, 6]],  # the others are parts of batches, and this encoder is busy
        [[5]],
        [[7]],
    ]


def test_pixels_of_each_size_of_frames_are_released_when_they_are_used() -> None:
    outputs = Outputs(out := Outbox())
    outputs.keep(7, [Place(7, 0, 1), Place(7, 1, 0), Place(7, 2, 1)])
    outputs.use_up([Place(7, 0, 1)])
    assert not out.take()
    outputs.use_up([Place(7, 2, 1)])
    assert out.take() == [Release(7, part=1)]
    outputs.use_up([Place(7, 1, 0)])
    assert out.take() == [Release(7)]
