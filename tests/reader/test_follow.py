"""A stream that follows a job reads every clip once, in an order that nobody's speed decides."""

import contextlib
import logging
import multiprocessing
import pickle
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import accumulate, islice, pairwise, zip_longest
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import S3Bucket
from tests.end_to_end import jobs
from tests.end_to_end.processes import descendants_of
from tests.formats.formats_helpers import DictStore, clip_ref
from tests.reader.following import Clock, Job, commit_slowly, follow, loader_of
from tests.reader.reader_helpers import commit, ids
from tokpipe.config import load_job
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, CorruptOutput, IncompleteOutput
from tokpipe.formats.manifest import ManifestEntry, Reopened, append, load_state, write_checkpoint
from tokpipe.reader import ClipMix, ClipStream, CodeCache, Output, TokenSequences, open_output
from tokpipe.reader.order import Even
from tokpipe.storage import Store
from tokpipe.types import Rejected

SIZES = (5, 1, 7, 4, 6, 3, 2)
NUM_CLIPS = sum(SIZES)

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on few cores
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # by torchdata
]


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job that commits a shard whenever a reader waits."""
    job = Job(Store(str(tmp_path / "out"), StoreOptions()), SIZES)
    monkeypatch.setattr("tokpipe.reader.follow.time", Clock(job))
    return job


@pytest.fixture
def stream_of(job: Job, tmp_path: Path) -> Callable[..., ClipStream]:
    """Opens the job's output anew, to follow it."""
    return lambda **settings: follow(job.store.uri, tmp_path / "cache", **settings)


OpenStream = Callable[..., ClipStream]


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_order_is_the_same_whenever_a_reader_begins(
    shuffle: bool, job: Job, stream_of: OpenStream
) -> None:
    live = stream_of(shuffle=shuffle)
    orders = [ids(live)]
    assert job.is_finished
    orders.append(ids(stream_of(shuffle=shuffle)))
    again = Job(Store(f"{job.store.uri}-again", StoreOptions()), SIZES)
    for number in range(len(SIZES)):
        again.commit()
        started = follow(again.store.uri, Path(f"{job.store.uri}-cache"), shuffle=shuffle)
        num_shards = number + 1 if again.is_finished or not shuffle else (number + 1) // 2 * 2
        served = sum(SIZES[:num_shards])
        orders.append(ids(islice(started, served)))
    for order in orders:
        assert order == orders[0][: len(order)]
    committed = [clip.clip_id for clip in open_output(job.store.uri).clips()]
    assert sorted(orders[0]) == sorted(committed)
    assert (orders[0] == committed) is not shuffle


def test_shards_are_mixed_in_windows_of_their_order_of_commit(
    job: Job, stream_of: OpenStream
) -> None:
    order = ids(stream_of())
    rows = {clip.clip_id: clip.plan_row for clip in open_output(job.store.uri).clips()}
    ends = [0, *accumulate(SIZES)]  # shards have rows in the order of commit, too
    for start, end in pairwise([*ends[::2], NUM_CLIPS]):
        window = [rows[clip] for clip in order[start:end]]
        assert sorted(window) == list(range(start, end)), "a window has the clips of its shards"
        assert window != sorted(window) or len(window) < 3
    assert order != ids(stream_of(seed=2))


def test_later_epochs_are_those_of_the_finished_output(
    job: Job, stream_of: OpenStream, tmp_path: Path
) -> None:
    stream = stream_of()
    epochs = [ids(stream) for _ in range(3)]
    cache = CodeCache(open_output(job.store.uri), tmp_path / "cache")
    finished = ClipStream(cache, seed=1, window_shards=2)
    finished.set_epoch(1)
    assert epochs[1:] == [ids(finished), ids(finished)]
    assert sorted(epochs[0]) == sorted(epochs[1])


