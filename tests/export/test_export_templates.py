"""Exports of tokens agree in all formats, whoever composes them, and killed ones leave nothing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.export.by_libraries import output_of
from tests.export.export_helpers import LAYOUT, READERS, template_file
from tests.formats.formats_helpers import encoded_clip
from tests.reader.reader_helpers import begin, commit, put_shard
from tokpipe.cli import main
from tokpipe.config.job import StoreOptions
from tokpipe.errors import ConfigError, RuntimeFault
from tokpipe.export import FORMATS, export_output
from tokpipe.reader import ClipStream, CodeCache, Output, TokenSequences, open_output
from tokpipe.reader.compose import Template
from tokpipe.storage import Store

NUM_SHARDS = 5


def written(folder: Path) -> Output:
    """An output on disk, with shards of two grids."""
    store = Store(str(folder), StoreOptions())
    begin(store, rows=range(3 * NUM_SHARDS))
    for seq in range(NUM_SHARDS):
        grid, rows = [(2, 3), (4, 4)][seq % 2], range(3 * seq, 3 * seq + 3)
        clips = [encoded_clip(row, [5, 1 + row % 4], grid) for row in rows]
        commit(store, seq, put_shard(store, f"p-{seq}-a", clips))
    return open_output(str(folder))


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}


def test_every_format_is_read() -> None:
    assert READERS.keys() == FORMATS.keys()


@pytest.mark.parametrize("name", FORMATS)
def test_all_formats_have_the_tokens_of_the_template(name: str, tmp_path: Path) -> None:
    template = Template.load(template_file(tmp_path))
    output = output_of([(2, 3), (1, 300)])
    done = export_output(output, name, tmp_path / "export", template=template)
    found = READERS[name](tmp_path / "export")
    assert len(found) == output.num_clips == done.num_clips
    for clip, arrays in zip(output.clips(), found, strict=True):
        values = {"caption": f"caption {clip.plan_row}", "fps": 8.0}
        document = template.compose(clip.codes, values)
        assert set(arrays) == (
            {"tokens"} if name == "megatron" else {"tokens", "loss", "positions"}
        )
        for field, array in arrays.items():
            np.testing.assert_array_equal(array, getattr(document, field))
        parsed = template.parse(arrays["tokens"])
        np.testing.assert_array_equal(parsed.codes, clip.codes)
        assert parsed.values == values
    about = json.loads((tmp_path / "export/metadata.json").read_text())
    assert about["num_tokens"] == sum(len(arrays["tokens"]) for arrays in found)
    assert done.num_tokens == about["num_tokens"]
    assert f"{output.num_codes:,} codes, {done.num_tokens:,} tokens, " in next(done.lines())
    assert (about["template"], about["first_code"]) == (LAYOUT, 300)
    assert about["template_digest"] == template.digest
    assert about["vocab_size"] == template.vocabulary.size
    assert about["special"] == template.vocabulary.special
    assert about["token_dtype"] == "uint16"
    assert about["fingerprint"] == output.fingerprint


def test_megatron_without_a_template_has_the_tokens_of_sequences(tmp_path: Path) -> None:
    output = output_of([(2, 3), (4, 4)])
    export_output(output, "megatron", tmp_path / "export")
    tokens = np.concatenate([one["tokens"] for one in READERS["megatron"](tmp_path / "export")])
    assert len(tokens) == output.num_codes + output.num_clips
    about = json.loads((tmp_path / "export/metadata.json").read_text())
    assert about["special"] == {"separator": 8192, "padding": 8193}
    stream = ClipStream(CodeCache(output, tmp_path / "cache", allow_partial=True), shuffle=False)
    sequences = TokenSequences(stream, len(tokens))
    np.testing.assert_array_equal(next(iter(sequences))["tokens"], tokens)


@pytest.mark.parametrize(
    ("codebook_size", "dtype", "code"), [(65_534, "uint16", 8), (65_535, "int32", 4)]
)
def test_megatron_tokens_have_the_smallest_dtype(
    codebook_size: int, dtype: str, code: int, tmp_path: Path
) -> None:
    export_output(output_of([(2, 3)], codebook_size), "megatron", tmp_path / "export")
    about = json.loads((tmp_path / "export/metadata.json").read_text())
    assert about["vocab_size"] == codebook_size + 2
    assert about["token_dtype"] == dtype
    assert (tmp_path / "export/tokens.idx").read_bytes()[17] == code


@pytest.mark.parametrize("name", FORMATS)
def test_workers_change_no_byte(name: str, tmp_path: Path) -> None:
    output = written(tmp_path / "out")
    template = Template.load(template_file(tmp_path))
    for workers in (1, 2):
        folder = tmp_path / f"export-{workers}"
        export_output(output, name, folder, template=template, num_workers=workers)
    assert files_in(tmp_path / "export-2") == files_in(tmp_path / "export-1")


def test_more_workers_than_shards_change_no_byte(tmp_path: Path) -> None:
    output = written(tmp_path / "out")
    for workers in (1, NUM_SHARDS + 2):
        export_output(output, "mds", tmp_path / f"export-{workers}", num_workers=workers)
    assert files_in(tmp_path / f"export-{NUM_SHARDS + 2}") == files_in(tmp_path / "export-1")


def test_an_error_of_a_worker_is_that_of_the_export(tmp_path: Path) -> None:
    template = Template.load(
        template_file(tmp_path, "{bos}{title}{bov}{frames:{rows:{row}{eol}}{eof}}")
    )
    output = written(tmp_path / "out")
    for workers in (1, 2):
        with pytest.raises(ConfigError, match=r"the template needs title .* found None"):
            export_output(
                output, "mds", tmp_path / "export", template=template, num_workers=workers
            )
    assert not (tmp_path / "export").exists()


def test_codes_must_fit_the_template(tmp_path: Path) -> None:
    template = Template.load(template_file(tmp_path, codebook_size=4096))
    with pytest.raises(ConfigError, match=r"for codebooks of \[4096\] codes"):
        export_output(output_of([(4, 4)]), "mds", tmp_path / "export", template=template)


def running(group: int) -> list[str]:
    """Return the processes of a group, without those that only wait for their parent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if state != "Z" and int(its_group) == group:
                found.append(path.parent.name)
    return found


