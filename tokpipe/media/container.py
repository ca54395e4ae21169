"""Opens local video files with FFmpeg's libraries, through PyAV. For the decoding child only."""

import contextlib
import functools
import mmap
import os
import re
import stat
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np

from tokpipe.errors import SourceError
from tokpipe.media.geometry import Crop

# Video containers only. FFmpeg would also open playlists and scripts that name other files and
# hosts (hls, dash, concat, sdp), text as pictures (tty), and paths with % as patterns (image2).
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpegts,mpeg,avi,flv,asf,ogg,nut,mxf,rm,dv,ivf,obu,gif,"
    "h264,hevc,m4v,mpegvideo,yuv4mpegpipe,wtv,swf,vc1,gxf,nsv,roq,bink,smk,apng"
)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG", b"II*\0", b"MM\0*", b"BM", b"\0\0\0\x0cJXL")
"""How files in JPEG, PNG, TIFF, BMP and JPEG XL begin."""
AS_PICTURE = ". If its source has pictures, set media: both or image"
# How files begin, by their first four bytes, of which FFmpeg may not read all if joined.
_HEADERS = {
    b"FLV\x01": rb"FLV\x01.\0\0\0\x09\0{4}",
    b"\x1a\x45\xdf\xa3": rb"\x1a\x45\xdf\xa3.{0,60}?(?:matroska|webm)",
    b"GIF8": rb"GIF8[79]a",
    b"nut/": rb"nut/multimedia container\0",
    b"\x89PNG": rb"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR",
}
MAX_PIXELS = 12_288 * 8_192  # FFmpeg's own limit lets a GIF of 89 bytes take 6 GB
_LIMITS = {"max_pixels": str(MAX_PIXELS)}
_ALLOWED = {"format_whitelist": _FORMATS, "protocol_whitelist": "file,concat,subfile"}
_DOLBY_ONLY = r"^ +DOVI configuration record: .*profile: (5|(?:10|20)(?=,.* compatibility id: 0)),"
_WITH_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
kept_open = contextlib.ExitStack()
"""The video that a backend leaves open for the next request. No other is opened beside it."""


