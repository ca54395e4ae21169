"""Plays of a job through a trace of spot nodes, where the right answer is arithmetic."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from infra.spot.forecast import Plays
from infra.spot.play import NODE_START_S, WORKER_S, Pace, Play
from infra.spot.trace import Change, Trace
from tests.end_to_end.jobs import WITH_DECODER
from tests.runtime.bench import LIMITS
from tokpipe.config.job import JobConfig, RuntimeConfig
from tokpipe.errors import ConfigError
from tokpipe.runtime.dispatch.protocol import Room
from tokpipe.types import Stage

CLIP_S: Mapping[Stage, float] = {"decode": 0.1, "encode": 1.0, "write": 0.01}
START_S: Mapping[Stage, float] = {"decode": 4.0, "encode": 20.0, "write": 4.0}
PACE = Pace(CLIP_S, START_S, 100.0)
ON_GPUS = replace(LIMITS, runtime=RuntimeConfig(), on_gpu=True, shard_bytes=10**4)
GPU_NODE = Room(8.0, 1.0)
UP_S = NODE_START_S + WORKER_S + START_S["encode"]
"""When the first encoder is up."""


def play(
    *changes: Change, num_clips: int = 1000, wanted: int = 4, seed: int = 0
) -> tuple[float, float]:
    kinds = {"gpu": (GPU_NODE, wanted)}
    return Play(ON_GPUS, PACE, num_clips, kinds, iter(changes), seed).run()


@pytest.mark.parametrize(("there", "wanted", "used"), [(4, 4, 4), (2, 4, 2), (100, 3, 3)])
def test_on_nodes_that_stay_a_run_takes_what_its_encoders_take(
    there: int, wanted: int, used: int
) -> None:
    took_s, cost = play(Change(0.0, "gpu", there, 3.0), wanted=wanted)
    assert took_s == pytest.approx(UP_S + 1000 / used, rel=0.15)
    assert cost == pytest.approx(used * 3.0 * took_s / 3600)


def test_a_price_counts_from_when_it_holds() -> None:
    took_s, cost = play(Change(0.0, "gpu", 4, 3.0), Change(100.0, "gpu", 4, 6.0))
    assert cost == pytest.approx(4 * (3.0 * 100 + 6.0 * (took_s - 100)) / 3600)


def test_a_node_that_goes_takes_its_work_with_it_and_another_begins_anew() -> None:
    start, less = Change(0.0, "gpu", 4, 3.0), Change(300.0, "gpu", 2, 3.0)
    calm_s, _ = play(start)
    gone_s, _ = play(start, less)
    back_s, back_cost = play(start, less, Change(301.0, "gpu", 4, 3.0))
    assert calm_s < back_s < gone_s
    assert gone_s >= 300 + (1000 - 4 * (300 - UP_S)) / 2
    assert back_s >= calm_s + 2 * (UP_S + 1) / 4
    assert back_cost == pytest.approx(4 * 3.0 * back_s / 3600, rel=0.01)


def test_codes_that_were_not_committed_are_lost_with_their_nodes() -> None:
    """Shards that never fill are as old as the run when all nodes go."""
    again = [Change(at, "gpu", number, 1.0) for at, number in ((0, 4), (350, 0), (351, 4))]
    hoarding = replace(ON_GPUS, shard_bytes=10**9, shard_max_age_s=10**6)
    took = [
        Play(limits, PACE, 1000, {"gpu": (GPU_NODE, 4)}, iter(again), 0).run()[0]
        for limits in (ON_GPUS, hoarding)
    ]
    assert took[0] == pytest.approx(351 + UP_S + 1000 / 4 - (350 - UP_S), rel=0.1)
    assert took[1] == pytest.approx(351 + UP_S + 1000 / 4, rel=0.05)


@pytest.mark.parametrize("seed", range(20))
def test_a_run_ends_however_often_its_nodes_go(seed: int) -> None:
    times = itertools.count(0.0, 200.0)
    changes = (Change(at, "gpu", (4, 1, 3, 0, 2)[n % 5], 1.0) for n, at in enumerate(times))
    took_s, cost = Play(ON_GPUS, PACE, 300, {"gpu": (GPU_NODE, 4)}, changes, seed).run()
    assert took_s > UP_S / 2 + 300 / 4
    assert 0 < cost < 4.001 * took_s / 3600


def test_a_job_that_never_ends_is_named() -> None:
    with pytest.raises(ConfigError, match="the trace has too few nodes"):
        play(Change(0.0, "gpu", 1, 1.0), Change(10.0, "gpu", 0, 1.0), num_clips=10)


# --- forecasts ----------------------------------------------------------------------------------


def plays(trace: Trace, num_clips: int = 20_000) -> Plays:
    """Of clips that decoders and encoders take a second for."""
    job = {
        "dataset": "test",
        "sources": [{"kind": "files", "uri": "/none/*.mp4"}],
        "output": {"uri": "/none/out"},
        "frames": {"size": [64, 64]},
        "tokenizer": WITH_DECODER,
    }
    pace = Pace({"decode": 1.0, "encode": 1.0, "write": 0.001}, START_S, 1000.0)
    return Plays(JobConfig.model_validate_json(json.dumps(job)), num_clips, pace, trace)


@pytest.fixture(autouse=True)
def fewer_plays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.spot.forecast.NUM_PLAYS", 10)
    monkeypatch.setattr("infra.spot.forecast.MAX_CLIPS", 500)
    monkeypatch.setattr("infra.spot.forecast.NUM_TRIALS", 4)
    monkeypatch.setattr("infra.spot.forecast.TRIAL_CLIPS", 100)


FALLING = [(1200.0 * n, (4, 2, 4, 3)[n % 4]) for n in range(40)]
"""A node or two go for a while, again and again."""


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    lines = [f"{at},gpu,{number},2.0,4,1\n{at},cpu,3,0.1,8," for at, number in FALLING]
    return read(tmp_path_factory.mktemp("trace"), HEADER + "\n".join(lines) + "\n")


def test_a_forecast_is_of_many_moments_and_the_same_each_time(trace: Trace) -> None:
    given = plays(trace).forecast({}).given
    assert (given.nodes, given.encoders) == ({"gpu": 4, "cpu": 3}, 4)
    assert given.decoders == 4 * 3 + 3 * 8
    for found in (given.duration_s, given.cost):
        assert found.p10 < found.p50 < found.p90 < 2 * found.p10
    assert given.duration_s.p10 > 20_000 / 4
    assert plays(trace).forecast({}).given == given
    fewer = plays(trace).forecast({"gpu": 2, "cpu": 1}).given
    assert (fewer.encoders, fewer.decoders) == (2, 2 * 3 + 8)
    assert fewer.duration_s.p50 > 1.3 * given.duration_s.p50


def test_a_deadline_finds_a_cheaper_cluster_and_a_budget_a_faster_one(trace: Trace) -> None:
    deadline_s = 3600.0
    found = plays(trace, 3000).forecast({}, deadline_s=deadline_s)
    assert found.is_enough
    assert found.best is not None
    assert found.best.duration_s.p90 <= deadline_s
    assert found.best.cost.p50 < 0.95 * found.given.cost.p50
    assert found.best.nodes["cpu"] < 3

    one = plays(trace, 3000).forecast({"gpu": 1, "cpu": 1})
    budget = 1.3 * one.given.cost.p90
    richer = plays(trace, 3000).forecast({"gpu": 1, "cpu": 1}, budget=budget)
    assert richer.best is not None
    assert richer.best.cost.p90 <= budget
    assert richer.best.duration_s.p50 < one.given.duration_s.p50 / 1.5

    nearest = plays(trace, 3000).forecast({"gpu": 1}, deadline_s=60.0)
    assert nearest.best is not None
    assert nearest.best.nodes["gpu"] == 4
    assert not nearest.is_enough
    assert "not enough, but nearest: 4 gpu" in "\n".join(nearest.lines())


def test_large_jobs_are_played_with_fewer_clips_that_take_as_long(trace: Trace) -> None:
    calm = replace(trace, changes=trace.changes[:2], period_s=0.0)
    for num_clips in (400, 40_000):
        given = plays(calm, num_clips).forecast({}).given
        assert given.duration_s.p50 == pytest.approx(UP_S + num_clips / 4, rel=0.1)


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [({"tpu": 1}, "--nodes tpu: the trace has only gpu, cpu"), ({"cpu": 2}, "there is no GPU")],
)
def test_nodes_that_cannot_work_are_refused(
    trace: Trace, nodes: dict[str, int], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        plays(trace).forecast(nodes)


# --- traces -------------------------------------------------------------------------------------

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
        (HEADER + "0,a,1,1,8,1,7\n", "line 2: "),
        (HEADER + '0,a,1,1,8,"1\n', "unexpected end of data"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert problem in str(caught.value)
    assert "A trace has the columns time" in str(caught.value)
