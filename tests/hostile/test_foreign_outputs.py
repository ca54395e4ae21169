"""Outputs and checkpoint folders of strangers: what they name is neither opened nor run.

Canaries: a listener on loopback that must hear nothing, files that must not appear, modules that
must not be imported, and secrets of the reader that must not be printed.
"""

import hashlib
import json
import os
import socketserver
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch

import tokpipe
from tests.audit.outputs import Made, finished
from tests.cli.test_named_outputs import FIRST, OPTIONS, verbs_on
from tokpipe.cli import main
from tokpipe.config.job import StoreOptions
from tokpipe.config.tokenizer import CustomConfig
from tokpipe.config.traits import TokenizerTraits
from tokpipe.errors import ConfigError, CorruptOutput, PlanMismatch
from tokpipe.formats.layout import JOB_RECORD
from tokpipe.formats.sealed_json import CHECKSUM, seal
from tokpipe.media.child_process import ChildProcess
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.reader import ClipStream, CodeCache, Output, open_output
from tokpipe.runtime.assemble import JobOutput
from tokpipe.storage import Store
from tokpipe.storage.local_files import TEMPORARY_FOLDER

SECRET, VARIABLE = "canary-e5b1c7", "canary2b"
MODULE = "canary_of_a_stranger"


Change: TypeAlias = "Callable[[World, dict[str, Any]], None]"


