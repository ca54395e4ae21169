"""Puts into files what FFmpeg's muxers cannot write: crops and other boxes, and SEI messages."""

from pathlib import Path

Edges = tuple[int, int, int, int]
"""Left, right, top and bottom: what a crop takes away."""


def crop_matroska(path: Path, edges: Edges, display: tuple[int, int] | None = None) -> None:
    """Add PixelCrop elements to the video track, and the (height, width) to show it in."""
    left, right, top, bottom = edges
    numbers = {0x54CC: left, 0x54DD: right, 0x54BB: top, 0x54AA: bottom}
    if display is not None:
        numbers |= {0x54BA: display[0], 0x54B0: display[1], 0x54B2: 0}
    crops = b"".join(
        key.to_bytes(2, "big") + b"\x82" + value.to_bytes(2, "big")
        for key, value in numbers.items()
    )
    # Segment, Tracks, TrackEntry, Video
    ids = [b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe0"]
    path.write_bytes(_grown(path.read_bytes(), ids, crops))


def _grown(data: bytes, ids: list[bytes], more: bytes) -> bytes:
    """Append to the first element reached by ``ids``; the sizes around it take 8 bytes then."""
    if not ids:
        return data + more
    at = 0
    while True:
        start = at
        at += _length(data[at])
        key, width = data[start:at], _length(data[at])
        size = int.from_bytes(data[at : at + width], "big") - (1 << 7 * width)
        at += width
        inside = data[at : at + size]
        if key == ids[0]:
            inside = _grown(inside, ids[1:], more)
            length = (len(inside) | 1 << 56).to_bytes(8, "big")
            return data[:start] + key + length + inside + data[at + size :]
        at += size


def _length(first: int) -> int:
    return 9 - first.bit_length()


def crop_mp4(path: Path, edges: Edges, size: tuple[int, int]) -> None:
    """Add a clean aperture (clap) to the sample entry of a file whose index is at its end."""
    left, right, top, bottom = edges
    height, width = size
    # Fractions: width, height, and how far the middle is from the middle of the frame.
    middle = left - right, 2, top - bottom, 2
    numbers = [width - left - right, 1, height - top - bottom, 1, *middle]
    content = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    describe_mp4(path, b"avc1", b"clap", content)


def describe_mp4(path: Path, entry: bytes, name: bytes, content: bytes) -> None:
    """Add a box to the sample entry of a file whose index is at its end."""
    box = (8 + len(content)).to_bytes(4, "big") + name + content
    data = bytearray(path.read_bytes())
    at = data.index(b"moov")
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", entry):
        at = data.index(name, at)
        length = int.from_bytes(data[at - 4 : at], "big")
        data[at - 4 : at] = (length + len(box)).to_bytes(4, "big")
    end = at - 4 + length
    path.write_bytes(data[:end] + box + data[end:])


def turn(path: Path, quarters: int, mirrored: bool) -> None:
    """Put a display orientation message before the first slice of an H.264 or HEVC stream."""
    data = path.read_bytes()
    payload = int(f"0{mirrored:b}0{quarters << 14:016b}11000", 2).to_bytes(3, "big")
    # NAL unit header, type and size of the message, and the end of the unit.
    header = b"\x06" if path.suffix == ".h264" else b"\x4e\x01"
    unit = b"\0\0\1" + header + bytes([47, len(payload)]) + payload + b"\x80"
    slices = (b"\0\0\1\x65",) if path.suffix == ".h264" else (b"\0\0\1\x28", b"\0\0\1\x26")
    at = min(data.index(one) for one in slices if one in data)
    path.write_bytes(data[:at] + unit + data[at:])
