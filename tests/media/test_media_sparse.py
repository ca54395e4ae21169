"""What is left out changes no pixel, and what was decoded before changes nothing."""

import contextlib
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.media.conftest import Lab
from tests.media.test_media_frames import CASES
from tests.videos import copy_from, numbers_of, packets_of, spoil_packet, write_video
from tokpipe.errors import SourceError
from tokpipe.media.backends import Task, pyav
from tokpipe.media.container import kept_open, open_video
from tokpipe.media.framing import Framing, Painter
from tokpipe.media.timeline import Timeline, read_timeline
from tokpipe.storage.fetch import LocalVideo

PYRAMID: dict[str, Any] = {
    "gop": 24,
    "options": {"preset": "medium", "bf": "3", "x264-params": "b-pyramid=normal:ref=4:scenecut=0"},
}
FILES: dict[str, dict[str, Any]] = {
    **CASES,
    "pyramid.mp4": {"num_frames": 90, **PYRAMID},
    "pyramid.mkv": {"num_frames": 90, **PYRAMID},
    "pyramid.ts": {"num_frames": 90, **PYRAMID},
    "all-key.mp4": {"num_frames": 30, "gop": 1},
    "two-layers.mp4": {
        "num_frames": 60,
        "codec": "libx265",
        "options": {"x265-params": "log-level=none:pools=1:temporal-layers=3:bframes=3:keyint=20"},
    },
}
"""Settings of ``write_video``, by file name."""
DAMAGED = [
    *("pyramid.mp4", "pyramid.mkv", "open-gop.mp4", "interlaced.mp4", "h264.flv"),
    *("hevc.mp4", "two-layers.mp4", "vp9-altref.webm", "av1.mp4"),
]


class Wholes(dict[str, tuple[Path, Timeline, NDArray[np.uint8]]]):
    def __repr__(self) -> str:
        return "..."  # hypothesis shows what a test is called with


Asked = list[tuple[int, int, int]]


@pytest.fixture(autouse=True, scope="module")
def _logs() -> Iterator[None]:
    """As in the child."""
    av.logging.set_level(av.logging.ERROR)
    logger = logging.getLogger("libav")
    logger.setLevel(logging.CRITICAL + 1)
    yield
    logger.setLevel(logging.NOTSET)
    av.logging.set_level(None)


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> Wholes:
    """Each file, and all of its frames, decoded from the beginning."""
    folder = tmp_path_factory.mktemp("whole")
    paths = {name: write_video(folder / name, **made) for name, made in FILES.items()}
    paths["joined.ts"] = folder / "joined.ts"
    paths["joined.ts"].write_bytes(paths["pyramid.ts"].read_bytes() * 3)
    for name in ("cut.mp4", "cut.mkv"):  # cut between key frames: MP4 hides frames by an edit list
        paths[name] = copy_from(paths["pyramid.mp4"], folder / name, 1.3)
    paths["liar.mkv"] = _with_false_key_frames(paths["pyramid.mkv"], folder / "liar.mkv")
    return Wholes(
        (name, (one, read_timeline(one), _everything(one))) for name, one in paths.items()
    )


def _with_false_key_frames(source: Path, target: Path) -> Path:
    """Every fifth packet claims to be a key frame."""
    with av.open(str(source)) as before, av.open(str(target), "w") as after:
        copy = after.add_stream_from_template(before.streams.video[0])
        for number, packet in enumerate(before.demux(video=0)):
            if packet.size:
                packet.is_keyframe |= number % 5 == 0
                packet.stream = copy
                after.mux(packet)
    return target


def _everything(path: Path, *, despite_errors: bool = False) -> NDArray[np.uint8]:
    """All frames; those that FFmpeg does not give are black."""
    timeline = read_timeline(path)
    task = _task(path, timeline, np.arange(len(timeline)))
    out = np.zeros((len(timeline), 48, 64, 3), np.uint8)
    with open_video(path) as (container, stream):
        if not despite_errors:
            pyav._paint(pyav._Video((container, stream), task, None), task, out)
            return out
        painter, places = (
            Painter(task.framing),
            {pts: k for k, pts in enumerate(timeline.pts or ())},
        )
        for packet in container.demux(stream):
            with contextlib.suppress(av.FFmpegError):
                for frame in packet.decode():
                    if frame.pts in places:
                        painter.paint(frame, out[places[frame.pts]])
    return out


