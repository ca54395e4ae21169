"""Damaged and lying pictures, alone and in a folder with videos: decoded, or a reason for each."""

import functools
import itertools
import random
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from tests.end_to_end.jobs import write_job
from tests.hostile.corpus import DAMAGE, TOKENIZED, VideoCase, few_of_each, named_cases, video_cases
from tests.hostile.run import SETTINGS, Report, decode_corpus
from tests.pictures import drawn, profile, with_chunk, with_size, write_animation, write_picture

EXTENSIONS = ("jpg", "png", "webp", "avif", "gif", "moving.gif", "moving.png", "moving.webp")
ALLOWED = frozenset(
    {TOKENIZED, "corrupt", "too_many_pixels", "too_large", "unsupported"}
    # Under ``both``, an animation is a video, and so is what no longer looks like a picture.
    | {"animation", "not_a_video", "truncated", "no_video", "still_picture", "too_short"}
)
NUM_GENERATED = 240


@functools.cache
def whole(extension: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{extension}"
        if extension.startswith("moving."):
            return write_animation(path).read_bytes()
        noise = np.random.default_rng(0).integers(0, 64, (48, 64, 3), dtype=np.uint8)
        icc = profile("RGB ", 2.2)
        return write_picture(path, drawn() // 2 + noise, icc_profile=icc).read_bytes()


def damaged(number: int, extension: str, damage: str) -> VideoCase:
    def make(path: Path) -> None:
        data = bytearray(whole(extension))
        DAMAGE[damage](data, random.Random(f"picture {number}"))
        path.write_bytes(data)

    name = f"p{number:04} {damage}.{extension}".replace(" ", "_")
    return VideoCase(name, damage, make, ALLOWED)


def lying() -> list[VideoCase]:
    """Headers that claim much, and chunks that hold nothing of the kind."""
    png = whole("png")
    files = {
        "sides.png": with_size(png, 2**31 - 1, 2**31 - 1),
        "wide.png": with_size(png, 1, 2**31 - 1),
        "none.png": with_size(png, 0, 0),
        "taller.png": with_size(png, 4_800, 64),
        "sides.gif": with_size(whole("gif"), 65_535, 65_535),
        "sides.moving.gif": with_size(whole("moving.gif"), 65_535, 65_535),
        "sides.jpg": with_size(whole("jpg"), 65_500, 65_500),
        "taller.jpg": with_size(whole("jpg"), 4_800, 64),
        "profile.png": with_chunk(png, b"iCCP", b"x\0\0" + bytes(99)),
        "exif.png": with_chunk(png, b"eXIf", b"MM\0\x2a\0\0\0\x08\xff\xff" + bytes(range(99))),
        "text.png": with_chunk(png, b"zTXt", b"x\0\0" + bytes(99)),
        "palette.png": with_chunk(png, b"PLTE", bytes(2)),
        "control.png": with_chunk(png, b"acTL", b"\xff" * 8),
        "head.jpg": b"\xff\xd8\xff",
        "head.png": png[:8],
        "head.gif": b"GIF89a",
        "head.webp": b"RIFF\xff\xff\xff\xffWEBP",
        "head.avif": b"\0\0\0\x18ftypavif\0\0\0\0mif1avif",
    }
    return [
        VideoCase(name, "lying headers", lambda path, data=data: path.write_bytes(data), ALLOWED)  # type: ignore[misc]
        for name, data in files.items()
    ]


def test_every_picture_is_decoded_or_rejected_with_a_reason(tmp_path: Path) -> None:
    kinds = list(itertools.product(EXTENSIONS, (name for name in DAMAGE if name != "spliced")))
    random.Random(0).shuffle(kinds)
    order = zip(range(NUM_GENERATED), itertools.cycle(kinds), strict=False)
    cases = [*lying(), *(damaged(number, *kind) for number, kind in order)]
    videos = few_of_each(video_cases(len(named_cases()), seed=1), 1)
    videos = [one for one in videos if one.family not in ("no files", "no video", "scripts")]
    allowed = {"pictures": frozenset({TOKENIZED, "still_picture"})}
    cases += [
        VideoCase(one.name, one.family, one.make, allowed.get(one.family, one.allowed))
        for one in videos
    ]
    folder = tmp_path / "videos"
    folder.mkdir()
    for case in cases:
        case.make(folder / case.name)
    for media in ("both", "image"):
        source = {"kind": "files", "uri": f"{folder}/*", "media": media}
        job = write_job(tmp_path / f"{media}/job.yaml", source, str(tmp_path / "out"), **SETTINGS)
        report = Report()
        more = ALLOWED | {"not_a_picture"} if media == "image" else frozenset[str]()
        judged = [VideoCase(one.name, one.family, one.make, one.allowed | more) for one in cases]
        decode_corpus(job, judged, report, again_every=7)
        assert not report.violations, "\n".join(report.lines())
        assert report.num_cases == len(cases) > 250
        found = sum(report.outcomes.values(), Counter[str]())
        assert found[TOKENIZED] > 20
        assert found["corrupt"] > 50
