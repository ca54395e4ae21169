"""Hostile videos: how to make each one reproducibly, and its allowed outcomes."""

import functools
import itertools
import os
import random
import socket
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from tests.end_to_end.jobs import SAMPLE
from tests.videos import (
    FAST_VP,
    FASTSTART,
    FRAGMENTED,
    HEVC,
    VP9,
    copy_from,
    cut_short,
    packets_of,
    remux,
    spoil_packet,
    write_cover_art,
    write_silence,
    write_size_change,
    write_video,
)

CASES = Path(__file__).parents[1] / "cases" / "media"
TOKENIZED = "tokenized"
NOT_OPENED = frozenset({"not_a_video", "truncated", "no_video", "unsupported", "corrupt"})
"""Reasons for a file that contains no readable video."""
DAMAGED = NOT_OPENED | {"too_large", "too_many_pixels", "too_short", "gap"}
"""Reasons for a file that used to be a video."""
REASONS = DAMAGED | {
    *("access_denied", "bad_row", "bad_uri", "crashed", "empty", "missing", "not_a_file"),
    *("changed", "timeout", "unreachable"),
    *("animation", "cover_art", "encrypted", "not_a_picture", "still_picture"),
}
"""Every reason for which a clip of the corpus may be rejected."""

FPS = 25
"""Frame rate of the videos made here; their frame k shows the number k."""

Make = Callable[[Path], object]


@dataclass(frozen=True)
class VideoCase:
    """One hostile file."""

    name: str
    """File name, unique among the cases."""
    family: str
    make: Make
    """Writes the file to a path."""
    allowed: frozenset[str]
    """Allowed outcomes of its worst clip: ``tokenized``, or a reason."""
    is_numbered: bool = False
    """Every decoded frame must show its number: this damage removes frames but changes none."""


def video_cases(count: int, seed: int) -> list[VideoCase]:
    """Return all named cases, and generated damage until there are ``count``.

    Generated case k depends only on ``seed`` and k.
    """
    named = named_cases()
    kinds = itertools.product(_FORMATS, DAMAGE)
    order = sorted(kinds, key=lambda kind: random.Random(f"{kind}").random())
    generated = [_damaged(seed, number, *order[number % len(order)]) for number in range(count)]
    return [*named, *generated][: max(count, len(named))]


def few_of_each(cases: Sequence[VideoCase], count: int) -> list[VideoCase]:
    """Return the first ``count`` cases of each family."""
    families: defaultdict[str, list[VideoCase]] = defaultdict(list)
    for case in cases:
        families[case.family].append(case)
    return [case for family in families.values() for case in family[:count]]


# Formats to damage.

_X264 = {"crf": "20", "preset": "ultrafast", "bf": "2", "threads": "1"}
_AV1: dict[str, Any] = {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}}
_FORMATS: dict[str, dict[str, Any]] = {
    "index-first.mp4": {"options": _X264, **FASTSTART},
    "index-last.mp4": {"options": _X264},
    "fragments.mp4": {"options": _X264, **FRAGMENTED},
    "h264.mkv": {"options": _X264},
    "h264.ts": {"options": _X264},
    "h264.flv": {"options": _X264},
    "hevc.mp4": HEVC,
    "vp8.webm": {"codec": "libvpx", "options": FAST_VP},
    "vp9.webm": VP9,
    "av1.mp4": _AV1,
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "wmv2.asf": {"codec": "wmv2"},
    "mjpeg.mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "ffv1.mkv": {"codec": "ffv1"},
}


@functools.cache
def whole(name: str) -> bytes:
    """A valid file of 40 numbered frames in one of the formats."""
    settings = dict(_FORMATS[name])
    # Matroska would write a random id and the date.
    container = {"fflags": "+bitexact", **settings.pop("container_options", {})}
    with tempfile.TemporaryDirectory() as folder:
        path = write_video(
            Path(folder) / name, 40, fps=FPS, container_options=container, **settings
        )
        return path.read_bytes()


