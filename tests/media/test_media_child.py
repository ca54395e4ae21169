"""The decoding child may hang, crash or be killed: its actor goes on, and leaks nothing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tests.media.media_helpers import MakeDecoder, numbers_of, write_video
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.errors import ConfigError, RuntimeFault, SourceError
from tokpipe.media.decoder import Undecodable, VideoDecoder

# Long enough for a busy machine to decode ten tiny frames, short enough to wait for.
DEADLINE_S = 2.0

PLANTED = "tests.media.planted"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "good.mp4", 10, options={"bf": "0"})


def named(clip: Path, tmp_path: Path, deed: str) -> Path:
    path = tmp_path / f"{deed}.mp4"
    path.write_bytes(clip.read_bytes())
    return path


def damaged(clip: Path, tmp_path: Path) -> Path:
    """A file of which FFmpeg has much to say."""
    whole = clip.read_bytes()
    end = whole.index(b"moov") - 150
    path = tmp_path / "damaged.mp4"
    path.write_bytes(whole[:end] + b"\xff" * 100 + whole[end + 100 :])
    return path


def wait_for(path: Path) -> int:
    """The pid that a planted backend writes."""
    for _ in range(500):
        if path.exists() and (text := path.read_text()):
            return int(text)
        time.sleep(0.02)
    raise AssertionError(f"{path} did not appear")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("deed", "reason", "words"),
    [
        ("hang", "timeout", "longer than decode.deadline_s = 2 s"),
        ("segfault", "crashed", "died (SIGSEGV)"),
        ("abort", "crashed", "died (SIGABRT): terminate called after throwing"),
        ("exit", "crashed", "died (exit status 3)"),
        ("hungry", "too_large", "more memory than decode.memory_bytes"),
    ],
)
def test_what_one_clip_does_to_the_child_is_its_own_reason(
    deed: str, reason: str, words: str, clip: Path, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    alone = make_decoder(backends=(PLANTED,), deadline_s=DEADLINE_S)
    with pytest.raises(SourceError) as caught:
        alone.decode(named(clip, tmp_path, deed))
    assert caught.value.reason == reason
    assert isinstance(caught.value, Undecodable)
    errors = {"hang": "TimeoutError", "segfault": "SIGSEGV", "abort": "SIGABRT"}
    assert caught.value.error == {**errors, "exit": None, "hungry": "MemoryError"}[deed]
    assert words in str(caught.value)
    assert numbers_of(alone.decode(clip).frames) == list(range(10))


@pytest.mark.parametrize("deed", ["hang", "segfault", "abort", "hungry"])
def test_the_next_backend_decodes_what_the_first_fell_over(
    deed: str, clip: Path, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    both = make_decoder(backends=(PLANTED, "pyav"), deadline_s=DEADLINE_S)
    video = both.decode(named(clip, tmp_path, deed))
    assert (numbers_of(video.frames), video.backend) == (list(range(10)), "pyav")
    assert both.decode(clip).backend == PLANTED


def test_a_child_killed_from_outside_is_no_fault_of_the_clip(
    clip: Path, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    path = named(clip, tmp_path, "slow-once")

    def kill() -> None:
        pid = wait_for(path.with_suffix(".pid"))
        path.with_suffix(".go").touch()
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    video = make_decoder(backends=(PLANTED,)).decode(path)
    killer.join()
    assert video.backend == PLANTED
    assert np.array_equal(video.frames, make_decoder().decode(clip).frames)


def test_a_child_that_is_always_killed_from_outside_is_a_fault(
    clip: Path, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    decoder = make_decoder(backends=(PLANTED, "pyav"))
    with pytest.raises(RuntimeFault, match="killed 3 times from outside"):
        decoder.decode(named(clip, tmp_path, "killed"))
    assert len(decoder.decode(clip).frames) == 10


def test_a_child_that_died_between_clips_is_replaced(
    clip: Path, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    decoder = make_decoder(backends=(PLANTED,))
    decoder.decode(clip)
    for number in (signal.SIGKILL, signal.SIGSEGV):
        os.kill(wait_for(clip.with_suffix(".pid")), number)
        time.sleep(0.2)
        assert len(decoder.decode(clip).frames) == 10


def test_a_bug_in_a_backend_is_raised_and_not_blamed_on_the_clip(
    clip: Path, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    decoder = make_decoder(backends=(PLANTED, "pyav"))
    with pytest.raises(RuntimeError, match="ValueError: a bug in a backend"):
        decoder.decode(named(clip, tmp_path, "bug"))
    assert len(decoder.decode(clip).frames) == 10


def test_what_libraries_print_goes_nowhere(
    clip: Path, tmp_path: Path, make_decoder: MakeDecoder, capfd: pytest.CaptureFixture[str]
) -> None:
    decoder = make_decoder(backends=(PLANTED,))
    assert len(decoder.decode(named(clip, tmp_path, "chatter")).frames) == 10
    with pytest.raises(SourceError, match="decoding stopped"):
        make_decoder().decode(damaged(clip, tmp_path))
    assert capfd.readouterr() == ("", "")


def test_a_backend_that_is_not_there_is_a_mistake_in_the_job(
    clip: Path, make_decoder: MakeDecoder
) -> None:
    with pytest.raises(ConfigError, match="no_such_backend does not load"):
        make_decoder(backends=("no_such_backend",)).decode(clip)


def test_the_child_outlives_the_thread_that_started_it(clip: Path) -> None:
    decoder = VideoDecoder(
        DecodeConfig(),
        SamplingConfig(fps=None),
        FramesConfig(size=(48, 64), fit="stretch"),
        backends=(PLANTED,),
    )
    pids = []
    for _ in range(2):
        thread = threading.Thread(target=decoder.decode, args=(clip,))
        thread.start()
        thread.join()
        time.sleep(0.1)
        pids.append(wait_for(clip.with_suffix(".pid")))
    assert pids[0] == pids[1]
    assert is_running(pids[0])
    decoder.close()
    assert not is_running(pids[0])


def test_the_child_dies_with_its_parent_even_while_it_hangs(clip: Path, tmp_path: Path) -> None:
    path = named(clip, tmp_path, "hang")
    code = (
        "import sys; from pathlib import Path\n"
        "from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig\n"
        "from tokpipe.media.decoder import VideoDecoder\n"
        "settings = DecodeConfig(), SamplingConfig(), FramesConfig(size=(48, 64))\n"
        "VideoDecoder(*settings, backends=('tests.media.planted',)).decode(Path(sys.argv[1]))\n"
    )
    search_path = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", code, str(path)], env=search_path)
    child = wait_for(path.with_suffix(".pid"))
    parent.kill()
    parent.wait(10)
    for _ in range(100):
        if not is_running(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    raise AssertionError("the child lived on")


def test_memory_is_used_again_and_never_while_someone_reads_it(
    clip: Path, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    other = write_video(tmp_path / "other.mp4", 7, first_number=100)
    decoder = make_decoder(backends=("pyav",), size=(96, 128))
    files: set[int] = set()
    held = decoder.decode(clip).frames[3:5]  # a view, after its video is gone
    for _ in range(3):
        for path, numbers in ((clip, list(range(10))), (other, list(range(100, 107)))):
            frames = decoder.decode(path).frames
            assert numbers_of(frames) == numbers
            files.add(mapped_file(frames))
            del frames
    assert numbers_of(held) == [3, 4]
    assert len(files) == 1


def test_a_smaller_picture_has_black_margins_whatever_was_there(
    clip: Path, make_decoder: MakeDecoder
) -> None:
    decoder = make_decoder(backends=("pyav",), fit="pad", size=(96, 64))
    wide = make_decoder(backends=("pyav",), fit="pad", size=(96, 64)).decode(clip).frames.copy()
    decoder.decode(clip).frames[:] = 255
    frames = decoder.decode(clip).frames
    assert np.array_equal(frames, wide)
    assert not frames[:, :20].any()


def test_memory_that_comes_back_after_the_end_is_let_go(clip: Path) -> None:
    decoder = VideoDecoder(
        DecodeConfig(), SamplingConfig(fps=None), FramesConfig(size=(48, 64), fit="stretch")
    )
    before = len(list(Path("/proc/self/fd").iterdir()))
    held = [decoder.decode(clip) for _ in range(3)]
    decoder.close()
    assert numbers_of(held[0].frames) == list(range(10))
    held.clear()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nothing_leaks_over_many_clips(
    clip: Path, tmp_path: Path, make_decoder: MakeDecoder
) -> None:
    decoder = make_decoder(backends=(PLANTED, "decord", "pyav"), deadline_s=60.0)
    segfault = named(clip, tmp_path, "segfault")
    refused = damaged(clip, tmp_path)

    def round_of_clips(count: int) -> None:
        for index in range(count):
            decoder.decode(clip)
            if index % 10 == 0:
                with pytest.raises(SourceError):
                    decoder.decode(refused)

    def used() -> tuple[int, int, list[str]]:
        gc.collect()  # of tracebacks that hold frames
        child = wait_for(clip.with_suffix(".pid"))
        pids = (os.getpid(), child)
        fds = sum(1 for pid in pids for _ in Path(f"/proc/{pid}/fd").iterdir())
        return fds, sum(map(resident_kib, pids)), [path.name for path in shared.iterdir()]

    shared = Path("/dev/shm")
    for _ in range(3):
        decoder.decode(segfault)
    round_of_clips(20)
    fds, kib, names = used()
    round_of_clips(200)
    fds_after, kib_after, names_after = used()
    assert fds_after == fds
    assert kib_after - kib < 8 * 1024
    assert not [name for name in set(names_after) - set(names) if "tokpipe" in name]


def mapped_file(frames: np.ndarray) -> int:
    """The inode of the file whose mapping holds an array."""
    address = frames.__array_interface__["data"][0]
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, inode, *_ = line.split()
        low, high = (int(end, 16) for end in span.split("-"))
        if low <= address < high:
            return int(inode)
    raise AssertionError("not mapped")


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
