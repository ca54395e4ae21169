"""One job whose driver is killed and stopped again and again, and started again each time."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    codes_without_ray,
    files,
    num_commits,
    run_well,
    slow_tokenizer,
    start,
    stop,
    wait_until,
    write_job,
    write_video,
    write_videos,
)
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.reader import open_output

Reached = Callable[[], bool]


@dataclass
class Life:
    """A job whose clips take half a second each, and what was seen of it."""

    folder: Path
    address: str
    job: Path
    stopped: list[tuple[signal.Signals, int, str]] = field(default_factory=list)
    """Signal, exit code and what was printed."""
    num_clips: list[int] = field(default_factory=list)
    """Clips in the output after each signal."""

    def end_at(self, moment: Callable[[], Reached], number: signal.Signals) -> None:
        """Run a driver up to a moment, which is named once it has started, and end it there."""
        driver = start(self.job, self.address)
        reached = moment()
        wait_until(lambda: reached() or driver.poll() is not None)
        code, printed = stop(driver, number)
        self.stopped.append((number, code, printed))
        if num_commits(self.job):
            self.num_clips.append(open_output(load_job(self.job).output.uri).num_clips)

    # --- moments ---

    def planned(self) -> Reached:
        return lambda: any((self.folder / "out").glob("plan/*/*"))

    def recorded(self) -> Reached:
        return (self.folder / "out/job.json").exists

    def committed(self, more: int = 1) -> Reached:
        before = num_commits(self.job)
        return lambda: num_commits(self.job) >= before + more

    def written(self) -> Reached:
        """A shard has been put and is not listed yet."""

        def num_shards() -> int:
            return len(list((self.folder / "out/shards").glob("*.parquet")))

        before = num_shards()
        return lambda: num_shards() > before


def new_life(folder: Path, address: str, num_videos: int) -> Life:
    write_videos(folder / "videos", num_videos)
    (folder / "videos/broken.mp4").write_bytes(b"not a video")
    job = write_job(
        folder / "job.yaml",
        files(folder / "videos"),
        str(folder / "out"),
        tokenizer=slow_tokenizer(until=folder / "hurry", pause_s=0.5),
        max_rejected_fraction=0.5,
    )
    return Life(folder, address, job)


def finish_and_check(life: Life) -> None:
    """Run the job to its end, without pauses, and compare its codes with the right ones."""
    (life.folder / "hurry").touch()
    run_well(life.job, life.address)
    assert_complete(life.job)
    assert codes_of(life.job) == codes_without_ray(life.job)


@pytest.fixture(scope="module")
def life(ray_address: str, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A job that two SIGKILLs, a SIGTERM and a SIGINT have interrupted."""
    life = new_life(tmp_path_factory.mktemp("life"), ray_address, 30)
    life.end_at(life.recorded, signal.SIGKILL)
    life.end_at(life.committed, signal.SIGTERM)
    assert main(["audit", str(life.folder / "out"), "--partial"]) == 0
    assert main(["audit", str(life.folder / "out")]) == 8
    life.end_at(life.committed, signal.SIGINT)
    life.end_at(life.written, signal.SIGKILL)
    return life


@pytest.mark.ray
def test_a_signal_commits_what_is_finished(life: Life) -> None:
    for number, code, printed in life.stopped:
        if number != signal.SIGKILL:
            assert code == 128 + number, printed
            assert "run the same command again" in printed
    assert life.num_clips == sorted(life.num_clips)
    assert 0 < life.num_clips[0] < life.num_clips[-1] < 30 * 3


@pytest.mark.ray
def test_interruptions_lose_and_double_nothing_and_an_audit_agrees(
    life: Life, capsys: pytest.CaptureFixture[str]
) -> None:
    finish_and_check(life)
    assert "nothing left to do: 91 clips" in run_well(life.job, life.address)

    out = str(life.folder / "out")
    assert (
        main(
            ["audit", out, "--trust-uris", "--trust-code", "--sample", "4", "--seed", "1", "--json"]
        )
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["clean"]
    assert report["num_rejected"] == 1
    assert len(report["sampled"]) == 4
    for one in report["sampled"]:
        assert one["equal_fraction"] == 1.0
        assert one["psnr_db"] == one["psnr_again_db"] > 0

    # The sources become other videos of the same length, name, size and time.
    for index, path in enumerate(sorted((life.folder / "videos").glob("clip*.mp4"))):
        before = path.stat()
        write_video(path, seed=100 + index, size=(16, 16))
        missing = before.st_size - path.stat().st_size
        with path.open("ab") as file:
            file.write(missing.to_bytes(4) + b"free" + bytes(missing - 8))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert main(["audit", out]) == 0
    capsys.readouterr()
    assert main(["audit", out, "--trust-uris", "--trust-code", "--sample", "2"]) == 8
    assert "produces different codes when it is encoded again" in capsys.readouterr().out


@pytest.mark.ray
@pytest.mark.slow
def test_ten_kills_of_the_driver_lose_and_double_nothing(tmp_path: Path, ray_address: str) -> None:
    life = new_life(tmp_path, ray_address, 50)
    moments = [life.planned, life.recorded, life.committed, life.written, life.committed] * 2
    for moment in moments:
        life.end_at(moment, signal.SIGKILL)
    finish_and_check(life)
