"""How many chunks a GPU holds at a time, and what is said of those that fit no GPU."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.jobs import files, write_job
from tokpipe.config import JobConfig, load_job
from tokpipe.errors import ConfigError
from tokpipe.stages.fit import CARDS, GB, SHOWN, EncoderMemory

PUBLISHED: dict[str, Any] = {
    "encoder": {"ch": 128, "z_channels": 6},
    "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 5, 5, 5]},
}
CUSTOM: dict[str, Any] = {
    "kind": "custom",
    "implementation": "some_package:Tokenizer",
    "declares": {"temporal_stride": 4, "spatial_stride": 8, "codebook_size": 8},
}
LARGE = [1080, 1920]


def job_of(folder: Path, size: list[int], **changes: Any) -> JobConfig:
    """A job with the published encoder, 17 frames, in bfloat16, unless changed."""
    settings: dict[str, Any] = {
        "tokenizer": PUBLISHED,
        "frames": {"size": size},
        "sampling": {"max_clip_frames": 17},
        "chunking": {"chunk_frames": 17},
        **changes,
    }
    settings["encode"] = {"device": "cuda", "dtype": "bfloat16", **settings.get("encode", {})}
    return load_job(write_job(folder / "job.yaml", files(folder), str(folder / "out"), **settings))


def batch(job: JobConfig, **gb: float) -> int:
    return EncoderMemory(job).batch_chunks({name: size * GB for name, size in gb.items()})[0]


@pytest.mark.parametrize(
    ("size", "rows"),
    [([256, 256], [8, 8, 8, 8, 8]), ([480, 848], [2, 2, 4, 4, 8]), ([720, 1280], [1, 1, 2, 2, 4])],
)
def test_auto_is_the_largest_batch_that_leaves_a_fifth_of_the_card(
    size: list[int], rows: list[int], tmp_path: Path
) -> None:
    job = job_of(tmp_path, size)
    memory = EncoderMemory(job)
    assert [batch(job, **{name: CARDS[name]}) for name in SHOWN] == rows
    (found,) = memory.by_size()
    assert list(found["batch_chunks"].values()) == rows
    assert found["text"].endswith(", ".join(f"{n} {r}" for n, r in zip(SHOWN, rows, strict=True)))
    assert batch(job, H200=141, L4=24) == rows[0], "the smallest card decides"


def test_half_a_card_holds_half(tmp_path: Path) -> None:
    runtime = {"encode": {"gpus": 0.5}}
    assert batch(job_of(tmp_path, [256, 256], runtime=runtime), L4=24) == 4
    assert batch(job_of(tmp_path, [256, 256], runtime={"encode": {"gpus": 2}}), L4=24) == 8


def test_streams_are_encoded_alone(tmp_path: Path) -> None:
    tokenizer, chunking = {**PUBLISHED, "norm": "frame"}, {"policy": "streaming"}
    job = job_of(tmp_path, [256, 256], tokenizer=tokenizer, chunking=chunking)
    assert (batch(job, H200=141), batch(job)) == (1, 1)


def test_what_fits_no_card_names_what_would_and_that_does(tmp_path: Path) -> None:
    job = job_of(tmp_path, LARGE)
    with pytest.raises(ConfigError, match=r"46\.9 GB of a GPU's memory, .* 24\.0 GB \(L4\)") as no:
        batch(job, L4=24, H100=80)
    assert "accelerator_type" in str(no.value)
    smaller = [752, 1336]
    assert f"Use chunks of 17x{smaller[0]}x{smaller[1]}, or only GPUs" in str(no.value)
    assert batch(job_of(tmp_path, smaller), L4=24) == 1
    with pytest.raises(ConfigError):
        batch(job_of(tmp_path, [760, 1352]), L4=24)
    (found,) = EncoderMemory(job).by_size()
    assert "L4 none, but chunks of 17x752x1336, A100-40G none" in found["text"]
    assert list(found["batch_chunks"].values())[:3] == [0, 0, 1]


def test_a_number_that_is_too_large_names_the_one_that_is_not(tmp_path: Path) -> None:
    job = job_of(tmp_path, [480, 848], encode={"batch_chunks": 8})
    with pytest.raises(ConfigError, match=r"8 at a time, .* Use encode\.batch_chunks: 2, or"):
        batch(job, L4=24)
    assert batch(job, H200=141) == 8
    assert batch(job_of(tmp_path, [256, 256], encode={"batch_chunks": 3}), L4=24) == 3


def test_the_largest_bucket_decides(tmp_path: Path) -> None:
    buckets = {"buckets": [[256, 256], [720, 1280]]}
    job = job_of(tmp_path, [], frames=buckets)
    rows, why = EncoderMemory(job).batch_chunks({"L4": 24 * GB})
    assert (rows, why) == (1, "chunks of 17x720x1280 in bfloat16 take 21.0 of 24.0 GB (L4)")
    assert [one["shape"] for one in EncoderMemory(job).by_size()] == [
        (17, 256, 256),
        (17, 720, 1280),
    ]


@pytest.mark.parametrize("given", ["auto", 2])
def test_what_cannot_be_predicted_is_said_and_not_rejected(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, card, encode = 4 if given == "auto" else given, {"L4": 24 * GB}, {"batch_chunks": given}
    custom = EncoderMemory(job_of(tmp_path, LARGE, tokenizer=CUSTOM, encode=encode))
    assert not list(custom.by_size())
    assert custom.batch_chunks(card) == (
        rows,
        "memory was not predicted: a tokenizer of kind custom is a program",
    )
    job = job_of(tmp_path, LARGE, encode=encode)
    found, why = EncoderMemory(job).batch_chunks({})
    assert (found, re.findall("no live node", why)) == (rows, ["no live node"])
    monkeypatch.setitem(sys.modules, "torch", None)
    assert EncoderMemory(job).batch_chunks(card)[0] == rows
    assert "torch" in EncoderMemory(job).why_not


def table(folder: Path) -> Iterator[str]:
    """The rows of the page, for the published encoder."""
    buckets = {"buckets": [[256, 256], [192, 336], [480, 848], [720, 1280], [1080, 1920]]}
    for found in EncoderMemory(job_of(folder, [], frames=buckets)).by_size():
        _, height, width = found["shape"]
        rows = " | ".join(str(one or "none") for one in found["batch_chunks"].values())
        yield f"| {height}x{width} | {found['size_bytes'] / GB:.1f} | {rows} |"


def test_the_page_has_these_figures(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs/clusters.md"
    assert "\n".join(table(tmp_path)) in page.read_text()