def test_later_epochs_wait_for_the_end_of_the_job(job: Job, stream_of: OpenStream) -> None:
    job.commit(4)
    stream = stream_of()
    assert len(ids(islice(stream, 5))) == 5
    second = iter(stream)
    assert second.state_dict()["epoch"] == 1
    assert job.num_committed == 4
    order = ids(second)
    assert job.is_finished
    finished = stream_of()
    finished.set_epoch(1)
    assert order == ids(finished)


def test_a_length_is_known_once_the_job_has_finished(job: Job, stream_of: OpenStream) -> None:
    stream = stream_of(rank=0, world_size=2)
    with pytest.raises(TypeError, match="unknown before the job has finished"):
        len(stream)
    job.commit(len(SIZES))
    assert len(stream) == NUM_CLIPS / 2 == len(ids(stream))


@pytest.mark.parametrize("even", [None, "drop", "repeat"])
@pytest.mark.parametrize("num_readers", [3, 9])
def test_readers_share_the_clips_as_of_a_finished_output(
    even: Even | None, num_readers: int, job: Job, stream_of: OpenStream
) -> None:
    job.commit(2)  # fewer clips than there may be readers

    def streams() -> list[ClipStream]:
        ranks = [{"rank": rank, "world_size": num_readers} for rank in range(num_readers)]
        return [stream_of(**rank, even=even) for rank in ranks]

    turns = list(zip_longest(*streams()))  # each reader waits in its turn
    live = [[one["clip_id"] for one in mine if one] for mine in zip(*turns, strict=True)]
    assert live == [ids(stream) for stream in streams()]
    counts = Counter(clip for mine in live for clip in mine)
    if even is None:
        assert set(counts.values()) == {1}
        assert len(counts) == NUM_CLIPS
    else:
        assert len({len(mine) for mine in live}) == 1
        assert abs(counts.total() - NUM_CLIPS) < num_readers
        assert len(counts) == (counts.total() if even == "drop" else NUM_CLIPS)


@pytest.mark.parametrize("seed", range(30))
def test_any_stops_and_numbers_of_readers_lose_and_repeat_nothing(
    seed: int, job: Job, stream_of: OpenStream
) -> None:
    chance = random.Random(seed)
    seen: list[str] = []
    states: list[Any] = []
    is_done = False
    while not is_done:
        number = chance.randrange(1, 5)
        readers = []
        for rank in range(number):
            stream = stream_of(rank=rank, world_size=number, even=None)
            if states:
                stream.resume(states)
            readers.append(iter(stream))
        ends = [chance.randrange(12) for _ in readers]
        for reader, end in zip(readers, ends, strict=True):
            seen += ids(islice(reader, end))
        states = [pickle.loads(pickle.dumps(reader.state_dict())) for reader in readers]
        is_done = len(seen) == NUM_CLIPS
    assert len(set(seen)) == NUM_CLIPS
    stream = stream_of()
    stream.resume(states)
    assert stream.epoch == 1, "the pass has ended"


def test_a_state_from_a_moment_when_all_was_read_is_not_the_end(
    job: Job, stream_of: OpenStream
) -> None:
    job.commit(2)
    reader = iter(stream_of())
    seen = ids(islice(reader, sum(SIZES[:2])))
    for resume_all in (True, False):
        stream = stream_of()
        if resume_all:
            stream.resume([reader.state_dict()])
            assert stream.epoch == 0
            rest = iter(stream)
        else:
            rest = iter(stream)
            rest.load_state_dict(reader.state_dict())
        assert len({*seen, *ids(rest)}) == NUM_CLIPS


def test_a_stream_that_is_behind_accepts_a_later_state(job: Job, stream_of: OpenStream) -> None:
    early, late = stream_of(), stream_of()
    reader = iter(late)
    seen = ids(islice(reader, NUM_CLIPS - 1))
    early.resume([reader.state_dict()])
    assert [*seen, *ids(early)] == ids(stream_of())