class World:
    """A stranger's output, and everything that may reveal that it was obeyed."""

    def __init__(self, root: Path, port: int, heard: list[bytes]) -> None:
        self.root, self.port, self.heard = root, port, heard
        self.server = f"http://127.0.0.1:{port}"
        self.out: Made
        self.secret_file = root / "mine/secret.safetensors"
        self.secret_file.parent.mkdir()
        self.secret_file.write_bytes(SECRET.encode())
        self.ran: list[str] = []
        self.mark = root / "mark"

    @property
    def uri(self) -> str:
        return self.out.store.uri

    def forge(self, change: Change, weights_hash: str = "random, seed 0") -> None:
        """Make an output, change the job in its job.json, and seal it again."""
        self.out = finished(self.root / "theirs", weights_hash=weights_hash)
        record = json.loads(self.out.store.get(JOB_RECORD))
        del record[CHECKSUM]
        change(self, record["job"])
        self.out.store.put(JOB_RECORD, json.dumps(seal(record)).encode())

    def assert_untouched(self) -> None:
        assert self.heard == []
        assert self.ran == []
        assert not self.mark.exists()
        assert not (self.root / "cache").exists()
        assert MODULE not in sys.modules


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    heard: list[bytes] = []

    class Hear(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            heard.append(self.request.recv(4096))

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Hear) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        for name in ("HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, SECRET)
        monkeypatch.setenv("CANARY", VARIABLE)
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        made = World(tmp_path, server.server_address[1], heard)
        folder = tmp_path / "packages"
        folder.mkdir()
        text = f"import pathlib\npathlib.Path({str(made.mark)!r}).touch()\nraise SystemExit(3)\n"
        (folder / f"{MODULE}.py").write_text(text)
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setattr(torch.jit, "load", lambda *_, **__: made.ran.append("TorchScript"))
        yield made
        server.shutdown()


def with_weights(uri: str, **options: Any) -> Change:
    """Name weights, and storage options that lead a client elsewhere."""

    def change(world: World, job: dict[str, Any]) -> None:
        known = {"server": world.server, "root": str(world.root), "port": world.port}
        text = json.dumps([uri, options])
        for name, value in known.items():
            text = text.replace(f"<{name}>", str(value))
        job["tokenizer"]["weights"], found = json.loads(text)
        job["storage"] = {"options": found, "deadline_s": 1.0}

    return change


def with_program(**tokenizer: Any) -> Change:
    def change(world: World, job: dict[str, Any]) -> None:
        job["tokenizer"] = {**tokenizer}
        if tokenizer["kind"] == "cosmos_dv":
            path = world.root / "theirs/out/encoder.jit"
            path.write_bytes(b"a program")
            job["tokenizer"] |= {"weights": str(path), "decoder_weights": str(path)}

    return change


DECLARES: dict[str, Any] = {"temporal_stride": 4, "spatial_stride": 8, "codebook_size": 16384}
FORGERIES: dict[str, Change] = {
    "web": with_weights("<server>/w?${CANARY}"),
    "variable in a host": with_weights("http://${CANARY}.localhost:<port>/w"),
    "endpoint of s3": with_weights("s3://b/w", s3={"endpoint_url": "<server>"}),
    "endpoint of a prefix": with_weights("s3://b/w", **{"s3://b": {"endpoint_url": "<server>"}}),
    "endpoint of hf": with_weights("hf://a/b/w", hf={"endpoint": "<server>"}),
    "proxy": with_weights("http://a.invalid/w", http={"proxy": "<server>"}),
    "cache": with_weights(
        "filecache://<server>/w",
        filecache={"target_protocol": "http", "cache_storage": "<root>/cache"},
    ),
    "local file": with_weights("<root>/mine/secret.safetensors"),
    "home": with_weights("~/.bashrc"),
    "sources": lambda world, job: job.update(
        storage={"options": {"s3": {"endpoint_url": world.server}}, "deadline_s": 1.0}
    ),
    "class": with_program(kind="custom", implementation=f"{MODULE}:Model", declares=DECLARES),
    "class of another package": with_program(
        kind="custom", implementation=f"tests.{MODULE}:Model", declares=DECLARES
    ),
    "TorchScript": with_program(kind="cosmos_dv", variant="4x8x8"),
}
HASHES = {
    **dict.fromkeys(("class", "class of another package"), "none"),
    "TorchScript": f"sha256 {hashlib.sha256(b'a program').hexdigest()}",
    "local file": f"sha256 {hashlib.sha256(SECRET.encode()).hexdigest()}",
}
"""Of the weights that a forger wants to be used."""
OUTPUT_VERBS = {
    "decode": ["-o", "<clip>.png"],
    "decode --compare": ["--compare", "-o", "<clip>.png"],
    "report": ["--pairs", "1", "--shards", "1", "-o", "<clip>.html"],
    "audit --sample": ["--sample", "2"],
    "ls": [],
    "inspect": [],
    "status": [],
    "rejected": [],
    "export": ["--to", "memmap", "-o", "<clip>"],
    "clean": ["--dry-run"],
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_no_verb_opens_or_runs_what_a_record_names(
    forgery: str, world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.forge(FORGERIES[forgery], HASHES.get(forgery, "random, seed 0"))
    for verb, options in OUTPUT_VERBS.items():
        words = [word.replace("<clip>", str(world.root / f"made-{verb}")) for word in options]
        main([verb.partition(" ")[0], world.uri, *words])
        printed = "".join(capsys.readouterr())
        world.assert_untouched()
        assert SECRET not in printed, verb
        assert VARIABLE not in printed, verb
        assert "Traceback" not in printed, verb
        if verb in ("decode", "audit --sample") and forgery != "sources":
            assert "--trust-code" in printed or "--trust-uris" in printed, printed


@pytest.mark.parametrize("forgery", ["endpoint of s3", "local file", "class"])
def test_neither_readers_nor_a_resumed_run_obey_a_record(forgery: str, world: World) -> None:
    world.forge(FORGERIES[forgery])
    output = open_output(world.uri)
    assert sum(1 for _ in output.clips()) == output.num_clips
    cache = CodeCache(output, world.root / "codes")
    assert sum(1 for _ in ClipStream(cache)) == output.num_clips
    with suppress(PlanMismatch):  # of the decoders here, perhaps
        JobOutput(world.out.job)
    with pytest.raises(ConfigError, match="--trust-"):
        output.trusted_job()
    world.assert_untouched()


def test_a_report_shows_everything_but_pictures_and_says_why(world: World) -> None:
    world.forge(FORGERIES["class"])
    path = world.root / "report.html"
    assert main(["report", world.uri, "-o", str(path)]) == 0
    page = path.read_text()
    assert "<img" not in page
    assert "pass --trust-code" in page
    for section in ("throughput", "rejected", "codes", "lengths", "provenance"):
        assert f'id="{section}"' in page
    world.assert_untouched()


def test_storage_options_are_those_of_the_caller(world: World) -> None:
    path = world.root / "mine.yaml"
    path.write_text(
        f"storage: {{deadline_s: 3, options: {{s3: {{endpoint_url: '{world.server}'}}}}}}"
    )
    assert main(["status", "s3://b/out", "--storage", str(path)]) == 5
    assert world.heard


def test_files_of_a_training_side_stay_in_its_folders(world: World) -> None:
    world.forge(FORGERIES["local file"])
    output = Output(world.out.store)
    info = output.shards[0]
    cache = CodeCache(output, world.root / "cache of codes")
    for sha256 in ("../../mark", "/mark", "..", "", "A" * 64):
        output.shards = [replace(info, sha256=sha256)]  # type: ignore[assignment]
        with pytest.raises(CorruptOutput, match="its SHA-256 in the manifest is"):
            cache.shard(0)


def test_opening_an_output_deletes_nothing_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    kept = tmp_path / "mine/old"
    kept.touch()
    os.utime(kept, (0, 0))
    (tmp_path / "out").mkdir()
    (tmp_path / f"out/{TEMPORARY_FOLDER}").symlink_to(tmp_path / "mine")
    Store(str(tmp_path / "out"), StoreOptions())
    assert kept.exists()


@pytest.mark.parametrize("verb", verbs_on("output"))
def test_a_file_in_place_of_an_output_is_no_job_unless_its_name_says_so(
    verb: str, world: World, tmp_path: Path
) -> None:
    job = {"output": {"uri": f"{world.server}/${{CANARY}}"}, "storage": {"deadline_s": 1.0}}
    options = [option.format(folder=tmp_path) for option in OPTIONS.get(verb, [])]
    for name in (
        "codes",
        "codes.json",
        "o/manifest.json",
        "o/shards/0.parquet",
        "a.yaml.txt",
        "a.",
    ):
        path = tmp_path / "download" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(job))
        assert main([verb, *FIRST.get(verb, []), str(path), *options]) == 2
        world.assert_untouched()


def test_nothing_is_imported_from_an_output(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.forge(FORGERIES["local file"])
    out = Path(world.uri)
    for folder in (out, out / "shards"):
        for name in ("yaml", "pyarrow", "rich", "av", "numpy", "shtab"):
            path = folder / f"{name}.py"
            path.write_text(f"import pathlib\npathlib.Path({str(world.mark)!r}).touch()\n")
        command = [sys.executable, "-m", "tokpipe.cli", "status", world.uri]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, env=own_path())
        world.assert_untouched()
    monkeypatch.chdir(out)
    ChildProcess(2**32, ["pyav"]).kill()
    world.assert_untouched()


def own_path() -> dict[str, str]:
    """The environment, with an empty part of PYTHONPATH, which means the current folder."""
    return {**os.environ, "PYTHONPATH": f"{Path(tokpipe.__file__).parents[1]}{os.pathsep}"}


@pytest.mark.parametrize(
    ("implementation", "problem", "is_imported"),
    [
        ("package.module:Model", "could not be built with .*SystemExit: 5", True),
        ("package.module:run", "run in package.module is not a class", False),
        ("package.module:missing", "missing in package.module is not a class", False),
        ("package.missing:Model", "cannot be imported: ModuleNotFoundError", False),
        ("package.module.deeper:Model", "cannot be imported: ModuleNotFoundError", False),
        ("lazy:Model", "Model in lazy is not a class", False),
        ("exits:Model", "cannot be imported: SystemExit: 4", False),
        ("builtins:eval", "is <built-in function eval>", False),
        ("__main__:Model", "__main__", False),
    ],
)
def test_only_the_named_module_is_imported_and_only_for_a_class(
    implementation: str,
    problem: str,
    is_imported: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark = tmp_path / "mark"
    touch = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    model = "from torch import nn\nclass Model(nn.Module):\n    encode = len\n"
    model += "    def __init__(self): raise SystemExit(5)\n"
    modules = {
        "package/__init__": touch,
        "package/module": f"{model}def run(): pass\nimport os as missing_too\n",
        "lazy": f"{touch}def __getattr__(name): import other; return other.Model\n",
        "other": touch,
        "exits": "class Model: pass\nraise SystemExit(4)\n",
    }
    for name, text in modules.items():
        path = tmp_path / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    declares = TokenizerTraits(**{**DECLARES, "why_not_streamable": "it is not"})
    config = CustomConfig(kind="custom", implementation=implementation, declares=declares)
    try:
        with pytest.raises(ConfigError, match=problem):
            build_tokenizer(config, None)
    finally:
        for name in modules:
            for part in (name, name.partition("/")[0]):
                sys.modules.pop(part.replace("/", "."), None)
    assert mark.exists() == is_imported
