"""Opens local video files with FFmpeg's libraries, through PyAV. For the decoding child only."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import numpy as np

from tokpipe.errors import SourceError

# Video containers only. Without this list FFmpeg also accepts playlists and scripts that name
# other files and hosts to read (hls, dash, concat, sdp), renders text as pictures (tty), and
# treats a path with a percent sign as a pattern of still images (image2).
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,nut,mxf,rm,dv,ivf,obu,gif,"
    "h264,hevc,m4v,mpegvideo,yuv4mpegpipe,wtv,swf,vc1,gxf,nsv,roq,bink,smk"
)


def check_regular_file(path: Path) -> os.stat_result:
    """Return a file's status; reject others, since opening a FIFO blocks in every decoder.

    Raises:
        SourceError: ``missing``, ``access_denied``, ``not_a_file`` or ``empty``.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except (FileNotFoundError, NotADirectoryError):
        found = "is a symbolic link to nothing" if path.is_symlink() else "does not exist"
        raise SourceError("missing", f"{path} {found}") from None
    except PermissionError as error:
        raise SourceError("access_denied", f"this user may not read {path}") from error
    if not stat.S_ISREG(status.st_mode):
        mode = stat.filemode(status.st_mode)
        raise SourceError("not_a_file", f"{path} is not a regular file but {mode}")
    if status.st_size == 0:
        raise SourceError("empty", f"{path} has 0 bytes")
    return status


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Yield a file's PyAV container and main video stream, set up for exact decoding.

    Raises:
        SourceError: FFmpeg does not know the container, or it has no video stream.
    """
    check_regular_file(path)
    try:
        container = av.open(
            # The prefix stops FFmpeg from taking a name with a colon for a protocol.
            f"file:{path}",
            options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError) as error:
        raise _not_opened(path, error) from error
    with container:
        stream = _main_stream(container)
        # With more than one thread, the frames of a damaged stream differ from run to run. One
        # child per actor keeps the CPU busy anyway.
        stream.codec_context.thread_count = 1
        yield container, stream


def count_clean_joins(path: Path, pid: int) -> int:
    """Count where an MPEG-TS file was joined, without loss, by the counters in its packets.

    Returns:
        The places where the stream ``pid`` counts on from another number, if everywhere there the
        last unit before it is complete (its end was padded) and a new one begins; else 0.
    """
    heads = []
    with path.open("rb") as file:
        while block := file.read(188 << 12):
            rows = np.frombuffer(block, np.uint8, len(block) // 188 * 188).reshape(-1, 188)[:, :4]
            if np.any(rows[:, 0] != 0x47):
                return 0
            heads.append(rows[((rows[:, 1] & 31) * np.uint16(256) + rows[:, 2]) == pid])
    head = np.concatenate(heads)
    head = head[head[:, 3] & 0x10 != 0]  # with a payload
    begins, is_padded, counter = head[:, 1] & 0x40, head[:, 3] & 0x20, head[:, 3] & 15
    jumps = np.flatnonzero((np.diff(counter) - 1) & 15)
    clean = (begins[jumps + 1] != 0) & ((is_padded[jumps] != 0) | (counter[jumps + 1] == 0))
    return len(jumps) if clean.all() else 0


def _main_stream(container: Any) -> Any:
    """Return the stream that a player shows: FFmpeg's choice, unless that is cover art."""
    attached = av.stream.Disposition.attached_pic
    streams = [one for one in container.streams.video if not one.disposition & attached]
    if not streams:
        others = ", ".join(sorted(stream.type for stream in container.streams)) or "none"
        raise SourceError("no_video", f"the file has no video stream (its streams: {others})")
    best = container.streams.best("video")
    if best not in streams:
        best = streams[0]
    if best.codec_context is None:
        raise SourceError(
            "unsupported", "the video stream has a format that this FFmpeg has no decoder for"
        )
    return best


def _not_opened(path: Path, error: Exception) -> SourceError:
    """Distinguish a video that was cut short from a file that never was one."""
    if isinstance(error, MemoryError):
        raise error
    with path.open("rb") as file:
        head = file.read(12)
        # A failing disk is not the video's fault: it raises OSError while the rest is read.
        while file.read(2**20):
            pass
    if head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3":
        return SourceError(
            "truncated",
            "the file starts like a video but its index cannot be read "
            f"({_words(error)}): it was cut short, or never finished",
        )
    return SourceError("not_a_video", f"no video container is recognized ({_words(error)})")


def damaged(what: str, error: Exception) -> SourceError:
    """Return the rejection for an error that FFmpeg reported while reading or decoding.

    Raises:
        MemoryError: if that is the error, since it says nothing about the file.
    """
    if isinstance(error, MemoryError):
        raise error
    return SourceError("corrupt", f"{what} ({_words(error)})")


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
