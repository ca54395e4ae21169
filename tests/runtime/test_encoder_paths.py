"""How encoders compute, and why that is slow, reaches logs, metrics and the account of a run."""

import time
from collections.abc import Callable

import pytest
import torch

from tests.models.test_graphs import Captures
from tests.runtime.bench import Bench, items, only
from tests.stages.test_encode_stage import clip, ready_stage
from tokpipe.formats.manifest import CommittedRows, ManifestState
from tokpipe.models import group_norm
from tokpipe.models.graphs import GraphedCall
from tokpipe.runtime.actors import EncodeActor
from tokpipe.runtime.dispatch import protocol
from tokpipe.runtime.metrics import METRICS
from tokpipe.runtime.snapshot import Snapshots
from tokpipe.stages import encode as encode_module
from tokpipe.stages.encode import EncodeStage
from tokpipe.types import EncoderPath

FAST = EncoderPath("bfloat16", "triton", "on for 1 of 1 shapes", 4, "91501")
HALVED = FAST._replace(batch_chunks=2, slow=("batches of 2",))
(METRIC,) = (one for one in METRICS if one.name == "tokpipe_encoder_paths")


def bench_with(path: EncoderPath | None) -> Bench:
    """A bench whose only encoder has come up with this path."""
    bench = Bench(exhausted=False)
    bench.lose(bench.actor("encode"), with_node=True)
    bench.send(protocol.ActorUp(bench.actor("encode"), "cuda", path))
    bench.send(protocol.Planned(items(0, 1, 2), exhausted=True))
    return bench


def encode(bench: Bench, **answer: object) -> None:
    for one in bench.in_flight("decode"):
        bench.done(one)
    (one,) = bench.in_flight("encode")
    bench.done(one, **answer)  # type: ignore[arg-type]


def test_a_new_path_is_logged_and_a_new_reason_for_slowness_is_a_warning_once() -> None:
    bench = bench_with(FAST)
    assert bench.notes.count(("encoder_path", False)) == 1
    for _ in range(2):
        bench.send(protocol.ActorUp(bench.actor("encode"), "cuda", HALVED))
    assert bench.notes.count(("encoder_path", True)) == 1
    warnings = [one for one in only(protocol.Note, bench.log) if one.is_warning]
    (note,) = (one for one in warnings if one.event == "encoder_path")
    assert note.message.endswith(": batches of 2")
    assert bench_with(None).notes.count(("encoder_path", False)) == 0, "nothing is said of CPUs"


@pytest.mark.parametrize(
    ("at_first", "later", "slow_s"),
    [(None, None, {}), (FAST, None, {}), (HALVED, None, {"batches of 2": 3.0}),
     (FAST, HALVED, {"batches of 2": 3.0})],
)  # fmt: skip
def test_seconds_of_slow_encoding_are_counted(
    at_first: EncoderPath | None, later: EncoderPath | None, slow_s: dict[str, float]
) -> None:
    bench = bench_with(at_first)
    encode(bench, busy_s=3.0, path=later)
    assert bench.account.slow_s == slow_s


def test_the_gauge_counts_encoders_by_path_and_falls_to_zero() -> None:
    bench = bench_with(FAST)
    snapshots = Snapshots(ManifestState(CommittedRows(3)), time.monotonic())
    fast, halved = (tuple(map(str, one[:-1])) for one in (FAST, HALVED))
    assert METRIC.values(snapshots.take(bench.dispatcher)) == {fast: 1}
    encode(bench, path=HALVED)
    assert METRIC.values(snapshots.take(bench.dispatcher)) == {fast: 0, halved: 1}
    assert len(METRIC.labels) == len(fast)


def on_gpu(monkeypatch: pytest.MonkeyPatch, why: str = "", **encode: object) -> EncodeStage:
    """A stage that takes itself to be on a GPU, where Triton works unless there is a ``why``."""
    stage = ready_stage(dtype="bfloat16", **encode)  # type: ignore[arg-type]
    stage.device = torch.device("cuda")
    stage._graphed = GraphedCall(stage.tokenizer.encode, Captures())
    norms = f"torch: {why}" if why else "triton"
    monkeypatch.setattr(encode_module, "working_kernels", lambda device: (None, norms))
    return stage


def no_change(stage: EncodeStage) -> None:
    pass


def halve(stage: EncodeStage) -> None:
    stage.batch_rows = 1


def drop_graphs(stage: EncodeStage) -> None:
    assert stage._graphed is not None
    stage._graphed.drop("their memory was needed")


@pytest.mark.parametrize(
    ("why", "change", "slow"),
    [
        ("", no_change, ""),
        ("no compiler", no_change, "norms by torch: no compiler"),
        ("", halve, "batches of 1 instead of 2 chunks, because memory ran out"),
        ("", drop_graphs, "CUDA graphs are off: their memory was needed"),
    ],
)
def test_an_encoder_on_a_gpu_names_what_makes_it_slow(
    why: str, change: Callable[[EncodeStage], None], slow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = on_gpu(monkeypatch, why, batch_chunks=2)
    change(stage)
    path = stage.path
    assert path is not None
    assert path.dtype == "bfloat16"
    assert path.norms == (f"torch: {why}" if why else "triton")
    assert path.graphs.startswith("off: ")
    assert [one.startswith(slow) for one in path.slow] == [True] * bool(slow)


def test_an_encoder_on_a_cpu_says_nothing() -> None:
    assert ready_stage().path is None


def test_why_triton_does_not_work_is_kept_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    find = group_norm.working_kernels.__wrapped__
    kernels, why = find(torch.device("cpu"))
    assert kernels is None
    assert why.startswith("torch: Triton's kernels did not work (")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert "install gcc, libc6-dev and python3-dev" in find(torch.device("cpu"))[1]


def test_an_encode_actor_answers_with_its_path_when_that_has_changed() -> None:
    actor = EncodeActor(lambda: None)
    actor.stage, actor.path = ready_stage(), None

    def answered() -> EncoderPath | None:
        (*_, packed) = actor.work(1, [(0,)], None, [clip(0, 5)])
        done: protocol.LeaseDone = packed.value
        return done.path

    paths = [None, FAST, FAST, HALVED]
    with pytest.MonkeyPatch.context() as patch:
        for path, news in zip(paths, [None, FAST, None, HALVED], strict=True):
            patch.setattr(EncodeStage, "path", path)
            assert answered() == news
