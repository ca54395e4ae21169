"""Runs docs/reading.md block by block over shards of every encoding, and a leftover."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.formats.formats_helpers import clip_ref, encoded_clip
from tests.pages import Block, blocks_of
from tests.reader.reader_encodings import ENCODINGS, encoding_of, write_output
from tests.reader.reader_helpers import begin, commit, ids, put_shard
from tokpipe.config.job import StoreOptions
from tokpipe.reader import Output, open_output
from tokpipe.storage import Store
from tokpipe.types import Rejected

BLOCKS = [block for block in blocks_of("docs/reading.md") if block.language == "python"]
FIRST_OF_TOOLS = next(n for n, block in enumerate(BLOCKS) if '"manifest"' in block.code)
TRAINING, TOOLS = BLOCKS[:FIRST_OF_TOOLS], BLOCKS[FIRST_OF_TOOLS:]

pytestmark = [
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # by torchdata
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # on few cores
]


def run(block: Block, names: dict[str, Any]) -> None:
    exec(compile(block.code, str(block), "exec"), names)


@pytest.fixture(params=[8192, 262_144])
def output(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Output:
    write_output(tmp_path / "out/demo", request.param)
    monkeypatch.chdir(tmp_path)
    return open_output("out/demo")


def assert_same(rows: Iterable[Mapping[str, Any]], output: Output, grid: Any) -> None:
    """Check that rows are the chunks that tokpipe's reader returns, each once."""
    wanted = {
        (clip.clip_id, index): chunk.codes
        for clip in output.clips()
        for index, chunk in enumerate(clip.chunks)
    }
    for row in rows:
        codes = wanted.pop((str(row["clip_id"]), int(row["chunk_index"])))
        np.testing.assert_array_equal(grid(row), codes)
    assert not wanted


def of_arrays(arrays: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for values in zip(*arrays.values(), strict=True):
        yield dict(zip(arrays, values, strict=True))


def test_shards_have_every_encoding(tmp_path: Path) -> None:
    write_output(tmp_path / "out")
    shards = [Path(info.uri) for info in open_output(str(tmp_path / "out")).shards]
    assert tuple(encoding_of(pq.ParquetFile(path)) for path in shards) == ENCODINGS
    assert len([*shards[0].parent.iterdir()]) == len(shards) + 1, "and a leftover"


def test_the_training_blocks_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("demo", "web"):
        write_output(tmp_path / "out" / name)
    for index in range(2):
        part = Store(str(tmp_path / f"out/part-{index}"), StoreOptions())
        begin(part, rows=range(14))
        clips = [encoded_clip(row) for row in range(index, 14, 2)]
        others = [clip_ref(row) for row in range(1 - index, 14, 2)]
        rejected = [Rejected(ref, "decode", "no_video", "message") for ref in others]
        commit(part, 0, put_shard(part, "s", clips), rejected=rejected)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in TRAINING:
        run(block, names)
    assert names["clip"].clip_id == names["output"].clip(names["clip"].clip_id).clip_id
    assert len(names["first"]) == 6
    assert names["mix"].clips_per_epoch == [17, 7]
    assert len({*ids(names["together"])}) == names["parts"].num_clips == 14


def by_tool() -> dict[str, Block]:
    tools = ("pyarrow", "duckdb", "polars", "datasets", "ray")
    found = {
        tool: block
        for block in TOOLS
        for tool in tools
        if re.search(rf"^(import|from) {tool}\b", block.code, re.MULTILINE)
    }
    assert set(found) == set(tools), "a tool has no snippet"
    return found


def common(output: Output) -> dict[str, Any]:
    """Run the blocks that the snippets share: the list of shards, and ``grid``."""
    names: dict[str, Any] = {}
    for block in TOOLS:
        if block not in by_tool().values():
            run(block, names)
    assert names["shards"] == [str(Path(info.uri).resolve()) for info in output.shards]
    return names


@pytest.mark.parametrize("tool", ["pyarrow", "duckdb", "polars", "datasets"])
def test_other_tools_read_the_same_codes(
    tool: str, output: Output, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = common(output)
    run(by_tool()[tool], names)
    rows: dict[str, Callable[[], Any]] = {
        "pyarrow": lambda: names["table"].to_pylist(),
        "duckdb": lambda: of_arrays(names["arrays"]),
        "polars": lambda: names["frame"].to_dicts(),
        "datasets": lambda: names["dataset"],
    }
    assert_same(rows[tool](), output, names["grid"])
    assert tool == "datasets" or names["flat"].dtype == output.tokenizer.code_dtype


@pytest.mark.ray
@pytest.mark.parametrize("output", [8192], indirect=True)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by Ray Data
def test_ray_data_reads_the_same_codes(
    output: Output, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    pytest.importorskip("pandas", reason="Ray Data needs it")
    monkeypatch.setenv("RAY_ADDRESS", ray_address)
    names = common(output)
    try:
        run(by_tool()["ray"], names)
        assert_same(names["rows"].iter_rows(), output, names["grid"])
    finally:
        ray.shutdown()
