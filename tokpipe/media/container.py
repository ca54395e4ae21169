"""Opens local video files with FFmpeg's libraries, through PyAV. For the decoding child only."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from tokpipe.errors import SourceError

# Only real video containers. Without this list FFmpeg also accepts playlists and scripts that
# name other files and hosts to read (hls, dash, concat, sdp), renders text as pictures (tty),
# and takes a path with a percent sign for a pattern of still images (image2).
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,nut,mxf,rm,dv,ivf,obu,gif,"
    "h264,hevc,m4v,mpegvideo,yuv4mpegpipe,wtv,swf,vc1,gxf,nsv,roq,bink,smk"
)


def check_regular_file(path: Path) -> None:
    """Refuse what is no plain file: opening a FIFO waits for ever, in every decoder.

    Raises:
        SourceError: ``missing``, ``access_denied``, ``not_a_file`` or ``empty``.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except (FileNotFoundError, NotADirectoryError):
        broken = path.is_symlink()
        found = "is a symbolic link to nothing" if broken else "does not exist"
        raise SourceError("missing", f"{path} {found}") from None
    except PermissionError as error:
        raise SourceError(
            "access_denied", f"{path} may not be read by this user: {error.strerror}"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        kind = {
            stat.S_IFDIR: "a directory",
            stat.S_IFIFO: "a named pipe",
            stat.S_IFSOCK: "a socket",
            stat.S_IFCHR: "a character device",
            stat.S_IFBLK: "a block device",
        }.get(stat.S_IFMT(status.st_mode), "something special")
        raise SourceError("not_a_file", f"{path} is {kind}; a video is a regular file")
    if status.st_size == 0:
        raise SourceError("empty", f"{path} has 0 bytes")


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file; yield PyAV's container and its main video stream, set up to decode exactly.

    Raises:
        SourceError: no container that FFmpeg knows, or none with a video stream.
    """
    check_regular_file(path)
    try:
        container = av.open(
            # The prefix keeps FFmpeg from reading a protocol into a name with a colon.
            f"file:{path}",
            options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError) as error:
        raise _not_opened(path, error) from error
    with container:
        stream = _main_stream(container)
        # One thread: with more, what a damaged stream gives differs from run to run, and the
        # processor is kept busy by one decoding child per actor anyway.
        stream.codec_context.thread_count = 1
        yield container, stream


def _main_stream(container: Any) -> Any:
    """The stream that a player shows: FFmpeg's choice, unless that is the cover of a song."""
    streams = [stream for stream in container.streams.video if not _is_cover(stream)]
    best = container.streams.best("video")
    if best is not None and best not in streams:
        best = streams[0] if streams else None
    if best is None:
        others = ", ".join(sorted(stream.type for stream in container.streams)) or "none"
        raise SourceError("no_video", f"the file has no video stream (its streams: {others})")
    if best.codec_context is None:
        raise SourceError(
            "unsupported", "the video stream is in a format that this FFmpeg has no decoder for"
        )
    return best


def _is_cover(stream: Any) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def _not_opened(path: Path, error: Exception) -> SourceError:
    """Tell a video that was cut short from something that never was one."""
    if isinstance(error, MemoryError):
        return out_of_memory()
    head = b""
    with path.open("rb") as file:
        head = file.read(12)
        # A disk that fails is no fault of the video: reading on raises OSError then.
        while file.read(2**20):
            pass
    if head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3":
        return SourceError(
            "truncated",
            "the file begins as a video but its index cannot be read "
            f"({_words(error)}): it was cut short, or never finished",
        )
    return SourceError("not_a_video", f"no video container is recognized ({_words(error)})")


def damaged(what: str, error: Exception) -> SourceError:
    """The rejection for an error that FFmpeg reported while reading or decoding."""
    if isinstance(error, MemoryError):
        return out_of_memory()
    return SourceError("corrupt", f"{what} ({_words(error)})")


def out_of_memory() -> SourceError:
    return SourceError(
        "too_large", "decoding needs more memory than decode.memory_bytes lets the child use"
    )


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
