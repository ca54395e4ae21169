"""A mount or a disk that fails is never blamed on a clip; a video that is deleted is missing."""

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.videos import write_video
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig, StoreOptions
from tokpipe.errors import NodeTrouble
from tokpipe.runtime.assemble import folders_of
from tokpipe.stages.decode import DecodeStage
from tokpipe.storage import fetch
from tokpipe.types import DecodedClip, Rejected, WorkItem

GONE = ("ENOTCONN", "ESTALE", "EIO", "EHOSTDOWN", "ETIMEDOUT", "EREMOTEIO", "ENODEV", "ENXIO")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[DecodeStage]:
    """Decodes below ``mnt``, in which there are two videos in two folders."""
    for name in ("a", "b"):
        (tmp_path / "mnt" / name).mkdir(parents=True)
        write_video(tmp_path / "mnt" / name / "video.mp4", 9)
    made = decode_stage(tmp_path / "mnt")
    made.setup()
    yield made
    made.close()


def decode_stage(folder: Path) -> DecodeStage:
    sampling, frames = SamplingConfig(min_clip_frames=1), FramesConfig(size=(16, 16))
    return DecodeStage(sampling, frames, DecodeConfig(), StoreOptions(), folders=(folder,))


def decoded(stage: DecodeStage, folder: Path) -> DecodedClip | Rejected:
    (clip,) = stage.process([WorkItem(0, "0" * 32, str(folder / "mnt" / "a" / "video.mp4"))])
    assert isinstance(clip, DecodedClip | Rejected)
    return clip


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


LOST: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "renamed": (lambda root: root.rename(root.parent / "other"), None),
    "emptied": (emptied, None),
    "a file in its place": (lambda root: (shutil.rmtree(root), root.touch()), None),
    "one folder of several": (lambda root: shutil.rmtree(root / "a"), "missing"),
    "one folder emptied": (lambda root: emptied(root / "a"), "missing"),
    "one video": (lambda root: (root / "a" / "video.mp4").unlink(), "missing"),
}


@pytest.mark.parametrize("is_decoding", [False, True])
@pytest.mark.parametrize("lost", LOST)
def test_a_source_that_vanishes_as_a_whole_rejects_nothing(
    lost: str, is_decoding: bool, stage: DecodeStage, tmp_path: Path, monkeypatch: Any
) -> None:
    lose, reason = LOST[lost]
    assert isinstance(decoded(stage, tmp_path), DecodedClip)
    if is_decoding:
        decode = stage._decoder.decode

        def lose_first(*args: Any, **kwargs: Any) -> Any:
            lose(tmp_path / "mnt")
            return decode(*args, **kwargs)

        monkeypatch.setattr(stage._decoder, "decode", lose_first)
    else:
        lose(tmp_path / "mnt")
    if reason is None:
        with pytest.raises(NodeTrouble, match="is gone or empty"):
            decoded(stage, tmp_path)
    else:
        found = decoded(stage, tmp_path)
        assert isinstance(found, Rejected)
        assert found.reason == reason


@pytest.mark.parametrize("name", GONE)
@pytest.mark.parametrize("call", ["stat", "open", "read"])
def test_an_error_of_a_mount_or_a_disk_rejects_nothing(
    call: str, name: str, stage: DecodeStage, tmp_path: Path, monkeypatch: Any
) -> None:
    (tmp_path / "mnt" / "a" / "video.mp4").write_bytes(b"damaged")
    error = OSError(getattr(errno, name), "planted")

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    owner: Any = {"stat": Path, "open": os, "read": fetch}[call]
    monkeypatch.setattr(owner, "_read_once" if call == "read" else call, fail)
    with pytest.raises(NodeTrouble, match="planted"):
        decoded(stage, tmp_path)


def test_a_damaged_video_on_a_disk_that_works_is_rejected(
    stage: DecodeStage, tmp_path: Path
) -> None:
    (tmp_path / "mnt" / "a" / "video.mp4").write_bytes(b"damaged")
    found = decoded(stage, tmp_path)
    assert isinstance(found, Rejected)
    assert found.reason == "not_a_video"


UNMOUNT = """
import subprocess, sys
from pathlib import Path
from tests.stages.test_lost_folders import DecodedClip, NodeTrouble, decode_stage, decoded
from tests.videos import write_video
root = Path(sys.argv[1])
mnt, stage = root / "mnt", decode_stage(root / "mnt")
mnt.mkdir()
stage.setup()
subprocess.run(["mount", "-t", "tmpfs", "none", mnt], check=True)
(mnt / "a").mkdir()
write_video(mnt / "a" / "video.mp4", 9)
assert isinstance(decoded(stage, root), DecodedClip)
subprocess.run(["umount", "--lazy", mnt], check=True)
try:
    print(decoded(stage, root))
except NodeTrouble as trouble:
    print("trouble:", trouble)
stage.close()
"""


def test_a_real_mount_that_goes_rejects_nothing(tmp_path: Path) -> None:
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        pytest.skip("user namespaces are not permitted here")
    command = ["unshare", "-rm", sys.executable, "-c", UNMOUNT, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("trouble: "), done.stdout


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("/mnt/v", "/mnt/v"), ("/mnt/v/", "/mnt/v"), ("/mnt/v/*.mp4", "/mnt/v"),
        ("/mnt/v/part-*/*.mp4", "/mnt/v"), ("/mnt/v/one.mp4", "/mnt/v"),
        ("file:///mnt/v/{000..099}.tar", "/mnt/v"), ("/mnt/v/**/*.mp4", "/mnt/v"),
        ("s3://bucket/v/*.mp4", None),
    ],
)  # fmt: skip
def test_the_folder_that_has_to_be_there_is_that_of_the_source(
    uri: str, folder: str | None
) -> None:
    assert list(folders_of([uri])) == ([Path(folder)] if folder else [])