def _from_key(path: Path, timeline: Timeline, index: int) -> NDArray[np.uint8]:
    """One frame; every frame from the key frame before it is decoded."""
    entry = pyav._entry(timeline, index)
    assert entry is not None
    task = _task(path, timeline, np.array([index]))
    out = np.zeros((1, 48, 64, 3), np.uint8)
    with open_video(path) as opened:
        pyav._paint(pyav._Video(opened, task, (entry[0], entry[0])), task, out)
    first: NDArray[np.uint8] = out[0]
    return first


def _task(path: Path, timeline: Timeline, wanted: NDArray[np.int64]) -> Task:
    stored = timeline.pixel_aspect, timeline.orientation, timeline.crop
    framing = Framing((48, 64), "stretch", *stored, has_fields=timeline.has_fields)
    return Task(path, timeline, wanted, framing)


def _decoded(path: Path, timeline: Timeline, wanted: NDArray[np.int64]) -> NDArray[np.uint8] | str:
    """Frames, or the reason why there are none."""
    out = np.zeros((len(wanted), 48, 64, 3), np.uint8)
    try:
        pyav.decode(_task(path, timeline, wanted), out)
    except SourceError as error:
        return error.reason
    return out


def _wanted(asked: Asked, num_frames: int) -> Iterator[NDArray[np.int64]]:
    """Most requests are for what comes after the last one."""
    first = 0
    for ahead, num, step in asked:
        first = (first + ahead) % num_frames
        yield np.arange(first, num_frames, step)[:num]
        first += num * step


spans = st.tuples(
    st.integers(0, 20) | st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 20)
)
many = st.lists(spans, min_size=1, max_size=8)


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("name", [*FILES, "joined.ts", "cut.mp4", "cut.mkv", "liar.mkv"])
@given(asked=many)
def test_frames_are_those_of_decoding_everything(name: str, asked: Asked, wholes: Wholes) -> None:
    path, timeline, whole = wholes[name]
    for wanted in _wanted(asked, len(whole)):
        assert np.array_equal(_decoded(path, timeline, wanted), whole[wanted])


@settings(max_examples=20, deadline=None)
@pytest.mark.parametrize("name", DAMAGED)
@given(
    asked=many,
    damage=st.lists(
        st.tuples(st.integers(0, 10**6), st.sampled_from("ftbrn")), min_size=1, max_size=4
    ),
    seed=st.integers(0, 10**6),
)
def test_a_damaged_file_gives_right_frames_or_none_whatever_came_before(
    name: str, asked: Asked, damage: list[tuple[int, str]], seed: int, wholes: Wholes
) -> None:
    source, _, before = wholes[name]
    path = source.with_name(f"damaged-{name}")
    path.write_bytes(source.read_bytes())
    rng = random.Random(seed)
    for number, kind in damage:
        _spoil(path, number, kind, rng)
    try:
        timeline = read_timeline(path)
    except SourceError:
        return
    strict: NDArray[np.uint8] | None = None
    with contextlib.suppress(SourceError):
        strict = _everything(path)
    lenient = _everything(path, despite_errors=True) if timeline.pts else None
    kept_open.close()
    for wanted in _wanted(asked, len(timeline)):
        found = _decoded(path, timeline, wanted)
        with _forgotten():
            assert np.array_equal(found, _decoded(path, timeline, wanted))
        if strict is not None:
            assert np.array_equal(found, strict[wanted])
        elif lenient is not None and not isinstance(found, str):
            for index, frame in zip(wanted, found, strict=True):
                sure = [lenient[index], *before[index : index + 1]]
                if not any(np.array_equal(frame, one) for one in sure):
                    # Damage that FFmpeg does not report if it begins with the key frame before it.
                    assert np.array_equal(frame, _from_key(path, timeline, index))