def check_regular_file(path: Path) -> tuple[int, ...]:
    """Return a file's version; reject others, since opening a FIFO blocks in every decoder."""
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
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def open_video(path: Path, file_name: str = "") -> Iterator[tuple[Any, Any]]:
    """Yield a file's PyAV container and main video stream, set up for exact decoding. FFmpeg
    considers the extension of ``file_name``, by default that of ``path``."""
    kept_open.close()
    version = *check_regular_file(path), file_name
    with path.open("rb", buffering=0) as file:
        head = os.pread(file.fileno(), 2**12, 0)
        file.name = f"video{Path(file_name or path).suffix}"
        try:
            source = _joined_files(path, version) or file
            container = av.open(source, options=_ALLOWED | _LIMITS, metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            raise _not_opened(head, error) from error
        with container:
            stream = _main_stream(container, head)
            # With threads, frames of damaged streams vary from run to run. Actors fill the CPU.
            stream.codec_context.thread_count = 1
            stream.codec_context.options = _LIMITS
            # Without it, FFmpeg rounds what a stream crops on the left to a multiple of 32 columns.
            stream.codec_context.flags |= av.codec.context.Flags.unaligned
            yield container, stream


@functools.lru_cache  # reads the whole file, which is opened again for every clip of it
def _joined_files(path: Path, version: tuple[object, ...]) -> str | None:
    """A URL of joined FLV files, without the headers of the later ones; None for any other file."""
    starts = [0]
    with path.open("rb") as file:
        head = file.read(4)
        if pattern := _HEADERS.get(head):
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
                starts = sorted({0, *(one.start() for one in re.finditer(pattern, whole, re.S))})
    if len(starts) == 1:
        return None
    if head != b"FLV\x01" or "|" in str(path):
        where = f"{len(starts)} files were joined, of which FFmpeg may lose or mix frames"
        raise SourceError("corrupt", f"{where}: split the file at the bytes {starts[1:]}")
    parts = [(start and start + 13, end) for start, end in pairwise([*starts, 0])]
    return "concat:" + "|".join(f"subfile,,start,{a},end,{b},,:{path}" for a, b in parts)


def count_clean_joins(path: Path, pid: int) -> int:
    """Count the jumps in the packet counters of an MPEG-TS stream; 0 if data is missing at any."""
    head = _ts_heads(path, pid)
    head = head[head[:, 3] & 0x10 != 0]  # with a payload
    begins, is_padded, counter = head[:, 1] & 0x40, head[:, 3] & 0x20, head[:, 3] & 15
    jumps = np.flatnonzero((np.diff(counter) - 1) & 15)
    # Nothing is missing if one unit is complete, so that its end is padded, and the next begins.
    is_clean = (begins[jumps + 1] != 0) & ((is_padded[jumps] != 0) | (counter[jumps + 1] == 0))
    return len(jumps) if is_clean.all() else 0


def _ts_heads(path: Path, pid: int) -> Any:
    """(N, 4) uint8: the first bytes of the MPEG-TS packets of one stream."""
    heads = []
    with path.open("rb") as file:
        while block := file.read(188 << 12):
            rows = np.frombuffer(block, np.uint8, len(block) // 188 * 188).reshape(-1, 188)[:, :4]
            pids = (rows[:, 1] & 31) * np.uint16(256) + rows[:, 2]
            heads.append(rows[(rows[:, 0] == 0x47) & (pids == pid)])
    return np.concatenate(heads)


def is_encrypted(path: Path, container: Any, stream: Any) -> bool:
    """Whether the container says that the stream is encrypted. MP4 says so by packet."""
    if container.format.name != "mpegts":
        return "enc_key_id" in stream.metadata  # Matroska
    try:
        _ = stream.codec_context.codec_tag
    except UnicodeDecodeError:  # a stream type above 127: Apple's SAMPLE-AES
        return True
    return bool((_ts_heads(path, stream.id)[:, 3] & 0xC0).any())


def decoder_of(stream: Any) -> Any:
    """Return the decoder for a stream: its own, or libvpx where only that decodes the alpha."""
    own = stream.codec_context
    if stream.metadata.get("alpha_mode") != "1" or own.name not in _WITH_ALPHA:
        return own
    decoder: Any = av.CodecContext.create(_WITH_ALPHA[own.name], "r")
    decoder.thread_count = 1
    decoder.options = _LIMITS
    return decoder


def read_description(container: Any, stream: Any) -> tuple[Crop, bool]:
    """Return what the container hides of frames (PixelCrop, clap), and whether they have fields."""
    mine = described(container).get(str(stream.index), "")
    crop = re.search(r"^ +Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", mine, re.M)
    if dolby := re.search(_DOLBY_ONLY, mine, re.M):
        found = f"the video is Dolby Vision profile {dolby[1]}, without a compatible base layer"
        do = "its colours (IPT) cannot be converted to RGB. Use a copy in HDR10 or another profile"
        raise SourceError("unsupported", f"{found}: {do}")
    has_fields = re.search(r"^[^\n]* Video: [^\n]*[(, ](top|bottom) (coded )?first", mine)
    return Crop(*map(int, crop.groups())) if crop else Crop(), has_fields is not None


def described(container: Any) -> dict[str, str]:
    """FFmpeg's description of each stream, by index: it has what PyAV does not offer."""
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        description = container.dumps_format()
    finally:
        av.logging.set_level(level)
    _, *streams = re.split(r"^ +Stream #0:(\d+)", description, flags=re.M)
    return dict(zip(streams[::2], streams[1::2], strict=True))


def _main_stream(container: Any, head: bytes) -> Any:
    """Return the stream that a player shows: FFmpeg's choice, unless that is cover art."""
    attached = av.stream.Disposition.attached_pic
    streams = [one for one in container.streams.video if not one.disposition & attached]
    size = int.from_bytes(head[:4], "big")
    if streams and head[4:8] == b"ftyp" and b"meta" in head[size : size + 64]:
        # HEIF has pictures, whose tiles are streams, and animations. Only these have a duration.
        streams = [one for one in streams if one.duration is not None]
        if not streams:
            raise SourceError("still_picture", "the file is a still picture, in HEIF or AVIF")
    if not streams and container.streams.video:
        raise SourceError("cover_art", "the only picture in the file is the cover of its sound")
    if not streams:
        others = ", ".join(sorted(stream.type for stream in container.streams)) or "none"
        raise SourceError("no_video", f"the file has no video stream (its streams: {others})")
    best = container.streams.best("video")
    if best not in streams:
        best = streams[0]
    if best.codec_context is None:
        if re.search(r"\((encv|drmi) /", described(container).get(str(best.index), "")):
            raise SourceError("encrypted", "the video stream is encrypted")
        raise SourceError("unsupported", "this FFmpeg has no decoder for the video stream")
    return best


def _not_opened(head: bytes, error: Exception) -> SourceError:
    """Distinguish a video that was cut short from a file that never was one."""
    if isinstance(error, MemoryError):
        raise error
    if head[8:16] == b"WEBPVP8X" and head[20] & 2:
        return SourceError("animation", "the file is an animated WebP, which FFmpeg does not read")
    if head[8:12] == b"WEBP" or head.startswith(_PICTURES):
        return SourceError("still_picture", f"the file is a picture ({head[:12]!r}){AS_PICTURE}")
    if head[4:8] == b"ftyp" or head[:4] == b"\x1a\x45\xdf\xa3":
        found = f"the file starts like a video but its index cannot be read ({_words(error)})"
        return SourceError("truncated", f"{found}: it was cut short, or never finished")
    found = f"no video container is recognized ({_words(error)})"
    return SourceError("not_a_video", f"{found}; the file begins with {head[:48]!r}")


def damaged(what: str, error: Exception) -> SourceError:
    """Return the rejection for an error that FFmpeg reported while reading or decoding."""
    if isinstance(error, MemoryError):  # which says nothing about the file
        raise error
    size = r"'IMGUTILS', 'Picture size (\d+x\d+) (is invalid|exceeds)"
    if found := re.search(size, str(getattr(error, "log", None))):  # its code says less
        most = f"which is more than {MAX_PIXELS:,} pixels, so it could take all memory"
        return SourceError("too_many_pixels", f"a frame claims to be {found[1]} in size, {most}")
    return SourceError("corrupt", f"{what} ({_words(error)})")


def _words(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
