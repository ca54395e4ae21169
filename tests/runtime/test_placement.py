"""Which nodes a stage may run on, and how pools follow that."""

from typing import Any

import pytest

from tests.runtime.bench import LIMITS, Bench, only
from tokpipe.config.job import PoolConfig, RuntimeConfig
from tokpipe.runtime.cluster import actor_options, capacity_of
from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.dispatch.fleet import ZERO_CPU_AFTER_S
from tokpipe.runtime.dispatch.pools import size_pools
from tokpipe.runtime.snapshot import no_room, waiting_for


def node(name: str, cpus: float = 8, gpus: float = 0, **more: Any) -> dict[str, Any]:
    labels = more.pop("labels", {})
    has = {"CPU": cpus, "GPU": gpus, "memory": 1e9, f"node:{name}": 1.0, **more}
    return {"NodeID": name, "Resources": {k: v for k, v in has.items() if v}, "Labels": labels}


CPU = node("cpu", 16, labels={"group": "cpu"}, decoding=4)
H100 = node("h100", 8, 8, labels={"group": "gpu"}, **{"accelerator_type:H100": 1})
A100 = node("a100", 8, 8, labels={"group": "gpu"}, **{"accelerator_type:A100": 1})
HEAD = node("head", 0)
ALL = [CPU, H100, A100, HEAD]


@pytest.mark.parametrize(
    ("pool", "fit"),
    [
        (PoolConfig(), {"cpu", "h100", "a100"}),
        (PoolConfig(cpus=0), {"cpu", "h100", "a100", "head"}),
        (PoolConfig(accelerator_type="H100"), {"h100"}),
        (PoolConfig(resources={"decoding": 1}), {"cpu"}),
        (PoolConfig(resources={"decoding": 5}), set()),
        (PoolConfig(labels={"group": "gpu"}), {"h100", "a100"}),
        (PoolConfig(cpus=0, labels={"group": "!gpu"}), {"cpu", "head"}),
        (PoolConfig(labels={"group": "in(cpu, x)"}), {"cpu"}),
        (PoolConfig(cpus=0, labels={"group": "!in(cpu,gpu)"}), {"head"}),
    ],
)
def test_a_stage_runs_only_where_its_pool_admits(pool: PoolConfig, fit: set[str]) -> None:
    capacity = capacity_of(ALL, RuntimeConfig(decode=pool), on_gpu=True)
    assert set(capacity.nodes_for("decode")) == fit
    assert set(capacity.nodes_for("encode")) == {"h100", "a100"}


@pytest.mark.parametrize(
    ("decode", "encode", "on_gpu", "sizes"),
    [
        ({}, {}, True, (16, 16)),
        ({"labels": {"group": "cpu"}}, {}, True, (16, 16)),
        ({"labels": {"group": "cpu"}}, {"accelerator_type": "H100"}, True, (16, 8)),
        ({}, {"accelerator_type": "H100"}, True, (24, 8)),
        ({"resources": {"decoding": 1}}, {}, True, (4, 16)),
        ({"resources": {"decoding": 0.4}}, {}, True, (10, 16)),
        ({"labels": {"group": "cpu"}}, {"labels": {"group": "gpu"}}, False, (16, 16)),
        ({"labels": {"group": "none"}}, {"min_actors": 3, "labels": {"a": "b"}}, False, (1, 3)),
    ],
)
def test_pools_count_only_the_nodes_that_can_hold_their_stage(
    decode: Any, encode: Any, on_gpu: bool, sizes: tuple[int, int]
) -> None:
    config = RuntimeConfig(decode=PoolConfig(**decode), encode=PoolConfig(**encode))
    found = size_pools(capacity_of(ALL, config, on_gpu=on_gpu), config, on_gpu=on_gpu)
    assert (found.decode, found.encode) == sizes


def test_actors_keep_what_they_require_beside_the_nodes_they_avoid() -> None:
    pool = PoolConfig(accelerator_type="H100", resources={"slot": 2}, labels={"group": "!spot"})
    assert actor_options(pool, zero_cpu=True, avoid=("a", "b")) == {
        "num_cpus": 0.0,
        "resources": {"slot": 2, "accelerator_type:H100": 0.001},
        "label_selector": {"group": "!spot", "ray.io/node-id": "!in(a,b)"},
    }


def test_a_stage_without_a_node_waits_with_its_full_request_and_says_for_what() -> None:
    runtime = LIMITS.runtime.model_copy(update={"decode": PoolConfig(labels={"group": "cpu"})})
    bench = Bench(0, limits=protocol.Limits(runtime, False, 4, 1000, 50.0, 1.0))
    bench.send(capacity_of([A100, HEAD], runtime, on_gpu=False))
    bench.lose(bench.actor("decode"), with_node=True)
    bench.tick(ZERO_CPU_AFTER_S * 3)
    started = [one for one in only(protocol.StartActor, bench.log) if one.stage == "decode"]
    assert not any(one.zero_cpu for one in started[-1:]), "an autoscaler must see its CPUs"
    text = waiting_for(bench.dispatcher, bench.now)
    assert "no node has what runtime.decode requires, labels: {group: cpu}" in text
    assert text.startswith(no_room(bench.dispatcher) + ". Add nodes")


def test_only_one_class_of_hardware_encodes_if_the_job_says_so() -> None:
    limits = protocol.Limits(LIMITS.runtime, False, 4, 1000, 50.0, 1.0, hardware="same")
    bench = Bench(0, limits=limits)
    first = bench.actor("encode")
    bench.send(protocol.ActorUp(first, "cpu AVX2"))
    bench.lose(first, with_node=True)
    encoder = bench.actor("encode")
    bench.send(protocol.ActorPlaced(encoder, "node-b"))
    assert protocol.KillActor(encoder) in bench.send(protocol.ActorUp(encoder, "cpu AMX"))
    rooms = {"node-a": protocol.Room(8), "node-b": protocol.Room(16)}
    bench.send(protocol.Capacity(rooms))
    assert bench.dispatcher.pools.capacity.of("encode") == (8, 0)  # type: ignore[union-attr]
    (abort,) = only(protocol.Abort, bench.send(protocol.Capacity({"node-b": rooms["node-b"]})))
    assert (abort.kind, "cpu AMX" in abort.message, "cpu AVX2" in abort.message) == (
        "config", True, True,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("known", "seen", "warnings"),
    [([], "AA", 0), ([], "AB", 1), ([], "ABAB", 1), (["A"], "B", 1), (["A", "B"], "BA", 0)],
)
def test_a_second_class_that_joins_an_output_is_a_warning_once(
    known: list[str], seen: str, warnings: int
) -> None:
    limits = protocol.Limits(LIMITS.runtime, False, 4, 1000, 50.0, 1.0, encoders=frozenset(known))
    bench = Bench(0, limits=limits)
    for found in seen:
        bench.send(protocol.ActorUp(bench.actor("encode"), found))
    assert bench.notes.count(("encoder_class_joined", True)) == warnings
