"""Verbs on outputs take the output, anything in it, or its job file."""

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest
import yaml

from tests.conftest import S3Bucket
from tests.end_to_end.jobs import TOKENIZER, files, run_without_ray, write_job, write_video
from tokpipe.cli import main
from tokpipe.cli.arguments import Adder
from tokpipe.cli.command import VERBS
from tokpipe.config import load_job

Capture = pytest.CaptureFixture[str]

OPTIONS = {
    "decode": ["-o", "{folder}/clip.png", "--device", "cpu"],
    "report": ["-o", "{folder}/report.html", "--pairs", "0"],
    "export": ["-o", "{folder}/export", "--to", "memmap"],
    "remove": ["--clip", "none", "--dry-run"],
    "locate": ["--source", "katze", "--x", "20", "--y", "9", "--trust-uris"],
}
"""What these verbs require besides the output."""
FIRST = {"diff": ["jobs/demo.yaml"]}
"""What they require before it."""


def verbs_on(argument: str) -> list[str]:
    """Return the verbs with this positional argument, so that new verbs are tested too."""
    found = []
    for name, verb in VERBS.items():
        parser = ArgumentParser()
        verb.add_arguments(Adder(parser))
        if argument in {one.dest for one in parser._actions if not one.option_strings}:
            found.append(name)
    return found


def test_the_verbs_on_outputs_are_known() -> None:
    assert {*verbs_on("output")} >= {
        *("status", "ls", "inspect", "decode", "rejected", "report", "audit", "clean", "export")
    }
    assert {*verbs_on("job")} >= {"check", "plan", "run"}


@pytest.mark.parametrize("verb", verbs_on("output"))
def test_a_verb_does_the_same_for_an_output_and_its_job_file(
    verb: str, project: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setattr("tokpipe.verbs.status.duration", lambda seconds: "0:00")
    printed = []
    for name in ("out/demo", "jobs/demo.yaml"):
        folder = tmp_path / Path(name).stem / name.replace("/", "-")
        folder.mkdir(parents=True)
        options = [option.format(folder=folder) for option in OPTIONS.get(verb, [])]
        assert main([verb, *FIRST.get(verb, []), name, *options]) == 0
        made = sorted(one.name for one in folder.rglob("*"))
        text = capsys.readouterr().out.replace(str(folder), "")
        printed.append((made, text.partition(", in ")[0]))
    assert printed[0] == printed[1]
    assert printed[0][1]


@pytest.mark.parametrize(
    "named",
    [
        *("out/demo/", "out/demo/job.json", "out/demo/shards", "out/demo/manifest/00000000.json"),
        *("out/demo/plan", "out/demo/clips/none.parquet", "out/../out/demo", "file://{out}"),
        "{out}/manifest/",
    ],
)
def test_anything_in_an_output_names_it(
    named: str, project: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert main(["status", named.format(out=project / "out/demo"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["uri"] == str(project / "out/demo")


def test_an_output_is_found_from_within_it(
    project: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, named in (("shards", "."), ("shards", ".."), (".", "job.json"), (".", ".")):
        monkeypatch.chdir(project / "out/demo" / folder)
        assert main(["status", named]) == 0
        assert f"{project / 'out/demo'}: test, done" in capsys.readouterr().out


def test_a_job_file_names_its_output_when_nothing_else_in_it_can_be_used(
    project: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = {
        "output": {"uri": "${WHERE}/demo", "shard_bytes": "many"},
        "tokenizer": {"checkpoint": "s3://gone/checkpoint"},
        "storage": {"deadline_s": 5.0},
        "unknown": "${NOT_SET}",
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    monkeypatch.setenv("WHERE", str(project / "out"))
    assert main(["status", str(tmp_path / "job.yaml")]) == 0
    assert "test, done" in capsys.readouterr().out
    monkeypatch.delenv("WHERE")
    assert main(["status", str(tmp_path / "job.yaml")]) == 2
    assert "output.uri: environment variable WHERE is not set" in one_line(capsys)


@pytest.mark.s3
def test_a_job_file_brings_the_options_of_its_store(
    s3_bucket: S3Bucket, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = s3_bucket.server.environment()["AWS_ENDPOINT_URL"]
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = {"s3": {"endpoint_url": endpoint}}
    storage = {"options": options, "deadline_s": 20.0}
    write_video(tmp_path / "videos/a.mp4")
    uri = f"{s3_bucket.uri}/codes"
    job = write_job(
        tmp_path / "jobs/s3.yaml", files(tmp_path / "videos"), uri, storage=storage,
        tokenizer=TOKENIZER,
    )  # fmt: skip
    assert main(["status", str(job)]) == 2
    assert f"{uri}: has no job.json, so" in one_line(capsys)
    run_without_ray(load_job(job))
    for verb in ("status", "ls", "audit", "inspect", "rejected", "clean"):
        assert main([verb, str(job)]) == 0
    assert f"{uri}: test, done" in capsys.readouterr().out
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    assert main(["status", f"{uri}/manifest/00000000.json"]) == 0
    assert f"{uri}: test, done" in capsys.readouterr().out
    assert main(["status", f"{s3_bucket.uri}/other"]) == 2
    assert "/other: has no job.json" in one_line(capsys)
    assert main(["status", s3_bucket.uri]) == 2
    assert f"{s3_bucket.uri}: has no job.json" in one_line(capsys)
    assert main(["status", "s3://no-such-bucket-here/x"]) == 2
    assert "no-such-bucket-here" in one_line(capsys)


def one_line(capsys: Capture) -> str:
    return " ".join(capsys.readouterr().err.split())