def test_states_of_other_outputs_and_orders_are_rejected(
    job: Job, stream_of: OpenStream, tmp_path: Path
) -> None:
    state = iter(stream_of()).state_dict()
    job.commit(len(SIZES))
    finished = ClipStream(CodeCache(open_output(job.store.uri), tmp_path / "cache"), seed=1)
    for wrong, stream in ((state, finished), (iter(finished).state_dict(), stream_of())):
        with pytest.raises(ConfigError, match="the state has"):
            stream.resume([wrong])
    with pytest.raises(ConfigError, match="the state has follow=another"):
        stream_of().resume([state | {"follow": "another"}])


def test_a_state_from_before_clips_were_retried_is_rejected(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"), StoreOptions())
    job = Job(store, (5, 1, 6, 1))
    job.commit(3)
    commit(store, 3, rejected=[Rejected(clip_ref(12), "decode", "no_video", "message")])
    reader = iter(follow(store.uri, tmp_path / "cache"))
    next(reader)
    state = reader.state_dict()
    assert len(ids(reader)) == 11
    withdrawn = (Reopened(clip_ref(12), "no_video"),)
    assert append(store, ManifestEntry(4, "driver-1", "now", reopened=withdrawn))
    with pytest.raises(ConfigError, match=r"the state has num_clips=\[12\], but this stream has"):
        follow(store.uri, tmp_path / "cache").resume([state])


def test_what_needs_every_clip_at_the_start_is_rejected(job: Job, tmp_path: Path) -> None:
    job.commit(2)
    cache = CodeCache(open_output(job.store.uri, follow=True), tmp_path / "cache")
    with pytest.raises(ConfigError, match="follow=True does not go with a mix"):
        ClipMix([cache, cache], [1, 1])
    with pytest.raises(ConfigError, match=r"follow=True does not go with \['epoch_clips'\]"):
        ClipStream(cache, epoch_clips=3)
    with pytest.raises(IncompleteOutput, match="allow_partial"):
        CodeCache(open_output(job.store.uri), tmp_path / "cache")


def test_sequences_go_on_while_the_job_does(stream_of: OpenStream) -> None:
    sequences = TokenSequences(stream_of(), 40)
    live = [item["tokens"].tolist() for item in sequences]
    assert live == [item["tokens"].tolist() for item in TokenSequences(stream_of(), 40)]
    assert sum(map(len, live)) >= NUM_CLIPS * 13


# --- waiting ------------------------------------------------------------------------------------


def test_a_job_that_stands_still_is_reported_and_waited_for(
    job: Job,
    stream_of: OpenStream,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = Clock(job, number=0)
    monkeypatch.setattr("tokpipe.reader.follow.time", clock)
    job.commit(3)
    stream = stream_of()
    stream.caches[0].output.max_wait_s = 3600.0
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(IncompleteOutput, match=r"nothing was committed for 1:00:00, longer than"),
    ):
        ids(stream)
    said = [record.message for record in caplog.records]
    assert len(said) == 6, "after 1, 2, 4, 8, 16 and 32 minutes"
    assert "incomplete: 15 of 28 plan rows are neither tokenized nor rejected" in said[0]
    assert "if the job has stopped, run it again" in said[0]
    assert clock.num_pauses < 3600 / 30 + 20, "a reader that waits asks ever more seldom"
    clock.number = 1
    assert len(ids(stream)) == NUM_CLIPS, "it waits again once its job goes on"


@pytest.mark.parametrize("num_before", [0, 3])
def test_a_reader_that_waits_makes_one_request_at_a_time(
    num_before: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DictStore()
    job = Job(store, SIZES)
    job.commit(num_before)
    clock = Clock(job, number=0)
    monkeypatch.setattr("tokpipe.reader.follow.time", clock)
    output = Output(store)
    output.follow, output.max_wait_s = True, 1000.0
    stream = ClipStream(CodeCache(output, tmp_path), window_shards=2)
    with contextlib.suppress(IncompleteOutput):
        ids(stream)
    store.requests.clear()
    num_pauses = clock.num_pauses
    with contextlib.suppress(IncompleteOutput):
        ids(stream)
    assert set(store.requests) == {f"size manifest/{num_before:08d}.json"}
    assert 0 <= len(store.requests) - (clock.num_pauses - num_pauses) <= 3
    job.commit()
    store.requests.clear()
    assert output.refresh()
    assert not output.refresh()
    assert num_before == 0 or not any(one.startswith("list") for one in store.requests)
    assert len(store.requests) <= 7


def test_a_reader_that_is_far_behind_reads_a_checkpoint() -> None:
    store = DictStore()
    job = Job(store, [1] * 150)
    job.commit(3)
    output = Output(store)
    job.commit(130)
    write_checkpoint(store, load_state(DictStoreBefore(store, 128), 150))
    store.requests.clear()
    assert output.refresh()
    assert sum(one.startswith("get manifest/0") for one in store.requests) == 2 + 5
    assert not any(one.startswith("list") for one in store.requests)
    assert output.state.shards.equals(Output(store).state.shards)
    assert output.num_clips == len(output.shards) == 133


def test_a_manifest_that_was_replaced_is_noticed() -> None:
    store, other = DictStore(), DictStore()
    job = Job(store, [1] * 150)
    job.commit(3)
    output = Output(store)
    another = Job(other, [2] * 75)
    another.commit(70)
    write_checkpoint(other, load_state(DictStoreBefore(other, 64), 150))
    store.objects = other.objects
    with pytest.raises(CorruptOutput, match=r"00000003\.json is damaged: it continues another"):
        output.refresh()


class DictStoreBefore(DictStore):
    """A store as it was before an entry."""

    def __init__(self, store: DictStore, seq: int) -> None:
        super().__init__()
        late = {f"manifest/{number:08d}.json" for number in range(seq, 200)}
        self.objects = {key: data for key, data in store.objects.items() if key not in late}


# --- in processes -------------------------------------------------------------------------------


def two_ranks_of_two_workers_and_then_three(uri: str, cache: Path, **how: Any) -> list[str]:
    """Read some clips, stop, and read the rest with another number of readers."""
    seen: list[str] = []
    states = []
    for rank in range(2):
        loader = loader_of(follow(uri, cache, rank=rank, world_size=2), 2, **how)
        for batch in islice(loader, 2 + rank):
            seen += batch
        states.append(loader.state_dict())
    stream = follow(uri, cache, rank=0, world_size=1)
    stream.resume(states)
    loader = loader_of(stream, 3, **how)
    for batch in loader:
        seen += batch
    epoch = [clip for batch in loader for clip in batch]
    assert sorted(epoch) == sorted({*seen}), "the second epoch"
    return seen


def run_slowly(uri: str, pause_s: float) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=commit_slowly, args=(uri, SIZES, pause_s)
    )
    process.start()
    return process


def await_record(uri: str) -> None:
    store = Store(uri, StoreOptions())
    jobs.wait_until(lambda: store.size("job.json") is not None)


def test_workers_of_two_ranks_follow_a_job_and_resume_as_others(tmp_path: Path) -> None:
    uri = str(tmp_path / "out")
    process = run_slowly(uri, 0.5)
    await_record(uri)
    seen = two_ranks_of_two_workers_and_then_three(uri, tmp_path / "cache")
    assert len(seen) == len({*seen}) == NUM_CLIPS
    process.join()
    assert process.exitcode == 0


@pytest.mark.s3
def test_workers_follow_a_job_in_a_store(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    uri = f"{s3_bucket.uri}/out"
    process = run_slowly(uri, 0.5)
    await_record(uri)
    seen = two_ranks_of_two_workers_and_then_three(
        uri, tmp_path / "cache", multiprocessing_context="spawn", persistent_workers=True
    )
    assert len(seen) == len({*seen}) == NUM_CLIPS
    process.join()
    assert process.exitcode == 0


def start_training(uri: str, folder: Path, seed: int) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "tests.reader.following", uri, str(folder), str(seed)]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_workers_that_wait_end_with_their_training_process(tmp_path: Path) -> None:
    job = Job(Store(str(tmp_path / "out"), StoreOptions()), SIZES)
    job.commit(2)
    trainer = start_training(job.store.uri, tmp_path, 0)
    jobs.wait_until(lambda: trainer.poll() is not None or (tmp_path / "checkpoint").exists())
    workers = descendants_of(trainer.pid)
    assert len(workers) >= 2
    trainer.kill()
    trainer.wait()
    jobs.wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 120)


