"""The decoding child may hang, crash or be killed; its actor carries on and leaks nothing."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from tests.media.conftest import Lab
from tests.videos import numbers_of, spoil_end, write_video
from tokpipe.errors import ConfigError, RuntimeFault, SourceError, UnfitNode
from tokpipe.media.child_process import ChildProcess

PLANTED = "tests.media.planted"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_video(tmp_path_factory.mktemp("clips") / "good.mp4", 10, options={"bf": "0"})


def named(clip: Path, tmp_path: Path, fault: str) -> Path:
    """A copy of the clip whose name makes the planted backend misbehave."""
    return Path(shutil.copy(clip, tmp_path / f"{fault}.mp4"))


def wait_for(path: Path) -> int:
    """Wait for the pid that the planted backend writes."""
    while not (path.exists() and (text := path.read_text())):
        time.sleep(0.02)
    return int(text)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    "case",
    [
        ("hang", "timeout", "TimeoutError", "longer than decode.deadline_s = 5 s"),
        ("segfault", "crashed", "SIGSEGV", "died (SIGSEGV)"),
        ("abort", "crashed", "SIGABRT", "died (SIGABRT): terminate called after throwing"),
        ("exit", "crashed", None, "died (exit status 3)"),
        ("hungry", "too_large", "MemoryError", "more memory than decode.memory_bytes"),
    ],
    ids=lambda case: case[0],
)
def test_a_clip_at_which_the_child_fails_is_rejected_or_decoded_by_the_next_backend(
    case: tuple[str, str, str | None, str], clip: Path, lab: Lab
) -> None:
    fault, reason, error, message = case
    path = named(clip, lab.folder, fault)
    # Long enough for a busy machine to decode ten tiny frames, short enough to wait for.
    deadline_s = 5.0 if fault == "hang" else 300.0
    alone = lab.decoder(backends=(PLANTED,), deadline_s=deadline_s)
    with pytest.raises(SourceError) as caught:
        alone.decode(path)
    assert (caught.value.reason, caught.value.error) == (reason, error)
    assert message in str(caught.value)
    assert numbers_of(alone.decode(clip).frames) == list(range(10))
    both = lab.decoder(backends=(PLANTED, "pyav"), deadline_s=deadline_s)
    video = both.decode(path)
    assert (numbers_of(video.frames), video.backend) == (list(range(10)), "pyav")
    assert both.decode(clip).backend == PLANTED


def test_the_clip_is_not_blamed_for_a_child_killed_from_outside(clip: Path, lab: Lab) -> None:
    path = named(clip, lab.folder, "slow-once")

    def kill() -> None:
        pid = wait_for(path.with_suffix(".pid"))
        path.with_suffix(".go").touch()
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    video = lab.decoder(backends=(PLANTED,)).decode(path)
    killer.join()
    assert video.backend == PLANTED
    assert np.array_equal(video.frames, lab.decoder().decode(clip).frames)


def test_repeated_kills_and_backend_bugs_are_not_blamed_on_a_clip(clip: Path, lab: Lab) -> None:
    decoder = lab.decoder(backends=(PLANTED, "pyav"))
    with pytest.raises(RuntimeFault, match="killed 3 times from outside"):
        decoder.decode(named(clip, lab.folder, "killed"))
    with pytest.raises(RuntimeError, match="ValueError: a bug in a backend"):
        decoder.decode(named(clip, lab.folder, "bug"))
    assert len(decoder.decode(clip).frames) == 10


def test_a_child_that_died_between_clips_is_replaced(clip: Path, lab: Lab) -> None:
    decoder = lab.decoder(backends=(PLANTED,))
    decoder.decode(clip)
    for number in (signal.SIGKILL, signal.SIGSEGV):
        os.kill(pid := wait_for(clip.with_suffix(".pid")), number)
        while is_running(pid):
            time.sleep(0.02)
        assert len(decoder.decode(clip).frames) == 10


def test_output_of_libraries_is_not_shown(
    clip: Path, lab: Lab, capfd: pytest.CaptureFixture[str]
) -> None:
    decoder = lab.decoder(backends=(PLANTED,))
    assert len(decoder.decode(named(clip, lab.folder, "chatter")).frames) == 10
    with pytest.raises(SourceError, match="decoding stopped"):
        lab.decoder().decode(spoil_end(named(clip, lab.folder, "damaged")))
    assert capfd.readouterr() == ("", "")


def test_a_missing_backend_is_a_mistake_in_the_job(clip: Path, lab: Lab) -> None:
    with pytest.raises(ConfigError, match="no_such_backend does not load"):
        lab.decoder(backends=("no_such_backend",)).decode(clip)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("import sys; sys.path.pop(0); del sys.modules['av']; import av; av.__version__ = '17.9.1'",
         "av 17.9 instead of 18.1"),
        ("raise ImportError('libavcodec.so.60 is missing')", "libavcodec.so.60 is missing"),
        ("", "'av' is not a package"),
    ],
    ids=["another", "broken", "empty"],
)  # fmt: skip
def test_a_child_with_other_decoders_than_the_jobs_does_not_start(
    module: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"av": "18.1", "av libavcodec": "62.28"}
    ChildProcess(2**31, ["pyav"], wanted).kill()
    (tmp_path / "av.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnfitNode, match=message):
        ChildProcess(2**31, ["pyav"], wanted)


def test_versions_are_those_of_the_modules_that_load() -> None:
    child = ChildProcess(2**31, ["decord", "pyav"])
    child.kill()
    assert child.versions["av"] == av.__version__
    for library in ("libavcodec", "libavformat", "libswscale"):
        ours = ".".join(map(str, av.library_versions[library]))
        assert child.versions[f"av {library}"] == ours
        assert child.versions[f"decord {library}"] != ours  # decord's FFmpeg is its own


def test_the_child_outlives_the_thread_that_started_it(clip: Path, lab: Lab) -> None:
    decoder = lab.decoder(backends=(PLANTED,), deadline_s=299.0)  # no other test has these settings
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
    parent.wait()
    while is_running(child):  # the runner's timeout fails the test
        time.sleep(0.05)


def test_frames_in_use_are_never_overwritten(clip: Path, lab: Lab) -> None:
    other = lab.write("other.mp4", 7, first_number=100)
    decoder = lab.decoder(backends=("pyav",), size=(96, 128))
    held = decoder.decode(clip).frames[3:5]  # a view that outlives its video
    for _ in range(3):
        for path, numbers in ((clip, list(range(10))), (other, list(range(100, 107)))):
            frames = decoder.decode(path).frames
            assert numbers_of(frames) == numbers
    assert numbers_of(held) == [3, 4]


def test_margins_are_black(clip: Path, lab: Lab) -> None:
    decoder = lab.decoder(backends=("pyav",), fit="pad", size=(96, 64))
    first = decoder.decode(clip).frames.copy()
    decoder.decode(clip).frames[:] = 255
    frames = decoder.decode(clip).frames
    assert np.array_equal(frames, first)
    assert not frames[:, :20].any()
    assert frames[:, 28:68].min() > 10
    assert not frames[:, 76:].any()


def test_frames_outlive_their_decoder_and_are_freed(clip: Path, lab: Lab) -> None:
    decoder = lab.decoder(deadline_s=298.0)  # no other test has these settings
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    held = [decoder.decode(clip) for _ in range(3)]
    decoder.close()
    assert numbers_of(held[0].frames) == list(range(10))
    held.clear()
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nothing_leaks_over_many_clips(clip: Path, lab: Lab) -> None:
    decoder = lab.decoder(backends=(PLANTED, "decord", "pyav"), deadline_s=300.0)
    segfault = named(clip, lab.folder, "segfault")
    damaged = spoil_end(named(clip, lab.folder, "damaged"))

    def decode_many(count: int) -> None:
        for index in range(count):
            decoder.decode(clip)
            if index % 10 == 0:
                with pytest.raises(SourceError):
                    decoder.decode(damaged)

    def used() -> tuple[int, int, set[str]]:
        gc.collect()  # of tracebacks that hold frames
        pids = os.getpid(), wait_for(clip.with_suffix(".pid"))
        fds = sum(1 for pid in pids for _ in Path(f"/proc/{pid}/fd").iterdir())
        names = {path.name for path in Path("/dev/shm").iterdir() if "tokpipe" in path.name}
        return fds, sum(map(resident_kib, pids)), names

    for _ in range(3):
        decoder.decode(segfault)
    decode_many(20)
    fds, kib, names = used()
    decode_many(200)
    fds_after, kib_after, names_after = used()
    assert fds_after == fds
    assert kib_after - kib < 8 * 1024
    assert names_after <= names


def resident_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
