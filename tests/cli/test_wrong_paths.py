"""No verb answers a wrong path with a traceback: it says what is there, and what to name."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.cli.test_named_outputs import FIRST, Capture, one_line, verbs_on
from tokpipe.cli import main

LONG = "x" * 300
NEEDED = {
    "decode": ["-o", "clip.png"],
    "report": ["-o", "report.html"],
    "export": ["-o", "export", "--to", "memmap"],
    "remove": ["--purge"],
    "locate": ["--source", "x"],
}


@pytest.fixture
def place(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which everything is wrong, except ``out`` and ``jobs``, which are links."""
    for name in ("out", "jobs", "videos"):
        (tmp_path / name).symlink_to(project / name)
    (tmp_path / "nothing_in_it").mkdir()
    (tmp_path / "holds_text").mkdir()
    (tmp_path / "holds_text/notes.txt").write_text("hello")
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    (tmp_path / "broken.yaml").write_text("a: [b\n")
    (tmp_path / "training.yaml").write_text("output: out/run\nphases: []\n")
    (tmp_path / "later.yaml").write_text("output: {uri: out/later}\n")
    (tmp_path / "unset.yaml").write_text("output: {uri: '${NO_SUCH_VARIABLE}/x'}\n")
    (tmp_path / "schemes.yaml").write_text("output: {uri: 's4://bucket/x'}\n")
    (tmp_path / "video.mp4").write_bytes(b"\x00\xff\x80" * 100)
    (tmp_path / "binary.yaml").write_bytes(b"\x00\xff\x80" * 100)
    (tmp_path / "plain.yml").write_text("plain text")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    return tmp_path


WRONG_OUTPUTS = {
    "missing": "has no job.json, so it is not an output",
    "missing/demo": "job has not started. Name the job's output.uri or its job file",
    "jobs/demo": "has no job.json, so it is not an output",
    "missing.yaml": "has no job.json, so it is not an output",
    "nothing_in_it": "has no job.json, so it is not an output",
    "holds_text": "has no job.json, so it is not an output",
    "out": "has no job.json, so it is not an output",
    "jobs": "has no job.json, so it is not an output",
    "video.mp4": "has no job.json, so it is not an output",
    "binary.yaml": "it is not text",
    "empty.yaml": "it holds no keys",
    "list.yaml": "it holds no keys",
    "broken.yaml": "is not valid YAML",
    "holds_text/notes.txt": "is not an output",
    "plain.yml": "is not a job file: it holds no keys",
    "training.yaml": "has no output.uri, so it is not a job file",
    "later.yaml": "has no job.json, so it is not an output",
    "unset.yaml": "NO_SUCH_VARIABLE is not set",
    "schemes.yaml": "s4://",
    "s4://bucket/demo": "Protocol not known: s4",
    "s3://": "names no bucket",
    "s3:///demo": "names no bucket",
    "s3:/bucket/demo": "has no job.json, so it is not an output",
    "http://[bracket/demo": "names no bucket or host",
    "memory://no/such": "has no job.json, so it is not an output",
    "video.mp4/demo": "video.mp4",
    "/dev/null": "is not an output",
    "": "the output is empty text",
    LONG: "File name too long",
    "\udcff": "has no job.json, so it is not an output",
}


@pytest.mark.parametrize("verb", verbs_on("output"))
def test_a_wrong_output_is_explained(verb: str, place: Path, capsys: Capture) -> None:
    before = everything_below(place)
    for named, explanation in WRONG_OUTPUTS.items():
        code, text = answer(capsys, verb, *FIRST.get(verb, []), named, *NEEDED.get(verb, []))
        assert code == 2, (named, text)
        assert explanation in text, (named, text)
    code, text = answer(capsys, verb, *FIRST.get(verb, []), "loop", *NEEDED.get(verb, []))
    assert code == 5
    assert "Too many levels of symbolic links" in text
    assert everything_below(place) == before


def test_a_store_that_cannot_be_reached_is_named(place: Path, capsys: Capture) -> None:
    options = {"s3": {"endpoint_url": "http://127.0.0.1:1", "anon": True}}
    job = {"output": {"uri": "s3://bucket/demo"}, "storage": {"options": options, "deadline_s": 1}}
    (place / "far.yaml").write_text(yaml.safe_dump(job))
    code, text = answer(capsys, "status", "far.yaml")
    assert code == 5
    assert "s3://bucket/demo/job.json" in text
    assert "The store is unreachable" in text