# Damage: each changes the bytes of a file in place.

Damage = Callable[[bytearray, random.Random], None]


def _header_bytes(data: bytearray) -> int:
    """Approximate number of bytes before the first frame."""
    return min(1000, len(data) // 4)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(1, len(data)) :]


def _lose_head(data: bytearray, rng: random.Random) -> None:
    del data[: rng.randrange(1, len(data))]


def _flip(counts: list[int], place: Callable[[bytearray, random.Random], int]) -> Damage:
    def flip(data: bytearray, rng: random.Random) -> None:
        for _ in range(rng.choice(counts)):
            data[place(data, rng)] ^= 1 << rng.randrange(8)

    return flip


def _change(sizes: list[int], change: Callable[[bytes, random.Random], bytes]) -> Damage:
    def damage(data: bytearray, rng: random.Random) -> None:
        start = rng.randrange(len(data))
        end = min(len(data), start + rng.choice(sizes))
        data[start:end] = change(bytes(data[start:end]), rng)

    return damage


def _huge_numbers(data: bytearray, rng: random.Random) -> None:
    """Make sizes, counts and dimensions in the header enormous."""
    start = rng.randrange(_header_bytes(data))
    data[start : start + 4] = rng.choice([b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", bytes(4)])


def _splice(data: bytearray, rng: random.Random) -> None:
    """Join the beginning of one file and the end of another."""
    other = whole(rng.choice(list(_FORMATS)))
    data[rng.randrange(1, len(data)) :] = other[rng.randrange(1, len(other)) :]


DAMAGE: dict[str, Damage] = {
    "cut": _cut,
    "lost head": _lose_head,
    "bits flipped in the header": _flip(
        [1, 1, 3, 20], lambda data, rng: rng.randrange(_header_bytes(data))
    ),
    "bits flipped at the end": _flip(
        [1, 1, 3, 20], lambda data, rng: -1 - rng.randrange(_header_bytes(data))
    ),
    "bits flipped in frames": _flip(
        [1, 1, 5, 50], lambda data, rng: rng.randrange(_header_bytes(data), len(data))
    ),
    "zeroed": _change([1, 16, 512, 4096], lambda part, rng: bytes(len(part))),
    "noise": _change([16, 512, 4096], lambda part, rng: rng.randbytes(len(part))),
    "bytes removed": _change([1, 16, 188, 2048], lambda part, rng: b""),
    "bytes repeated": _change([16, 188, 2048], lambda part, rng: part * 2),
    "huge numbers": _huge_numbers,
    "spliced": _splice,
}


def _damaged(seed: int, number: int, kind: str, damage: str) -> VideoCase:
    def make(path: Path) -> None:
        data = bytearray(whole(kind))
        DAMAGE[damage](data, random.Random(f"{seed} {number}"))
        path.write_bytes(data)

    name = f"g{number:04} {damage} {kind}".replace(" ", "_")
    return VideoCase(name, damage, make, DAMAGED | {TOKENIZED}, is_numbered=damage == "cut")


# Named cases.


def named_cases() -> list[VideoCase]:
    """The cases that are not generated."""
    return [
        VideoCase(name, family, make, frozenset(allowed), is_numbered=family in _NUMBERED)
        for family, cases in _FAMILIES.items()
        for name, (make, allowed) in cases.items()
    ]


def _bytes(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def _of(name: str) -> Make:
    return lambda path: path.write_bytes(whole(name))


def _video(num_frames: int = 20, **settings: Any) -> Make:
    settings.setdefault("options", _X264 if "codec" not in settings else None)
    return lambda path: write_video(path, num_frames, fps=FPS, **settings)


def _case(name: str) -> Make:
    return _bytes((CASES / name).read_bytes())


def _joined(*names: str) -> Make:
    """Whole files of one format, one after the other; numbers go on."""

    def make(path: Path) -> None:
        parts = []
        for k, name in enumerate(names):
            write_video(path.with_name(name), 20, first_number=20 * k, **_FORMATS[name])
            parts.append(path.with_name(name).read_bytes())
            path.with_name(name).unlink()
        path.write_bytes(b"".join(parts))

    return make


def _with_hole(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = write_video(Path(folder) / "source.mp4", 40, fps=FPS, options=_X264)
        remux(source, path, kept=[*range(8), *range(24, 40)])


def _scrambled(path: Path) -> None:
    data = np.frombuffer(whole("h264.ts"), np.uint8).reshape(-1, 188).copy()
    of_video = (data[:, 1] & 31 == 1) & (data[:, 2] == 0)
    data[of_video, 3] |= 0x80
    data[of_video, 60:] ^= 0x55
    path.write_bytes(data.tobytes())


def _cover_art(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "cover.mov"
        write_video(picture, 1, codec="mjpeg", pix_fmt="yuvj420p")
        write_cover_art(path, packets_of(picture)[0].data)


def _resized(codec: str) -> Make:
    return lambda path: write_size_change(path, codec, 20)


def _sample_cut(share: float) -> Make:
    data = SAMPLE.read_bytes()
    return _bytes(data[: int(len(data) * share)])


def _sample_flipped(seed: int, begin: int, end: int, count: int) -> Make:
    rng, data = random.Random(seed), bytearray(SAMPLE.read_bytes())
    for _ in range(count):
        data[rng.randrange(begin, min(end, len(data)))] ^= 1 << rng.randrange(8)
    return _bytes(bytes(data))


def _patched(old: bytes, new: bytes, offset: int = 0, name: str = "index-last.mp4") -> Make:
    """Write ``new`` at ``offset`` from the first ``old``."""

    def make(path: Path) -> None:
        data = bytearray(whole(name))
        start = data.index(old) + offset
        data[start : start + len(new)] = new
        path.write_bytes(data)

    return make


def _sparse(head: bytes = b"") -> Make:
    def make(path: Path) -> None:
        path.write_bytes(head)
        os.truncate(path, 1 << 28)

    return make


def _socket(path: Path) -> None:
    # The path of a socket is limited to a hundred bytes, so it is bound in a short folder.
    with socket.socket(socket.AF_UNIX) as bound, tempfile.TemporaryDirectory() as folder:
        bound.bind(f"{folder}/s")
        Path(folder, "s").rename(path)


def _link_to_file(path: Path) -> None:
    target = path.with_name(f".{path.name}.target")
    _of("index-first.mp4")(target)
    path.symlink_to(target.name)


def _between_packets(path: Path) -> None:
    _of("index-first.mp4")(path)
    cut_short(path, 20, inside=False)


def _with_edit_list(path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = write_video(Path(folder) / "source.mp4", 40, fps=FPS, options=_X264)
        copy_from(source, path, 0.5)


def _lost_frame(path: Path) -> None:
    path.write_bytes(whole("h264.mkv" if path.suffix == ".mkv" else "vp9.webm"))
    spoil_packet(path, 12)


_SCRIPTS = {
    "playlist.m3u8": b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n#EXT-X-ENDLIST\n",
    "playlist.mp4": b"#EXTM3U\n#EXTINF:1,\nwhole_index-first.mp4\n#EXT-X-ENDLIST\n",
    "concat.mp4": b"ffconcat version 1.0\nfile whole_index-first.mp4\n",
    "stream.sdp": b"v=0\nc=IN IP4 127.0.0.1\nm=video 9 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash.mpd": b'<?xml version="1.0"?><MPD><BaseURL>file:///etc/</BaseURL></MPD>',
    "subtitles.mp4": b"1\n00:00:00,000 --> 00:00:09,000\nhello\n",
}
_NOT_A_VIDEO = {"not_a_video", "no_video"}
_BROKEN = {"corrupt", "truncated"}
_OK = {TOKENIZED}
_Cases = Mapping[str, tuple[Make, set[str] | frozenset[str]]]
_NUMBERED = ("intact formats", "odd pictures", "names", "wrong suffixes", "joined", "animations")
_FAMILIES: dict[str, _Cases] = {
    "intact formats": {f"whole_{name}": (_of(name), _OK) for name in _FORMATS},
    "odd pictures": {
        "one_frame.mp4": (_video(1), _OK),
        "two_frames.mkv": (_video(2), _OK),
        "odd_size.mp4": (_video(size=(49, 65), pix_fmt="yuv444p"), _OK),
        "odd_size.mkv": (_video(size=(47, 63), codec="ffv1", pix_fmt="yuv420p"), _OK),
        "wide.mkv": (_video(3, size=(48, 2000)), _OK),
        "tall.mkv": (_video(3, size=(2000, 64)), _OK),
        "ten_bits.mkv": (_video(pix_fmt="yuv420p10le", **HEVC), _OK),
        "ten_bits.mp4": (_video(options=_X264, pix_fmt="yuv420p10le"), _OK),
        "twelve_bits.mkv": (_video(codec="ffv1", pix_fmt="yuv420p12le"), _OK),
        "sixteen_bits_grey.mkv": (_video(codec="ffv1", pix_fmt="gray16le"), _OK),
        "grey.mkv": (_video(codec="ffv1", pix_fmt="gray"), _OK),
        "alpha.mkv": (_video(codec="ffv1", pix_fmt="yuva420p"), _OK),
        "alpha.mov": (_video(codec="qtrle", pix_fmt="argb"), _OK),
        "alpha.webm": (_video(pix_fmt="yuva420p", **VP9), _OK),
        "prores.mov": (_video(codec="prores_ks", pix_fmt="yuv422p10le"), _OK),
        "full_range.mkv": (_video(codec="mjpeg", pix_fmt="yuvj444p"), _OK),
        "anamorphic.mp4": (_video(pixel_aspect=Fraction(40, 33)), _OK),
        "absurd_pixels.mkv": (_video(pixel_aspect=Fraction(1, 5000)), {TOKENIZED, "unsupported"}),
        "interlaced.mkv": (_video(options={**_X264, "flags": "+ildct+ilme"}), _OK),
        "interlaced.mpg": (_video(codec="mpeg2video", options={"flags": "+ildct+ilme"}), _OK),
        "with_sound.mp4": (_video(audio=True), _OK),
        "raw.nut": (_video(codec="rawvideo"), _OK),
        "raw.y4m": (_video(codec="wrapped_avframe"), _OK),
    },
    "rotated and resized": {
        "rotated_90.mp4": (_video(rotation=90), _OK),
        "rotated_180.mp4": (_video(rotation=180), _OK),
        "rotated_17.mp4": (_video(rotation=17), {TOKENIZED, "unsupported"}),
        "size_change.webm": (_resized("libvpx-vp9"), {TOKENIZED, "corrupt"}),
        "size_change.mkv": (_resized("mpeg4"), {TOKENIZED, "corrupt"}),
        "tiny.mkv": (_video(size=(2, 2), codec="ffv1"), _OK),
        "one_pixel.mkv": (_video(3, size=(1, 1), codec="ffv1", pix_fmt="bgr0"), _OK),
    },
    "odd times": {
        "vfr.mkv": (_video(8, pts=[0, 1, 2, 7, 8, 20, 21, 40]), {TOKENIZED}),
        "edit_list.mp4": (_with_edit_list, {TOKENIZED, "corrupt"}),
        "hours_away.mkv": (_video(3, pts=[0, 1, FPS * 5000]), {"corrupt"}),
        "years_away.mkv": (_video(3, pts=[0, 1, FPS * 10**7]), {"corrupt"}),
        "late_start.ts": (_video(20, pts=range(10_000, 10_020)), {TOKENIZED}),
        "late.mp4": (_case("late.mp4"), _OK),
        "wrap.ts": (_video(40, pts=range(2_386_070, 2_386_110)), _OK),
        "jump.ts": (_video(40, pts=[*range(20), *range(90_000, 90_020)]), _OK),
    },
    "joined": {
        **{
            f"joined_{name}": (_joined(name, name), _OK)
            for name in ("h264.ts", "h264.flv", "mpeg2.mpg", "mpeg4.avi")
        },
        **{
            f"joined_{name}": (_joined(name, name), {"corrupt"})
            for name in ("h264.mkv", "vp9.webm")
        },
        "joined_3.ts": (_joined("h264.ts", "h264.ts", "h264.ts"), _OK),
        "joined.mp4": (_joined("fragments.mp4", "fragments.mp4"), _BROKEN),
    },
    "holes": {
        "dash_hole.mp4": (_case("dash_hole.mp4"), {"gap"}),
        **{f"hole.{kind}": (_with_hole, {"gap"}) for kind in ("ts", "mkv", "flv")},
    },
    "encrypted": {
        "cenc.mp4": (_case("cenc.mp4"), {"encrypted"}),
        "scrambled.ts": (_scrambled, {"encrypted"}),
    },
    "pictures": {
        "grid.avif": (_case("grid.avif"), {"still_picture"}),
        "still.avif": (_video(1, size=(64, 64), **_AV1), {"still_picture"}),
        "still.gif": (_video(1, codec="gif", pix_fmt="rgb8"), {"still_picture"}),
        "still.webp": (_video(1, codec="libwebp"), {"still_picture"}),
        "still.apng": (_video(1, codec="apng", pix_fmt="rgb24"), {"still_picture"}),
        "jpeg.mp4": (_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(99)), {"still_picture"}),
        "heic.mp4": (_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"), {"truncated"}),
        "moving.webp": (_video(codec="libwebp_anim"), {"animation"}),
        "cover_art.mp4": (_cover_art, {"cover_art"}),
        "cover_art.m4a": (_cover_art, {"cover_art"}),
    },
    "animations": {
        "moving.gif": (_video(codec="gif", pix_fmt="rgb8"), _OK),
        "moving.apng": (_video(codec="apng", pix_fmt="rgb24"), _OK),
        "moving.avif": (_video(size=(64, 64), **_AV1), _OK),
    },
    "no video": {
        "empty.mp4": (Path.touch, {"empty"}),
        "one_byte.mp4": (_bytes(b"x"), {"not_a_video"}),
        "text.mp4": (_bytes(b"not a video\n" * 99), {"not_a_video"}),
        "html.mp4": (_bytes(b"<html>404</html>"), {"not_a_video"}),
        "zeros.mp4": (_bytes(bytes(100_000)), {"not_a_video"}),
        "sparse.mp4": (_sparse(), {"not_a_video"}),
        "noise.mp4": (_bytes(random.Random(0).randbytes(100_000)), NOT_OPENED),
        "sound.mp4": (write_silence, {"no_video"}),
        "wav.mp4": (_bytes(b"RIFF\x24\0\0\0WAVEfmt "), _NOT_A_VIDEO),
        "no_frames.mp4": (_video(0, codec="mpeg4"), {"no_video"}),
        "no_frames.avi": (_video(0, codec="mpeg4"), {"no_video"}),
        "ftyp_alone.mp4": (_bytes(b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2"), {"truncated"}),
        "zip.mp4": (_bytes(b"PK\x03\x04" + bytes(500)), {"not_a_video"}),
        "gzip.mp4": (_bytes(b"\x1f\x8b\x08" + bytes(500)), {"not_a_video"}),
        "elf.mp4": (lambda path: path.write_bytes(Path("/bin/true").read_bytes()), NOT_OPENED),
        "png.mp4": (_bytes(b"\x89PNG\r\n\x1a\n" + bytes(999)), {"still_picture"}),
        "huge_box.mp4": (_bytes(b"\0\0\0\x01moov\x7f" + b"\xff" * 7 + bytes(99)), NOT_OPENED),
        "nested_boxes.mp4": (
            _bytes(b"\0\0\0\x18ftypisom\0\0\x02\0isomiso2" + b"\0\x0f\xff\xffmoov" * 50_000),
            NOT_OPENED,
        ),
    },
    "scripts": {
        **{name: (_bytes(text), {"not_a_video"}) for name, text in _SCRIPTS.items()},
        "image%03d.mp4": (_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF\0" + bytes(99)), {"still_picture"}),
    },
    "no files": {
        "folder.mp4": (Path.mkdir, {"bad_row"}),
        "fifo.mp4": (os.mkfifo, {"not_a_file"}),
        "socket.mp4": (_socket, {"not_a_file"}),
        "device.mp4": (lambda path: path.symlink_to("/dev/zero"), {"not_a_file"}),
        "dangling.mp4": (lambda path: path.symlink_to("nowhere"), {"missing"}),
        "loop.mp4": (lambda path: path.symlink_to("loop.mp4"), {"bad_uri"}),
        "link.mp4": (_link_to_file, _OK),
    },
    "names": {
        name: (_of("index-first.mp4"), _OK)
        for name in ("%03d.mp4", "a:b.mp4", "-i.mp4", "ä b'\"$;`.mp4", "x?y#z.mp4", "no suffix",
                     "pipe:0", "http:x.mp4", "concat:a|b.mp4", "new\nline.mp4", "n" * 250 + ".mp4")
    },
    "wrong suffixes": {
        "vp9_called.mp4": (_of("vp9.webm"), _OK),
        "mp4_called.avi": (_of("index-last.mp4"), _OK),
        "ts_called.mkv": (_of("h264.ts"), _OK),
        "mkv_called.txt": (_of("h264.mkv"), _OK),
    },
    "patched headers": {
        "no_codec.mp4": (_patched(b"stsd", b"zzz1", 16), NOT_OPENED),
        "huge_size.mp4": (_patched(b"stsd", b"\xff" * 4, 44), DAMAGED | _OK),
        "no_size.mp4": (_patched(b"stsd", bytes(4), 44), DAMAGED | _OK),
        "many_samples.mp4": (_patched(b"stsz", b"\xff" * 4, 12), DAMAGED),
        "many_chunks.mp4": (_patched(b"stco", b"\xff" * 4, 8), DAMAGED | _OK),
        "many_times.mp4": (_patched(b"stts", b"\xff" * 4, 8), DAMAGED),
        "long_frames.mp4": (_patched(b"stts", b"\x7f" * 4, 16), DAMAGED),
        "no_time_base.mp4": (_patched(b"mdhd", bytes(4), 16), DAMAGED | _OK),
        "no_key_frames.mp4": (_patched(b"stss", b"junk"), DAMAGED | _OK),
        "huge_picture.mov": (
            _patched(b"\xff\xc0", b"\xff" * 4, 5, "mjpeg.mov"), DAMAGED | _OK),
        "large_picture.mov": (
            _patched(b"\xff\xc0", b"\x40\x00" * 2, 5, "mjpeg.mov"), DAMAGED | _OK),
    },
    "cut samples": {
        **{
            f"cut_{share:.0%}.mp4": (_sample_cut(share), {"truncated", "corrupt", "not_a_video"})
            for share in (0.1, 0.5, 0.99)
        },
        "cut_between_packets.mp4": (_between_packets, {"truncated"}),
        "flipped_frames.mp4": (_sample_flipped(2, 100_000, 1_000_000, 200), _BROKEN),
        "flipped_bit.mp4": (_sample_flipped(3, 200_000, 900_000, 1), _BROKEN | _OK),
        "flipped_header.mp4": (_sample_flipped(1, 0, 400, 40), DAMAGED | {TOKENIZED}),
        "lost_frame.mkv": (_lost_frame, {"corrupt"}),
        "lost_frame.webm": (_lost_frame, {"corrupt"}),
        "sparse_tail.mp4": (_sparse(SAMPLE.read_bytes()[:500_000]), DAMAGED),
    },
}  # fmt: skip
