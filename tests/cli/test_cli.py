"""What all verbs of the command line have in common."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.jobs import files, write_job, write_video
from tests.formats.formats_helpers import encoded_clip, record
from tokpipe.cli import main
from tokpipe.cli.command import VERBS
from tokpipe.cli.output import print_lines
from tokpipe.config.job import StoreOptions
from tokpipe.errors import TokpipeError
from tokpipe.formats.job_record import write_once
from tokpipe.formats.manifest import ManifestEntry, append
from tokpipe.formats.shard import receipt_of
from tokpipe.storage import Store

REPORTING = {
    *("check", "plan", "status", "inspect", "decode", "rejected", "export", "audit", "clean"),
    *("report", "ls", "verify", "remove", "diff", "locate"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([verb, "--help"])
    text = capsys.readouterr().out
    assert re.search(rf"example: .*\btokpipe {verb} \S+", text)
    assert ("--json" in text) == (verb in REPORTING)


def test_check_and_dry_run_print_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "videos/a.mp4")
    job = write_job(tmp_path / "job.yaml", files(tmp_path / "videos"), str(tmp_path / "out"))
    assert main(["check", str(job)]) == 0
    found = capsys.readouterr().out
    assert "1 row, such as" in found
    assert "new" in found
    assert main(["run", str(job), "--dry-run"]) == 0
    assert capsys.readouterr().out == found
    assert main(["check", str(job), "--json"]) == 0
    facts = {one["subject"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(facts) == [
        *("dataset", "tokenizer", "source", "videos", "trial", "output", "not checked"),
    ]
    assert facts["source"]["example"] == str(tmp_path / "videos/a.mp4")
    assert facts["tokenizer"]["codebook_size"] == 8**4
    assert facts["output"]["is_new"]
    assert main(["check", str(tmp_path / "missing.yaml")]) == 2


@pytest.mark.parametrize("verb", ["status", "inspect"])
def test_a_verb_prints_text_or_one_line_of_json(
    verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / "out"), StoreOptions())
    write_once(store, record(num_rows=1))
    arguments = [verb, str(tmp_path / "out")]
    if verb == "status":
        receipt = receipt_of("s", [encoded_clip(0, [5])], b"", b"")
        assert append(store, ManifestEntry(0, "d", "2026-01-01T00:00:00+00:00", (receipt,)))
    assert main(arguments) == 0
    assert "demo" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["dataset"] == "demo"
    assert main([verb, str(tmp_path / "nothing")]) == 2


@pytest.mark.parametrize("kind", TokpipeError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_no_error_of_tokpipe_ends_with_the_exit_code_of_a_bug(kind: type[TokpipeError]) -> None:
    assert kind.exit_code != TokpipeError.exit_code == 1


def test_text_is_printed_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    text = f"videos/:fire:/[red]a.mp4: 12 [/] {'long ' * 50}."
    print_lines([text])
    assert capsys.readouterr().out == f"{text}\n"


def test_the_command_alone_and_help_list_all_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    for words, code in (([], 2), (["--help"], 0)):
        with pytest.raises(SystemExit, match=str(code)):
            main(words)
        printed = capsys.readouterr()
        listed = re.findall(r"^    (\w+)", printed.err if code else printed.out, re.MULTILINE)
        assert listed == [*VERBS]


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("stat", {"status"}),
        ("ls --s", {"--source", "--storage"}),
        ("export --t", {"--to", "--template"}),
        ("export --to mem", {"memmap"}),
    ],
)
def test_a_shell_completes_verbs_options_and_choices(
    typed: str, offered: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "tokpipe.bash"
    script.write_text(capsys.readouterr().out)
    words = ["tokpipe", *typed.split()]
    # What bash does when tab is pressed.
    completed = subprocess.run(
        [
            "bash",
            "-c",
            f"source {script}; COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; "
            "$(complete -p tokpipe | sed 's/.*-F \\([^ ]*\\).*/\\1/') tokpipe; "
            'echo "${COMPREPLY[@]}"',
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(completed.stdout.split()) == offered, completed.stderr


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["sumbit"], "invalid choice: 'sumbit' (choose from "),
        (["ls", "out", "--lmit=3"], "unrecognized arguments: --lmit=3\n"),
        (["status", "out", "more"], "unrecognized arguments: more\n"),
    ],
)
def test_misspelt_words_are_named(
    words: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert hint in capsys.readouterr().err
