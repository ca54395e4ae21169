"""What an output or a table of strangers says is shown as text, and names no file."""

import io
import json
import logging
import os
import stat
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from rich.console import Console

from tests.audit.outputs import made
from tests.formats.formats_helpers import clip_ref, encoded_clip, record
from tests.reader.reader_helpers import put_shard
from tests.runtime.test_progress import SNAPSHOT
from tokpipe.audit.manifest import PlannedClips
from tokpipe.cli import main
from tokpipe.config.job import StoreOptions
from tokpipe.errors import CorruptOutput
from tokpipe.export import FORMATS
from tokpipe.formats.job_record import write_once
from tokpipe.formats.manifest import ManifestEntry, append
from tokpipe.reader import CodeCache, cache_folder, open_output
from tokpipe.runtime import metrics
from tokpipe.runtime.console import say
from tokpipe.runtime.progress import ProgressView
from tokpipe.runtime.submit import Cluster, Submission
from tokpipe.storage import Store
from tokpipe.telemetry.logs import PlainFormatter, driver_log, log_event, mask_others
from tokpipe.types import EncodedClip, Rejected

SECRET = "c4nary-s3cret"
HOSTILE = (
    "https://h/\x1b]8;;http://evil\x07a\x1b[2J\nclean: no defect\x9b31m\x7f\u202egpj\u2028b\u2029"
    f"\u200b[red]c[/red][link=http://evil]d[/link]:smile:\r=cmd|'x'<script>alert(1)</script>"
    f"&sig={SECRET}"
)


def forged(folder: Path, *ids: str) -> str:
    """An output whose strings are hostile wherever they can be, with clips of the given ids."""
    store = Store(str(folder / "out"), StoreOptions())
    plan = {"plan_id": HOSTILE, "num_rows": len(ids) + 1}
    write_once(store, record(num_rows=len(ids) + 1, plan=plan, dataset=HOSTILE))
    clips: list[EncodedClip] = []
    for row, clip_id in enumerate(ids):
        clip = encoded_clip(row)
        ref = replace(clip.ref, clip_id=clip_id, source_uri=HOSTILE)
        clips.append(replace(clip, ref=ref, marks=(HOSTILE,), damage=HOSTILE))
    ref = replace(clip_ref(len(ids)), source_uri=HOSTILE)
    rejected = Rejected(ref, "decode", HOSTILE, HOSTILE, HOSTILE, 2, HOSTILE)
    receipt, time = put_shard(store, "s0", clips), "2026-01-01T00:00:00+00:00"
    assert append(store, ManifestEntry(0, HOSTILE, time, (receipt,), (rejected,)))
    return str(folder / "out")


def assert_plain(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), repr(text)
    assert not any(line.startswith(("clean", "=cmd")) for line in text.splitlines()), text
    assert not {"\u200b", "\u202e", "\U0001f604"} & set(text)
    assert SECRET not in text


VERBS = """ls OUT; ls OUT --json; ls OUT --source nothing; ls OUT --mark x; rejected OUT
rejected OUT --json; rejected OUT --reason x; status OUT; status OUT --json; inspect OUT
inspect OUT --json; audit OUT; audit OUT --json; clean OUT; decode OUT -o FILE.png
decode OUT --clip x -o FILE.png; report OUT -o FILE.html; export OUT --to memmap -o FILE
locate OUT --clip x; locate OUT --source x; locate OUT --source x --trust-uris"""


@pytest.mark.parametrize("words", [one.strip() for one in VERBS.replace("\n", ";").split(";")])
def test_no_verb_prints_what_a_terminal_would_obey(
    words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = forged(tmp_path, clip_ref(0).clip_id)
    main(words.replace("OUT", out).replace("FILE", str(tmp_path / "file")).split())
    printed = capfd.readouterr()
    assert printed.out + printed.err
    assert "Traceback" not in printed.err
    for text in printed:
        assert_plain(text)
    if "--json" in words:
        [json.loads(line) for line in printed.out.splitlines()]
    if (page := tmp_path / "file.html").exists():
        shown = page.read_text().partition("</style>")[2]
        assert "<script>alert" not in shown
        assert_plain(shown.replace("\n", " "))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "clip_id", ["../../x", "/x", "x/../../y", "..\\x", "C:x", "CON", "A" * 32, "a" * 31, "", "a.b"]
)
def test_a_clip_id_that_is_no_hash_names_no_file(name: str, clip_id: str, tmp_path: Path) -> None:
    out = forged(tmp_path, clip_id)
    before = {*tmp_path.rglob("*")}
    assert main(["export", out, "--to", name, "-o", str(tmp_path / "e"), "--allow-partial"]) == 8
    assert {one.parent for one in {*tmp_path.rglob("*")} - before} <= {
        tmp_path,
        tmp_path / "e.partial",
    }


