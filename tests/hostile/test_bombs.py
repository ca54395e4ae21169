"""Records of the wrong shape, and small inputs that stand for gigabytes or hours."""

import asyncio
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from rich.console import Console
from yarl import URL

from tests.audit.outputs import Made, finished
from tests.hostile.bombs import JOBS, OUTPUTS
from tests.hostile.forged_values import VALUES
from tests.hostile.wrong_shapes import KINDS, copied, run, spoil
from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, CorruptOutput, PlanMismatch, TokpipeError
from tokpipe.formats.shard_reader import Chunk
from tokpipe.reader import ClipStream, CodeCache, Output, open_output
from tokpipe.reader.search import source_matcher
from tokpipe.reconstruct.frames import Reconstructor
from tokpipe.runtime.assemble import JobOutput, RetryRejected, Run
from tokpipe.sources.table import guess_columns
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
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return finished(tmp_path_factory.mktemp("valid"))


def read(out: Path) -> tuple[int, str]:
    try:
        for clip in open_output(str(out)).clips():
            assert clip.codes.size
        open_output(str(out)).to_table()
        list(ClipStream(CodeCache(open_output(str(out)), out.parent / "codes", allow_partial=True)))
    except TokpipeError as error:
        return error.exit_code, str(error)
    return 0, ""


def resume(out: Path, job: JobConfig) -> tuple[int, str]:
    """Begin what a run does with an output, up to the first work item, without Ray."""
    moved = job.model_copy(update={"output": job.output.model_copy(update={"uri": str(out)})})
    console = Console(file=io.StringIO())
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tokpipe.runtime.assemble.decoder_versions", lambda *_: {"av": "18.1.0"})
            found = JobOutput(moved)
        assert found.record is not None
        assert found.log_context
        Run(found, console, RetryRejected()).feed.fetch(50)
    except PlanMismatch:
        return 0, ""
    except TokpipeError as error:
        return error.exit_code, str(error)
    return 0, ""


CHEAP: dict[str, list[str]] = {
    "ls": [],
    "audit": [],
    "export": ["--to", "mds", "-o", "TO", "--allow-partial"],
}
EVERY: dict[str, list[str]] = {
    **CHEAP,
    **{verb: [] for verb in ("status", "inspect", "rejected", "clean")},
    "report": ["--trust-code", "--pairs", "1", "-o", "TO.html"],
    "decode": ["--trust-code", "-o", "TO.png"],
    "audit --sample": ["--sample", "1", "--trust-code"],
    **{
        f"export {to}": ["--to", to, "-o", "TO", "--allow-partial"]
        for to in ("memmap", "webdataset", "litdata")
    },
}


def check(out: Path, job: JobConfig, verbs: dict[str, list[str]], said: str) -> set[int]:
    """Check what each verb, the readers and a resume make of an output; return the exit codes."""
    results = {"reader": read(out)}
    for verb, options in verbs.items():
        made = str(out.parent / f"made {verb}")
        words = [word.replace("TO", made) for word in options]
        results[verb] = run(verb.partition(" ")[0], str(out), *words)
    results["resume"] = resume(out, job)  # which writes, so it is the last
    for verb, (code, errors) in results.items():
        # A checkpoint is a shortcut: readers skip a damaged one with a warning. An audit that
        # finds damage prints it as its result.
        is_skipped = "checkpoint" in said or (verb == "audit" and not errors)
        if code == 2 and verb in ("decode", "audit --sample"):  # it has no decoder, nor videos
            continue
        assert code in (0, 8), (said, verb, errors)
        assert is_skipped or len(errors.splitlines()) == (code == 8), (said, verb, errors)
    return {code for code, _ in results.values()}


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_tokpipe_never_writes_is_named_in_one_line(
    made: Made, tmp_path: Path, name: str
) -> None:
    out = copied(Path(made.store.uri), tmp_path / "out")
    VALUES[name](out)
    assert 8 in check(out, made.job, CHEAP, name)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_of_any_shape_is_read_or_one_line_says_why_not(
    made: Made, tmp_path: Path, kind: str, seed: int
) -> None:
    out = copied(Path(made.store.uri), tmp_path / "out")
    check(out, made.job, {"ls": [], "audit": []}, spoil(out, kind, seed))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_records_of_any_shape_are_read_or_one_line_says_why_not(
    made: Made, tmp_path: Path, kind: str
) -> None:
    for seed in range(3, 70):
        out = copied(Path(made.store.uri), tmp_path / str(seed) / "out")
        check(out, made.job, EVERY, spoil(out, kind, seed))
        shutil.rmtree(out.parent)


@pytest.mark.parametrize("values", [{"epoch": "1"}, {"taken": 10**13}, {"start": [1.0]}, {}])
def test_a_forged_state_of_a_reader_is_rejected(
    made: Made, tmp_path: Path, values: dict[str, Any]
) -> None:
    reader = iter(ClipStream(CodeCache(Output(made.store), tmp_path)))
    state = reader.state_dict() | values
    if not values:
        reader.load_state_dict(state)
        return
    with pytest.raises(ConfigError, match="the state is damaged"):
        reader.load_state_dict(state)


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
