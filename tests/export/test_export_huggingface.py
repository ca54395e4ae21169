"""The library datasets loads an export, whole and streaming, without a network."""

import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tests.export.by_libraries import output_of
from tests.export.export_helpers import template_file
from tests.formats.formats_helpers import DictStore, encoded_clip, shard_metadata
from tests.reader.reader_helpers import begin, commit
from tokpipe.export import export_output
from tokpipe.formats.shard import build_shard, receipt_of
from tokpipe.formats.side_table import build_side_table
from tokpipe.reader import Output
from tokpipe.reader.compose import Template


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return lambda **more: datasets.load_dataset(
        str(tmp_path / "export"), split="train", cache_dir=str(tmp_path / "cache"), **more
    )


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("with_template", [False, True], ids=["codes", "template"])
@pytest.mark.parametrize("codebook_size", [8192, 262_144], ids=["uint16", "uint32"])
def test_datasets_loads_it(
    codebook_size: int, with_template: bool, streaming: bool, load: Any, tmp_path: Path
) -> None:
    output = output_of([(2, 3), (4, 4)], codebook_size)
    template = None
    if with_template:
        template = Template.load(template_file(tmp_path, codebook_size=codebook_size))
    export_output(output, "huggingface", tmp_path / "export", template=template)
    rows = list(load(streaming=streaming).with_format("numpy"))
    clips = list(output.clips())
    assert len(rows) == len(clips)
    for row, clip in zip(rows, clips, strict=True):
        caption = f"caption {clip.plan_row}"
        assert (row["clip_id"], row["source_uri"]) == (clip.clip_id, clip.source_uri)
        assert (row["fps"], row["caption"]) == (clip.fps, caption)
        if template is None:
            np.testing.assert_array_equal(row["codes"].reshape(row["shape"]), clip.codes)
            continue
        document = template.compose(clip.codes, {"caption": caption, "fps": 8.0})
        np.testing.assert_array_equal(row["tokens"], document.tokens)
        np.testing.assert_array_equal(row["loss"], document.loss)
        np.testing.assert_array_equal(row["positions"].reshape(-1, 3), document.positions)


def test_the_card_says_what_the_codes_are_and_how_to_load_them(load: Any, tmp_path: Path) -> None:
    output = output_of([(2, 3), (4, 4)])
    export_output(output, "huggingface", tmp_path / "export")
    card = (tmp_path / "export/README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "unknown",
        "size_categories": "n<1K",
        "configs": [{"config_name": "default", "data_files": "data/*.parquet"}],
    }
    spec = output.tokenizer
    for word in ("6 clips", f"{output.num_codes:,} codes", output.fingerprint, spec.weights_hash):
        assert word in text
    (block,) = re.findall(r"^    (rows = .+)$", text, re.MULTILINE)
    names: dict[str, Any] = {"datasets": datasets}
    exec(block.replace("FOLDER", str(tmp_path / "export")), names)
    (expression,) = re.findall(r"Each row has `(.+?)`, codes", text)
    shapes = [eval(expression, {"row": row}).shape for row in names["rows"]]
    assert shapes == [clip.codes.shape for clip in output.clips()]


def test_columns_keep_their_types_and_give_way_to_arrays(tmp_path: Path) -> None:
    clips, store = [encoded_clip(row) for row in range(3)], DictStore()
    carried = pa.table({"codes": ["a", "b", "c"], "score": pa.array([1, None, 3], pa.int8())})
    shard, side_table = build_shard(clips, shard_metadata()), build_side_table(clips, carried)
    receipt = receipt_of("p-0-a", clips, shard, side_table)
    store.put(receipt.shard, shard)
    store.put(receipt.side_table, side_table)
    begin(store, rows=range(3))
    commit(store, 0, receipt)
    export_output(Output(store), "huggingface", tmp_path / "export")
    table = pq.read_table(tmp_path / "export/data/000000.parquet")
    assert table.schema.field("score").type == pa.int8()
    assert table.column("score").to_pylist() == [1, None, 3]
    assert table.column("src_codes").to_pylist() == ["a", "b", "c"]
    assert table.schema.field("codes").type == pa.list_(pa.uint16())
