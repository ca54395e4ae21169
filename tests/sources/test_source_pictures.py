"""``media``: which files, members and rows of the three kinds of sources are pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import TypeAdapter, ValidationError

from tests.pictures import drawn, write_animation, write_picture
from tests.sources.reading import OPTIONS, opened, read, tar, uris
from tests.videos import write_video
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.config.sources import Source
from tokpipe.plan import RowSample
from tokpipe.sources import open_sources
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import DecodedClip, EncodedClip, Media

FRAMES = FramesConfig(size=(48, 64), fit="stretch")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, a video, an animation and a text."""
    folder = tmp_path / "mixed"
    write_picture(folder / "a.jpg", drawn())
    write_picture(folder / "deep/B.PNG", drawn(1), format="PNG")
    write_video(folder / "c.mp4", 6)
    write_animation(folder / "d.gif", 5)
    (folder / "e.txt").write_text("text")
    return folder


def names(folder: Path, **config: Any) -> list[str]:
    return [uri.removeprefix(f"{folder}/") for uri in uris(read("files", folder, **config))]


def decoded(kind: str, uri: object, **config: Any) -> dict[str, int | str]:
    """Frames of each row that is decoded, or the reason for rejection, by the end of its name."""
    source = opened(kind, uri, **config)
    sample = RowSample(source, "test", num_items=100, max_rows=100)
    with DecodeStage(SamplingConfig(fps=None), FRAMES, DecodeConfig(), OPTIONS) as stage:
        found = stage.process(sample.items)
    return {
        one.ref.source_uri.rpartition("/")[2]: len(one.frames)
        if isinstance(one, DecodedClip)
        else one.reason
        for one in found
        if not isinstance(one, EncodedClip)
    }


def test_a_folder_is_searched_for_what_the_source_takes(folder: Path) -> None:
    assert names(folder) == ["c.mp4", "d.gif"]
    assert names(folder, media="image") == ["a.jpg", "d.gif", "deep/B.PNG"]
    assert names(folder, media="both") == ["a.jpg", "c.mp4", "d.gif", "deep/B.PNG"]
    source = opened("files", folder, media="image")
    list(source.batches())
    assert source.listing.left_out.counts == {".mp4": 1, ".txt": 1}


def test_two_sources_of_one_folder_count_nothing_of_each_other(folder: Path) -> None:
    (folder / "d.gif").unlink()
    both: list[Any] = [
        TypeAdapter(Source).validate_python({"kind": "files", "uri": str(folder), "media": media})
        for media in ("video", "image")
    ]
    videos, pictures = open_sources(both, OPTIONS)
    for source in (videos, pictures):
        list(source.batches())
    assert videos.listing.left_out.counts | pictures.listing.left_out.counts == {".txt": 1}


def test_files_are_decoded_by_their_content(folder: Path) -> None:
    found = decoded("files", folder, media="both")
    assert found == {"a.jpg": 1, "B.PNG": 1, "c.mp4": 6, "d.gif": 5}
    found = decoded("files", folder, media="both", animation_as_picture=True)
    assert found == {"a.jpg": 1, "B.PNG": 1, "c.mp4": 6, "d.gif": 1}
    assert decoded("files", folder, media="image")["d.gif"] == "animation"
    assert decoded("files", f"{folder}/*.*", media="image")["c.mp4"] == "not_a_picture"
    assert decoded("files", f"{folder}/*.jpg") == {"a.jpg": "still_picture"}


def test_members_of_a_tar_are_pictures_with_their_texts(folder: Path) -> None:
    members = {
        "0.jpg": (folder / "a.jpg").read_bytes(),
        "0.txt": b"a picture",
        "1.mp4": (folder / "c.mp4").read_bytes(),
        "1.txt": b"a video",
    }
    path = folder / "x.tar"
    path.write_bytes(tar(members))
    texts = {media: [row["txt"] for row in read("webdataset", path, media=media)]
             for media in ("video", "image", "both")}  # fmt: skip
    assert texts == {"video": ["a video"], "image": ["a picture"], "both": ["a picture", "a video"]}
    assert decoded("webdataset", path, media="both") == {"x.tar#0.jpg": 1, "x.tar#1.mp4": 6}
    chosen = decoded("webdataset", path, media="both", video_extensions=("jpg",))
    assert chosen == {"x.tar#0.jpg": 1}


def test_rows_of_a_table_name_pictures_or_hold_them(folder: Path) -> None:
    inside = {"bytes": (folder / "deep/B.PNG").read_bytes(), "path": "B.PNG"}
    video = {"bytes": (folder / "c.mp4").read_bytes(), "path": "c.mp4"}
    beside = {"bytes": None, "path": "a.jpg"}
    table = folder / "t.parquet"
    pq.write_table(pa.table({"image": [inside, beside, video], "label": [1, 2, 3]}), table)
    found = decoded("table", table, uri_column="image", media="both")
    assert found == {"t.parquet#image=1": 1, "a.jpg": 1, "t.parquet#image=3": 6}
    found = decoded("table", table, uri_column="image", media="image")
    assert found == {"t.parquet#image=1": 1, "a.jpg": 1, "t.parquet#image=3": "not_a_picture"}
    found = decoded("table", table, uri_column="image")
    assert found["t.parquet#image=1"] == found["a.jpg"] == "still_picture"


def test_items_have_what_their_source_takes(folder: Path) -> None:
    source = opened("files", folder, media="both", animation_as_picture=True)
    (item, *_) = RowSample(source, "test", num_items=9, max_rows=9).items
    assert item.media == Media("both", True)


def test_frames_of_animations_need_pictures() -> None:
    source = {"kind": "files", "uri": "v/", "animation_as_picture": True}
    with pytest.raises(ValidationError, match="set media: image or both"):
        TypeAdapter(Source).validate_python(source)
    for media in ("image", "both"):
        TypeAdapter(Source).validate_python({**source, "media": media})


def test_nothing_but_pictures_says_how_to_take_them(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", np.zeros((8, 8, 3), np.uint8))
    source = opened("files", tmp_path)
    with pytest.raises(Exception, match=r"1 \.jpg \(a\.jpg\).*pictures need media: image or both"):
        list(source.batches())