WRONG_JOBS = {
    "missing.yaml": "No such file or directory. Name a job file, or write one with",
    "missing/demo.yaml": "No such file or directory",
    "jobs": "Is a directory. Name a job file",
    "out/demo": "job file that has this output.uri; to see how far it is, tokpipe status {out}",
    "out/demo/job.json": "tokpipe status {out}",
    "out/demo/shards/x": "tokpipe status {out}",
    "video.mp4": "cannot be read as a job file: it is not text",
    "empty.yaml": "it holds no keys",
    "list.yaml": "it holds no keys",
    "broken.yaml": "is not valid YAML",
    "training.yaml": "output: found out/run; write a section with uri",
    "later.yaml": "sources: is missing",
    "s3://bucket/job.yaml": "s3:/bucket/job.yaml: cannot be read as a job file",
    "loop": "loop",
    "video.mp4/job.yaml": "video.mp4",
    "": "Is a directory",
    LONG: "File name too long",
    "\udcff": "No such file or directory",
}


@pytest.mark.parametrize("verb", verbs_on("job"))
def test_a_wrong_job_file_is_explained(verb: str, place: Path, capsys: Capture) -> None:
    before = everything_below(place)
    for named, explanation in WRONG_JOBS.items():
        code, text = answer(capsys, verb, named, *["out/demo"] * (verb == "diff"))
        assert code == 2, (named, text)
        assert explanation.format(out=place / "out/demo") in text, (named, text)
    assert everything_below(place) == before


@pytest.mark.parametrize(
    ("path", "explanation"),
    [
        ("missing/clip{0}", "cannot be written (No such file or directory)"),
        ("jobs", "jobs: is a folder, or does not end in {0}"),
        ("clip.doc", "does not end in {0}"),
        ("clip", "does not end in {0}"),
        ("video.mp4/clip{0}", "cannot be written (Not a directory)"),
        ("/proc/clip{0}", "cannot be written"),
        (f"{LONG}{{0}}", "File name too long"),
    ],
)
@pytest.mark.parametrize(("verb", "ending"), [("decode", ".mp4"), ("report", ".html")])
def test_a_file_that_cannot_be_written_is_noticed_before_any_work(
    verb: str, ending: str, path: str, explanation: str, place: Path, capsys: Capture
) -> None:
    # The output is wrong too, and would be complained about first if it were read first.
    code, text = answer(capsys, verb, "missing", "-o", path.format(ending))
    assert code == 2
    assert explanation.format(ending) in text


@pytest.mark.parametrize("path", ["jobs", "video.mp4", "video.mp4/x", "/proc/export", LONG])
def test_an_export_goes_to_a_new_folder_or_nowhere(path: str, place: Path, capsys: Capture) -> None:
    before = everything_below(place)
    code, text = answer(capsys, "export", "out/demo", "--to", "memmap", "-o", path)
    assert code == 2
    assert path in text
    assert everything_below(place) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["missing.ckpt", "--kind", "emu3", "-o", "new"],
        ["jobs", "--kind", "emu3", "-o", "new"],
        ["video.mp4", "--kind", "movqgan", "-o", "new"],
        ["video.mp4", "--config", "missing.yaml", "-o", "new"],
        ["missing.safetensors", "--kind", "emu3", "-o", "new"],
        [LONG, "--kind", "emu3", "-o", "new"],
        ["{weights}", "--config", "missing.yaml", "-o", "new"],
        ["{weights}", "--config", "jobs", "-o", "new"],
        ["{weights}", "--config", "jobs/demo.yaml", "-o", "new"],
        ["{weights}", "--config", "list.yaml", "-o", "new"],
        ["{weights}", "--kind", "emu3", "-o", "video.mp4"],
        ["{weights}", "--config", "{config}", "-o", "video.mp4/new"],
        ["{weights}", "--config", "{config}", "-o", "video.mp4"],
        ["{weights}", "--config", "{config}", "-o", "/proc/new"],
    ],
)
def test_a_conversion_explains_wrong_files(
    arguments: list[str], place: Path, capsys: Capture
) -> None:
    from tokpipe.config.checkpoint import builtin_path

    folder = builtin_path("builtin://fsq-4x8x8")
    section = yaml.safe_load((folder / "config.yaml").read_text())
    section.pop("weights", None)
    (place / "section.yaml").write_text(yaml.safe_dump(section))
    known = {"weights": str(folder / "model.safetensors"), "config": "section.yaml"}
    before = everything_below(place)
    code, text = answer(capsys, "convert", *(one.format(**known) for one in arguments))
    assert code == 2, text
    assert everything_below(place) == before


