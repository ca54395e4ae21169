"""Plays of a job through a trace of spot nodes, where the right answer is arithmetic."""

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.runtime.bench import LIMITS
from tokpipe.config.job import RuntimeConfig
from tokpipe.errors import ConfigError
from tokpipe.runtime.dispatch.protocol import Room
from tokpipe.runtime.spot.play import Outcome, Pace, Play
from tokpipe.runtime.spot.trace import Change, Trace
from tokpipe.types import Stage

CLIP_S: Mapping[Stage, float] = {"decode": 0.1, "encode": 1.0, "write": 0.01}
START_S: Mapping[Stage, float] = {"decode": 4.0, "encode": 20.0, "write": 4.0}
PACE = Pace(CLIP_S, START_S, 100.0)
ON_GPUS = replace(LIMITS, runtime=RuntimeConfig(), on_gpu=True, shard_bytes=10**4)
GPU_NODE = Room(8.0, 1.0)
JOIN_S = 60.0


def play(*changes: Change, num_clips: int = 1000, wanted: int = 4, seed: int = 0) -> Outcome:
    kinds = {"gpu": (GPU_NODE, wanted)}
    made = Play(
        ON_GPUS, PACE, num_clips, kinds, iter(changes), node_start_s=JOIN_S, seed=seed
    )  # fmt: skip
    return made.run()


def test_on_nodes_that_stay_a_run_takes_what_its_encoders_take() -> None:
    found = play(Change(0.0, "gpu", 4, 3.0))
    assert found.actors == {"encode": 4, "decode": 28, "write": 1}
    assert found.duration_s == pytest.approx(JOIN_S + START_S["encode"] + 1000 / 4, rel=0.05)
    assert found.cost == pytest.approx(4 * 3.0 * found.duration_s / 3600)


def test_no_more_nodes_are_paid_for_than_are_wanted() -> None:
    found = play(Change(0.0, "gpu", 100, 3.0), wanted=2)
    assert found.actors["encode"] == 2
    assert found.cost == pytest.approx(2 * 3.0 * found.duration_s / 3600)


def test_a_price_counts_from_when_it_holds() -> None:
    found = play(Change(0.0, "gpu", 4, 3.0), Change(100.0, "gpu", 4, 6.0))
    assert found.cost == pytest.approx(4 * (3.0 * 100 + 6.0 * (found.duration_s - 100)) / 3600)


def test_a_node_that_goes_takes_its_work_with_it_and_another_begins_anew() -> None:
    calm = play(Change(0.0, "gpu", 4, 3.0))
    gone = play(Change(0.0, "gpu", 4, 3.0), Change(200.0, "gpu", 2, 3.0))
    back = play(
        Change(0.0, "gpu", 4, 3.0), Change(200.0, "gpu", 2, 3.0), Change(201.0, "gpu", 4, 3.0)
    )
    # At 200 s, half of the clips were encoded; those of open shards on two nodes are lost.
    assert calm.duration_s < back.duration_s < gone.duration_s
    assert gone.duration_s > 200 + (1000 - 4 * 120) / 2
    assert back.duration_s > calm.duration_s + 2 * (JOIN_S + START_S["encode"]) / 4


@pytest.mark.parametrize("seed", range(20))
def test_a_run_ends_however_often_its_nodes_go(seed: int) -> None:
    times = itertools.count(0.0, 90.0)
    changes = (Change(at, "gpu", (4, 1, 3, 0, 2)[n % 5], 1.0) for n, at in enumerate(times))
    made = Play(
        *(ON_GPUS, PACE, 300, {"gpu": (GPU_NODE, 4)}, changes), node_start_s=10.0, seed=seed
    )
    assert made.run().duration_s > 300 / 4


def test_a_job_that_never_ends_is_named() -> None:
    with pytest.raises(ConfigError, match="the trace has too few nodes"):
        play(Change(0.0, "gpu", 0, 1.0), Change(10.0, "gpu", 1, 1.0), Change(20.0, "gpu", 0, 1.0))


HEADER = "time,kind,nodes,price,cpus,gpus\n"


def read(tmp_path: Path, text: str) -> Trace:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    return Trace.read(path)


def test_a_trace_starts_over_at_its_end(tmp_path: Path) -> None:
    trace = read(
        tmp_path, HEADER + "100,a,2,1.5,8,1\n160,a,0,1.5,8,1\n130,b,3,0.5,16,\n220,a,2,1,8,1\n"
    )
    assert (trace.kinds, trace.most) == ({"a": Room(8, 1), "b": Room(16, 0)}, {"a": 2, "b": 3})
    assert trace.period_s == 120
    found = [tuple(one) for one in itertools.islice(trace.since(40.0), 7)]
    assert found == [
        *((0.0, "a", 2, 1.5), (0.0, "b", 3, 0.5), (20.0, "a", 0, 1.5), (80.0, "a", 2, 1.0)),
        *((80.0, "a", 2, 1.5), (110.0, "b", 3, 0.5), (140.0, "a", 0, 1.5)),
    ]


def test_times_may_be_dates_and_one_line_is_for_ever(tmp_path: Path) -> None:
    line = "2026-11-01T00:00:00Z,a,2,1.5,8,1\n"
    trace = read(tmp_path, HEADER + line + line.replace("00:00:00Z", "01:30:00+01:00"))
    assert [one.at_s for one in trace.changes] == [0.0, 1800.0]
    assert len(list(read(tmp_path, HEADER + line).since(0.0))) == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no nodes at any time"),
        (HEADER, "no nodes at any time"),
        (HEADER + "0,a,0,1,8,1\n", "no nodes at any time"),
        ("time,kind,nodes,price\n0,a,1,1\n", "line 2: cpus: Field required"),
        (HEADER + "0,a,1,1,8,1\n5,a,1.5,1,8,1\n", "line 3: nodes: "),
        (HEADER + "0,a,-1,1,8,1\n", "line 2: nodes: "),
        (HEADER + "0,a,1,nan,8,1\n", "line 2: price: "),
        (HEADER + "soon,a,1,1,8,1\n", "line 2: time: "),
        (HEADER + "2026-11-01T00:00:00,a,1,1,8,1\n", "line 2: time: "),
        (HEADER + "0,,1,1,8,1\n", "line 2: kind: "),
        (HEADER + "0,a,1,1,8,1\n9,a,1,1,9,1\n", "line 3: kind a had other cpus or gpus before"),
        (HEADER + "0,a,1,1,8,1,7\n", "line 2: after the last column: "),
        (HEADER + '0,a,1,1,8,"1\n', "unexpected end of data"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert problem in str(caught.value)
    assert "A trace has the columns time" in str(caught.value)