# --- a real job, whose driver and training are killed --------------------------------------------


class Lives:
    """A job and a training run that follows it, each started again whenever it was killed."""

    def __init__(
        self, folder: Path, address: str, num_videos: int, *, seed: int = 0, pause_s: float = 0.3
    ) -> None:
        self.folder, self.address, self.seed = folder, address, seed
        self.chance = random.Random(seed)
        jobs.write_videos(folder / "videos", num_videos)
        (folder / "videos/broken.mp4").write_bytes(b"not a video")
        self.job = jobs.write_job(
            folder / "job.yaml",
            jobs.files(folder / "videos"),
            str(folder / "out"),
            tokenizer=jobs.slow_tokenizer(until=folder / "hurry", pause_s=pause_s),
            max_rejected_fraction=0.5,
        )
        self.num_kills = Counter[str]()

    def start_driver(self) -> subprocess.Popen[Any]:
        return jobs.start(self.job, self.address)

    def start_trainer(self) -> subprocess.Popen[Any]:
        life = self.seed and self.seed * 1000 + self.num_kills["trainer"]
        return start_training(str(self.folder / "out"), self.folder, life)

    def progress(self) -> tuple[int, int]:
        """How many commits there are, and batches in the checkpoint."""
        return jobs.num_commits(self.job), len(self.batches())

    def batches(self) -> list[list[str]]:
        path = self.folder / "checkpoint"
        return pickle.loads(path.read_bytes())[0] if path.exists() else []

    def work(self, num_kills: int) -> None:
        """Kill either at random moments, each after some progress; then let both finish."""
        running = {"driver": self.start_driver()}
        jobs.wait_until((self.folder / "out/job.json").exists)
        running["trainer"] = self.start_trainer()
        start = {"driver": self.start_driver, "trainer": self.start_trainer}
        names = ["driver", "trainer"] * (num_kills // 2)
        self.chance.shuffle(names)
        for name in names:
            before = self.progress()
            jobs.wait_until(lambda before=before: self.progress() != before)  # type: ignore[misc]
            time.sleep(self.chance.random())
            running[name].kill()
            running[name].communicate()
            self.num_kills[name] += 1
            running[name] = start[name]()
        (self.folder / "hurry").touch()
        code, printed = jobs.finish(running["driver"])
        assert code == 0, printed
        assert running["trainer"].wait(600) == 0

    def check(self) -> None:
        jobs.assert_complete(self.job)
        seen = [clip for batch in self.batches() for clip in batch]
        wanted = [clip.clip_id for clip in open_output(load_job(self.job).output.uri).clips()]
        counts = Counter(seen)
        lost, repeated = len({*wanted} - {*seen}), counts.total() - len(counts)
        print(f"{dict(self.num_kills)} kills: {len(wanted)} clips, {lost=}, {repeated=}")
        assert (lost, repeated) == (0, 0)
        assert len(wanted) == len(seen)
        if not self.seed:  # always the same readers: their batches are those of an unbroken run
            stream = follow(str(self.folder / "out"), self.folder / "cache")
            assert self.batches() == list(loader_of(stream, 2))


@pytest.mark.ray
def test_kills_of_driver_and_training_lose_and_repeat_nothing(
    tmp_path: Path, ray_address: str
) -> None:
    lives = Lives(tmp_path, ray_address, 16)
    lives.work(4)
    lives.check()


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twenty_kills_lose_and_repeat_nothing(tmp_path: Path, ray_address: str, seed: int) -> None:
    lives = Lives(tmp_path, ray_address, 60, seed=seed, pause_s=1.0)
    lives.work(20)
    assert lives.num_kills.total() == 20
    lives.check()
