"""Records of the wrong shape, and small inputs that stand for gigabytes or hours."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from yarl import URL

from tests.audit.outputs import finished
from tests.hostile.bombs import JOBS, OUTPUTS
from tests.hostile.wrong_shapes import KINDS, copied, run, spoil
from tokpipe.errors import CorruptOutput, TokpipeError
from tokpipe.formats.shard_reader import Chunk
from tokpipe.reader import open_output
from tokpipe.reader.search import source_matcher
from tokpipe.reconstruct.frames import Reconstructor
from tokpipe.sources.guess import guess_columns
from tokpipe.storage.gate import _Gate
from tokpipe.telemetry.redact import redact


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with little memory made of each bomb."""
    command = [sys.executable, "-m", "tests.hostile.bombs", str(tmp_path_factory.mktemp("bombs"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", [*JOBS, *OUTPUTS])
def test_a_bomb_is_found_before_memory_is_spent(opened: dict[str, Any], name: str) -> None:
    code, errors = opened[name]
    assert (code, len(errors.splitlines())) == (2 if name in JOBS else 8, 1), errors


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(finished(tmp_path_factory.mktemp("valid")).store.uri)


def read(out: Path) -> tuple[int, str]:
    try:
        for clip in open_output(str(out)).clips():
            assert clip.codes.size
        open_output(str(out)).to_table()
    except TokpipeError as error:
        return error.exit_code, str(error)
    return 0, ""


def check_spoiled(valid: Path, tmp_path: Path, kind: str, seed: int, verbs: list[str]) -> None:
    out = copied(valid, tmp_path / "out")
    said = spoil(out, kind, seed)
    results = {verb: run(verb, str(out)) for verb in verbs} | {"reader": read(out)}
    for verb, (code, errors) in results.items():
        # A checkpoint is a shortcut: readers skip a damaged one with a warning. An audit that
        # finds damage prints it as its result.
        is_skipped = kind == "checkpoint" or (verb == "audit" and not errors)
        assert code in (0, 8), (said, verb, errors)
        assert is_skipped or len(errors.splitlines()) == (code == 8), (said, verb, errors)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_any_shape_is_read_or_one_line_says_why_not(
    valid: Path, tmp_path: Path, kind: str, seed: int
) -> None:
    check_spoiled(valid, tmp_path, kind, seed, ["ls", "audit"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_records_of_any_shape_are_read_or_one_line_says_why_not(
    valid: Path, tmp_path: Path, kind: str
) -> None:
    verbs = ["status", "ls", "inspect", "rejected", "audit", "clean"]
    for seed in range(3, 70):
        check_spoiled(valid, tmp_path, kind, seed, verbs)


@pytest.mark.parametrize("change", [{"n_context_frames": 9}, {"n_frames": 9}, {"side": 30_000}])
def test_no_chunk_is_decoded_to_more_than_a_job_encodes(change: dict[str, int]) -> None:
    side = change.get("side", 2)
    codes = np.broadcast_to(np.uint16(0), (1, side, side))
    fields: Any = dict.fromkeys(Chunk.__slots__, 0) | {"n_frames": 1} | change
    fields |= {"clip_id": "a", "codes": codes}
    fields.pop("side", None)
    decoder: Any = object.__new__(Reconstructor)
    decoder.policy, decoder.device = "independent", "cpu"
    decoder.tokenizer = SimpleNamespace(
        traits=SimpleNamespace(temporal_stride=4, spatial_stride=8),
        decode=lambda codes: torch.zeros(1, 1, 16, 16, 3, dtype=torch.uint8),
    )
    with pytest.raises(CorruptOutput, match="clip a is damaged"):
        list(decoder.frames([Chunk(**fields)]))


@pytest.mark.parametrize("text", ["a" * 200_000 + "://=", "?" + "token" * 20_000 + "!://"])
def test_long_foreign_text_is_masked_in_linear_time(text: str) -> None:
    assert redact(text, {}) == text


MARKS = "a" + "\u0301\u0323" * 500_000  # Which Unicode sorts


async def is_below(prefix: str, url: str) -> bool:
    return _Gate([prefix])._is_below(URL(url))


def test_long_foreign_names_are_compared_in_linear_time() -> None:
    assert not source_matcher("a*b")(MARKS)
    assert asyncio.run(is_below("http://h", "http://h/a"))
    assert not asyncio.run(is_below("http://h", f"http://h/{MARKS}"))
    rows = pa.record_batch({"url": [".mp4?" * 200_000 + "\n\n"]})
    assert guess_columns(rows, "s3://bucket")["uri_column"] == "url"