def test_a_clip_that_is_not_there_is_named(place: Path, capsys: Capture) -> None:
    code, text = answer(capsys, "decode", "out/demo", "-o", "clip.png", "--clip", "nobody")
    assert code == 2
    assert "no tokenized clip 'nobody'. It may be rejected" in text


@pytest.mark.parametrize(
    "arguments",
    [
        *(["decode", "out/demo", "-o", "a.png", "--device", name] for name in ("x", "cuda:77")),
        ["decode", "out/demo", "-o", "a.png", "--clip", "a", "--source", "b"],
        ["audit", "out/demo", "--seed", "-1"],
        ["plan", "jobs/demo.yaml", "--seed", "-1"],
        *(["plan", "jobs/demo.yaml", "--codes-per-s", x] for x in ("nan", "0", "-1", "x", "inf")),
        ["clean", "out/demo", "--older-than", "yesterday"],
        ["ls", "out/demo", "--limit", "-1"],
        ["export", "out/demo", "--to", "zip", "-o", "x"],
        ["run", "jobs/demo.yaml", "--reason", "missing"],
    ],
)
def test_a_wrong_option_is_explained(arguments: list[str], place: Path, capsys: Capture) -> None:
    code, text = answer(capsys, *arguments)
    assert code == 2
    assert "error: " in text.lower() or "ConfigError: " in text or "NotFound: " in text


def test_a_place_without_permission_is_named(place: Path, capsys: Capture) -> None:
    closed = place / "closed"
    (closed / "out").mkdir(parents=True)
    (closed / "job.yaml").touch()
    verbs = [("status", "out", 5), ("ls", "out", 5), ("check", "job.yaml", 2)]
    for verb, name, _ in verbs:  # imports everything while that is allowed
        answer(capsys, verb, f"holds_text/{name}")
    closed.chmod(0)
    with as_nobody():
        for verb, name, code in verbs:
            found, text = answer(capsys, verb, str(closed / name))
            assert found in (code, 2)
            assert "Permission denied" in text
            assert str(closed) in text
        found, text = answer(capsys, "decode", "x", "-o", str(closed / "clip.png"))
        assert found == 2
        assert str(closed) in text


def test_a_reader_may_lack_permission_to_write(project: Path, capsys: Capture) -> None:
    """Temporary files of killed writers are removed by those who may."""
    temporary = project / "out/demo/.tokpipe-tmp"
    temporary.mkdir(exist_ok=True)
    (temporary / "left").touch()
    os.utime(temporary / "left", (0, 0))
    main(["status", "out"])
    folders = [*project.parents, project, project / "out"]
    modes = {folder: folder.stat().st_mode for folder in folders if folder.stat().st_uid != 65534}
    try:
        for folder in modes:
            folder.chmod(modes[folder] | 0o055)
        with as_nobody():
            code, text = answer(capsys, "status", str(project / "out/demo"))
            assert code == 0, text
        assert (temporary / "left").exists()
    finally:
        for folder, mode in modes.items():
            folder.chmod(mode)
    assert main(["status", str(project / "out/demo")]) == 0
    assert not (temporary / "left").exists()