@contextlib.contextmanager
def _forgotten() -> Iterator[None]:
    """Decode as if there had been no request before."""
    kept, videos = kept_open.pop_all(), dict(pyav._kept)
    pyav._kept.clear()
    yield
    kept_open.close()
    pyav._kept.update(videos)
    kept_open.push(kept)


def _spoil(path: Path, number: int, kind: str, rng: random.Random) -> None:
    packets, whole = packets_of(path), path.read_bytes()
    position, data = packets[number % len(packets)]
    at = whole.find(data, max(0, position))
    if at < 0:
        return
    changed = bytearray(data)
    if kind == "f":
        changed[:] = bytes([255] * len(data))
    elif kind == "t":
        changed[len(data) // 2 :] = rng.randbytes(len(data) - len(data) // 2)
    elif kind == "b":
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind in "rn" and len(data) > 5:  # a frame to which others refer denies it: H.264, HEVC
        changed[4] &= 0x9F if kind == "r" else 0xFD
    path.write_bytes(whole[:at] + changed + whole[at + len(data) :])


def test_damage_in_frames_that_nobody_needs_costs_nothing(lab: Lab) -> None:
    path = lab.write("a.mp4", 60, **PYRAMID)
    whole = lab.decoder().decode(path).frames
    with av.open(str(path)) as container:
        packets = [one for one in container.demux(video=0) if one.size]
    shown = sorted(one.pts for one in packets)
    for number, one in enumerate(packets):
        at = shown.index(one.pts)
        if at < 48 and (bytes(one)[4] == 1 or 12 <= at % 24 < 20):
            spoil_packet(path, number, kept=8)  # it still says that no frame refers to it
    part = lab.decoder(fps=25 / 24).decode(path)
    assert np.array_equal(part.frames, whole[::24])  # they are key frames
    with pytest.raises(SourceError, match="decod"):
        lab.decoder().decode(path)


def test_a_video_is_opened_once_for_spans_in_order(
    wholes: Wholes, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    def counted(path: Path, file_name: str) -> Any:
        opened.append(path.name)
        return open_video(path, file_name)

    monkeypatch.setattr(pyav, "open_video", counted)
    for name in ("mpeg4-b.avi", "pyramid.ts", "h264.flv", "mpeg2.ts"):
        path, timeline, whole = wholes[name]
        kept_open.close()
        opened.clear()
        for first in (0, 3, 9, 16, 23):
            wanted = np.arange(first, first + 3)
            assert np.array_equal(_decoded(path, timeline, wanted), whole[wanted])
        assert opened == [name]
        _decoded(path, timeline, np.arange(5, 7))  # back
        _decoded(*wholes["cfr.mp4"][:2], np.arange(5))
        _decoded(path, timeline, np.arange(20, 22))
        assert opened == [name, name, "cfr.mp4", name]


def test_files_under_one_descriptor_are_told_apart(lab: Lab) -> None:
    """A child reads copies without names by way of its descriptors, whose numbers come again."""
    decoder, found = lab.decoder(), []
    for first_number in (0, 100, 200):
        path = lab.write("a.mkv", 30, first_number=first_number)
        fd = os.open(path, os.O_RDWR)
        path.unlink()
        copy = LocalVideo(Path(f"/proc/self/fd/{fd}"), copy=fd, file_name="a.mkv")
        for start_s in (0.0, 0.4):
            frames = decoder.decode(copy, start_s=start_s, end_s=start_s + 0.2).frames
            found += numbers_of(frames)[:1]
        copy.close()
    assert found == [0, 10, 100, 110, 200, 210]


def test_a_copy_that_is_closed_takes_no_space_although_the_child_has_it_open(lab: Lab) -> None:
    path = lab.write("a.mkv", 30)
    fd, watched = os.open(path, os.O_RDWR), os.open(path, os.O_RDONLY)
    copy = LocalVideo(Path(f"/proc/self/fd/{fd}"), copy=fd, file_name="a.mkv")
    lab.decoder().decode(copy, end_s=0.2)
    copy.close()
    assert os.fstat(watched).st_size == 0
    os.close(watched)