@pytest.mark.parametrize("sha256", ["../../evil", "/evil", ".."])
def test_a_hash_of_a_manifest_names_no_file_outside_the_cache(
    sha256: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = CodeCache(open_output(forged(tmp_path, clip_ref(0).clip_id)), tmp_path / "a/cache")
    monkeypatch.setattr(cache_folder, "_opened", lambda *_: pytest.fail("a file was opened"))
    shards = [replace(cache.output.shards[0], sha256=sha256)]
    monkeypatch.setattr(cache.output, "shards", shards)
    with pytest.raises(CorruptOutput, match="its SHA-256 in the manifest is"):
        cache.shard(0)


def test_only_its_owner_reads_a_plan(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        output = made(tmp_path)
    finally:
        os.umask(mask)
    plan = tmp_path / "out/plan"
    modes = {stat.S_IMODE(one.stat().st_mode) for one in [plan, *plan.rglob("*")] if one.is_dir()}
    assert modes == {0o700}
    assert {stat.S_IMODE(one.stat().st_mode) for one in plan.rglob("*.parquet")} == {0o600}
    assert stat.S_IMODE(Path(output.store.uri_of("job.json")).stat().st_mode) == 0o644


def test_an_audit_compares_masked_sources_with_the_plan() -> None:
    refs = [replace(clip_ref(0), source_uri=uri) for uri in ("https://h/a?sig=***", "https://h/b")]
    planned = pa.table(
        {
            "row_id": [ref.clip_id for ref in refs],
            "source_uri": [f"https://h/a?sig={SECRET}", "https://h/c"],
        }
    )
    whole = [(0, slice(None), pa.array([0, 1]))]
    reader = SimpleNamespace(num_rows=99, by_part=lambda _: whole)
    plan = SimpleNamespace(_cut=(129, None), _reader=reader, _part=lambda _: planned)
    found = list(PlannedClips.mismatches(plan, refs))  # type: ignore[arg-type]
    assert [ref.source_uri for ref, _ in found] == ["https://h/b"]


def test_lines_above_progress_are_plain_on_a_terminal() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, color_system=None)
    say(console, HOSTILE)
    snapshot = replace(SNAPSHOT, rejected={HOSTILE: 2}, waiting_for=HOSTILE)
    with ProgressView(console, interval_s=1.0) as view:
        say(console, HOSTILE)
        view.show(snapshot)
    text = stream.getvalue()
    for own in ("\x1b[?25l", "\x1b[?25h", "\x1b[1A", "\x1b[2K", "\r"):
        text = text.replace(own, "")
    assert_plain(text)
    assert "[red]c[/red]" in text
    assert ":smile:" in text


def test_logs_are_plain_in_json_and_as_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with driver_log(str(tmp_path / "log"), lambda _: None, {}):
        log_event("log", HOSTILE, deep={HOSTILE: [HOSTILE]}, error=ValueError(HOSTILE))
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert_plain(line)
    assert json.loads(line)["message"].startswith("https://h/\x1b]8;;")
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter("%(message)s"))
    try:
        raise ValueError(HOSTILE)
    except ValueError as error:
        handler.handle(logging.makeLogRecord({"msg": HOSTILE}))
        trace = (type(error), ValueError(f"a\x1b[2J&sig={SECRET}"), error.__traceback__)
        handler.handle(logging.makeLogRecord({"msg": "failed", "exc_info": trace}))
    first, rest = stream.getvalue().split("\n", 1)
    assert_plain(first)
    assert_plain(rest)
    mask_others()
    logging.getLogger("some.library").warning("at %s", HOSTILE)
    assert_plain(capsys.readouterr().err)


def test_labels_of_metrics_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Series:
        def __init__(self, *_: Any) -> None: ...

        def set_default_tags(self, _: Any) -> "Series":
            return self

        def inc(self, _: float, tags: dict[str, str]) -> None:
            seen.extend(tags.values())

        set = inc

    monkeypatch.setattr(metrics, "Counter", Series)
    monkeypatch.setattr(metrics, "Gauge", Series)
    run = replace(SNAPSHOT.run, rejected={HOSTILE: 2})
    metrics.JobMetrics("demo", "p").show(replace(SNAPSHOT, run=run))
    assert any("gpj" in one for one in seen)
    for one in seen:
        assert_plain(one)


def test_what_ray_is_told_of_a_job_holds_no_secret() -> None:
    sent: list[dict[str, Any]] = []
    cluster = Cluster.__new__(Cluster)
    cluster.address = "here"
    cluster._client = SimpleNamespace(submit_job=lambda **how: sent.append(how))  # type: ignore[assignment]
    output = SimpleNamespace(uri=f"https://{SECRET}@h/out?jwt={SECRET}")
    job = SimpleNamespace(dataset="demo", output=output)
    package = SimpleNamespace(job=job, write=lambda _: None, variables={}, entrypoint="")
    cluster.submit(package, Submission("name", 0, None))  # type: ignore[arg-type]
    assert SECRET not in str(sent)