ENDLESS = """
import sys, time
from pathlib import Path

from tokpipe.cli import main
from tokpipe.reader.output import Output

fetched = Output._verified_bytes


def fetched_late(self, info):
    while info.key == "shards/{last}.parquet" and not Path("go").exists():
        time.sleep(0.05)
    return fetched(self, info)


Output._verified_bytes = fetched_late
if __name__ == "__main__":
    sys.exit(main())
"""
"""An export that waits for its last shard, in this process or in a worker."""


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def endless(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """An export in progress, in a group of its own."""
    written(tmp_path / "out")
    (tmp_path / "endless.py").write_text(ENDLESS.replace("{last}", f"p-{NUM_SHARDS - 1}-a"))
    words = [sys.executable, "endless.py", "export", "out", "--to", "webdataset", "-o", "export"]
    process = subprocess.Popen(
        [*words, "--workers", str(request.param)], cwd=tmp_path, start_new_session=True,
        stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    with process:
        while not (tmp_path / "export.partial/000000.tar").exists():
            assert process.poll() is None, process.communicate()[1]
        yield process
        process.kill()
    (tmp_path / "go").touch()
    while running(process.pid):
        time.sleep(0.05)
    done = export_output(open_output(str(tmp_path / "out")), "webdataset", tmp_path / "export")
    assert done.num_clips == 3 * NUM_SHARDS  # replaces .partial
    assert not (tmp_path / "export.partial").exists()


def test_a_killed_export_leaves_only_a_partial_folder_and_no_worker(
    endless: subprocess.Popen[str], tmp_path: Path
) -> None:
    endless.kill()
    endless.wait()
    assert not (tmp_path / "export").exists()
    assert (tmp_path / "export.partial").exists()


@pytest.mark.parametrize("endless", [2], indirect=True)
def test_a_killed_worker_ends_the_export(endless: subprocess.Popen[str], tmp_path: Path) -> None:
    children = Path(f"/proc/{endless.pid}/task/{endless.pid}/children").read_text().split()
    for child in children:
        if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    assert endless.wait() == RuntimeFault.exit_code
    assert "export: a worker was killed" in endless.communicate()[1]
    assert not (tmp_path / "export").exists()


def test_the_command_takes_a_template(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(tmp_path / "out")
    path = template_file(tmp_path)
    words = ["export", str(tmp_path / "out"), "--to", "megatron", "-o", str(tmp_path / "export")]
    assert main([*words, "--template", str(path), "--workers", "2", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    about = json.loads((tmp_path / "export/metadata.json").read_text())
    assert done["num_clips"] == 3 * NUM_SHARDS
    assert about["template"] == LAYOUT
    again = ["export", str(tmp_path / "out"), "--to", "mds", "-o", str(tmp_path / "other")]
    assert main([*again, "--template", str(tmp_path / "none.yaml")]) == ConfigError.exit_code
    assert "none.yaml: cannot be read as a template file" in capsys.readouterr().err