ABSENT = ["av", "decord", "ray", "s3fs", "safetensors", "torch", "transformers"]
WITHOUT = {
    "status out/demo": "",
    "ls out/demo": "",
    "inspect out/demo": "",
    "rejected out/demo": "",
    "clean out/demo": "",
    "audit out/demo": "",
    "export out/demo --to memmap -o export": "",
    "report out/demo -o report.html": "",
    "check jobs/demo.yaml": "",
    "run jobs/demo.yaml": "needs the package ray, which is not installed: "
    "pip install 'tokpipe[run]'",
    "decode out/demo -o clip.png": "needs the package av, which is not installed: "
    "pip install 'tokpipe[run]'",
    "audit out/demo --sample 1 --trust-uris": "pip install 'tokpipe[run]'",
    "convert a.safetensors --kind emu3 -o new": "pip install 'tokpipe[run]'",
    "status s3://bucket/demo": "pip install 'tokpipe[s3]'",
}
"""Verbs, and what they complain about where no optional package is installed."""


def test_a_missing_package_is_named_with_how_to_install_it(place: Path) -> None:
    done = run_apart(
        [*WITHOUT],
        f"import sys; sys.modules |= dict.fromkeys({ABSENT})",
        "for one in sys.argv[1:]: print(main(one.split()), file=sys.stderr)",
    )
    assert "Traceback" not in done.stderr
    answers = re.findall(r"(.*?)^(\d+)$", done.stderr, re.MULTILINE | re.DOTALL)
    assert len(answers) == len(WITHOUT), done.stderr
    for (command, complaint), (text, code) in zip(WITHOUT.items(), answers, strict=True):
        assert int(code) == (2 if complaint else 0), (command, text)
        assert complaint in text, command
        assert complaint or not text.strip(), command


def test_a_package_that_does_not_load_is_not_called_missing(place: Path) -> None:
    (place / "lib/torch").mkdir(parents=True)
    (place / "lib/torch/__init__.py").write_text("from torch import missing_symbol")
    done = run_apart(
        ["decode out/demo -o clip.png"],
        f"import sys; sys.path.insert(0, {str(place / 'lib')!r})",
    )
    assert done.returncode == 2
    assert "The package torch is installed, but does not load" in done.stderr


def test_a_bug_still_ends_with_its_traceback(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def buggy(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("tokpipe.verbs.status.Status", buggy)
    assert main(["status", "out/demo"]) == 1
    assert "Traceback" in capsys.readouterr().err


# --- streams ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("ls out/demo | true", 141),
        ("completion bash | true", 141),
        ("status missing 2>&1 | true", 141),
        ("ls out/demo >&-", 0),
        ("ls missing 2>&-", 2),
        ("ls out/demo >/dev/full", 2),
    ],
)
def test_a_stream_that_is_closed_or_full_causes_no_traceback(
    command: str, code: int, place: Path
) -> None:
    script = f"{sys.executable} -m tokpipe.cli {command}; exit ${{PIPESTATUS[0]}}"
    # The pipe's reader is gone when the verb prints.
    script = script.replace("| true", "| { exec <&-; sleep 0; }")
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert ("No space left" in done.stderr) == ("full" in command)


def test_no_file_takes_the_place_of_a_closed_stream(place: Path) -> None:
    program = (
        "import os; from tokpipe.cli import main; main(['ls', 'out/demo']); "
        "assert os.fstat(1).st_rdev == os.stat(os.devnull).st_rdev"
    )
    subprocess.run(["bash", "-c", f'{sys.executable} -c "{program}" >&-'], check=True)


def test_a_name_that_the_terminal_cannot_show_is_escaped(place: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tokpipe.cli", "ls", "out/demo", "--source", "katze"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 0
    assert r"katze-\xe4.mp4" in done.stdout


# --- helpers ------------------------------------------------------------------------------------


def answer(capsys: Capture, *arguments: str) -> tuple[int, str]:
    """Run a verb; return its exit code and what it printed about an error."""
    try:
        code = main(list(arguments))
    except SystemExit as error:
        code = int(error.code or 0)
    text = one_line(capsys)
    assert "Traceback" not in text
    return code, text


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def run_apart(
    commands: list[str], before: str, then: str = "sys.exit(main(sys.argv[1].split()))"
) -> subprocess.CompletedProcess[str]:
    """Run verbs in a process, after other statements."""
    program = f"{before}\nfrom tokpipe.cli import main\n{then}"
    return subprocess.run(
        [sys.executable, "-c", program, *commands], capture_output=True, text=True
    )


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up root's right to open everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
