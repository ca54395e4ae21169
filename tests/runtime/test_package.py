"""What is sent of a job that is submitted, and what the driver's side makes of it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import tokpipe
from tokpipe.config import load_job
from tokpipe.errors import ConfigError
from tokpipe.runtime import submitted
from tokpipe.runtime.submit import STARTER, Package

JOB: dict[str, Any] = {
    "dataset": "test",
    "sources": [{"kind": "files", "uri": "videos/*.mp4"}],
    "output": {"uri": "${OUT}"},
    "frames": {"size": [32, 32]},
    "tokenizer": {"checkpoint": "builtin://fsq-4x8x8"},
}
CUSTOM: dict[str, Any] = {
    "kind": "custom",
    "declares": {
        "temporal_stride": 1,
        "spatial_stride": 8,
        "codebook_size": 16,
        "value_range": [0.0, 1.0],
    },
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUT", "s3://bucket/out")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(submitted.JOB_CONFIG, raising=False)


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "jobs/job.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**JOB, **changes}))
    return path


def sent(path: Path, to: Path, *asked: str) -> set[str]:
    """Package a job; return the files that are sent."""
    to.mkdir()
    Package(path, load_job(path), [], asked).write(to)
    return {found.relative_to(to).as_posix() for found in to.rglob("*") if found.is_file()}


# --- the job ------------------------------------------------------------------------------------


def test_the_sent_job_is_the_same_in_any_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "project/tokenizers/mine"
    checkpoint.mkdir(parents=True)
    (checkpoint / "config.yaml").write_text("encoder: {z_channels: 6}\nquantizer: {kind: fsq}\n")
    path = write(
        tmp_path / "project",
        sources=[
            {"kind": "files", "uri": "videos/*.mp4"},
            {"kind": "files", "uri": "~/clips/*.mp4"},
            {"kind": "table", "uri": "t.csv", "uri_template": "${HOME}/{page}/{id}.mp4"},
        ],
        tokenizer={"checkpoint": "tokenizers/mine"},
        runtime={"log_path": "${LOG:-logs/tokpipe.jsonl}"},
        max_rejected_fraction=1e-05,
    )
    job = load_job(path)
    assert sent(path, tmp_path / "sent") == {"job.yaml", STARTER}
    for name, value in {"OUT": "elsewhere", "HOME": "/root", "LOG": "/elsewhere"}.items():
        monkeypatch.setenv(name, value)
    there = load_job(tmp_path / "sent/job.yaml")
    assert there == job
    assert job.output.uri == "s3://bucket/out"
    assert job.tokenizer.weights == f"{checkpoint}/model.safetensors"
    assert [source.uri for source in job.sources] == [
        f"{tmp_path}/project/videos/*.mp4",
        f"{tmp_path}/home/clips/*.mp4",
        f"{tmp_path}/project/t.csv",
    ]


@pytest.mark.parametrize("name", ["demo", "webvid"])
def test_the_shipped_jobs_can_be_sent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("WEBVID_TABLE", "WEBVID_VIDEOS", "TOKENIZER_WEIGHTS", "OUTPUT"):
        monkeypatch.setenv(variable, f"s3://bucket/{variable.lower()}")
    path = Path(tokpipe.__file__).parents[1] / f"jobs/{name}.yaml"
    assert sent(path, tmp_path / "sent") == {f"{name}.yaml", STARTER}


def test_a_value_that_would_be_expanded_twice_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUT", "s3://bucket/${USER}")
    path = write(tmp_path)
    with pytest.raises(ConfigError, match="set the variable to its final value"):
        Package(path, load_job(path), [], [])


def test_a_job_for_another_cluster_is_rejected(tmp_path: Path) -> None:
    path = write(tmp_path, runtime={"cluster": "local"})
    with pytest.raises(ConfigError, match="name the cluster with --address"):
        Package(path, load_job(path), [], [])


# --- variables ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_ACCESS_KEY_ID", "AKIA0123456789"),
        ("RAY_AUTH_TOKEN", "abc"),
        ("MY_PASSWORD", ""),
        ("PROXY", "http://me:secret@proxy:3128"),
        ("LINK", "https://host/a?X-Amz-Signature=abc"),
        ("COPY", "planted-secret-0123"),
        ("MAPPED", '{"key": "planted-secret-0123"}'),
    ],
)
def test_a_secret_is_not_passed(
    name: str, value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLANTED_SECRET", "planted-secret-0123")
    path = write(tmp_path)
    for asked in (f"{name}={value}", name):
        with pytest.raises(ConfigError, match=r"Nothing was sent.*instance role") as caught:
            Package(path, load_job(path), [], [asked])
        assert value == "" or value not in str(caught.value)
        monkeypatch.setenv(name, value)


def test_a_job_cannot_name_a_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "short")  # so short that it is not masked elsewhere
    path = write(tmp_path, output={"uri": "s3://bucket/${SOME_API_KEY}"})
    with pytest.raises(ConfigError, match=r"\$\{SOME_API_KEY\} is secret.*Nothing was sent"):
        Package(path, load_job(path), [], [])


def test_variables_are_passed_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:9000")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token")
    path = write(tmp_path)
    asked = ["AWS_ENDPOINT_URL", "AWS_WEB_IDENTITY_TOKEN_FILE", "REGION=eu=1"]
    assert Package(path, load_job(path), [], asked).variables == {
        "AWS_ENDPOINT_URL": "http://store:9000",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",  # the place of a secret is none
        "REGION": "eu=1",
    }
    for wrong, said in (("NOT_SET", "is not set here"), ("A=$HOME", "Ray would expand")):
        with pytest.raises(ConfigError, match=said):
            Package(path, load_job(path), [], [wrong])


# --- code ---------------------------------------------------------------------------------------


def custom(folder: Path, implementation: str) -> Path:
    return write(folder, tokenizer={**CUSTOM, "implementation": implementation})


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("")


def test_a_module_is_sent_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_files(tmp_path / "lib", "blocks.py", "other.py", ".env", ".git/config")
    monkeypatch.syspath_prepend(tmp_path / "lib")
    path = custom(tmp_path / "project", "blocks:Blocks")
    assert sent(path, tmp_path / "sent") == {"job.yaml", STARTER, "blocks.py"}


def test_a_package_is_sent_without_hidden_files(tmp_path: Path) -> None:
    make_files(
        tmp_path / "project",
        *("mine/__init__.py", "mine/parts/blocks.py", "mine/table.json", "mine/.env"),
        *("mine/.git/config", "mine/__pycache__/a.pyc", "notes.txt", "pyproject.toml"),
    )
    (tmp_path / "project/mine/data").symlink_to("/usr")
    path = custom(tmp_path / "project", "mine.parts.blocks:Blocks")
    assert sent(path, tmp_path / "sent") == {
        *("job.yaml", STARTER, "mine/__init__.py", "mine/parts/blocks.py", "mine/table.json")
    }


def test_of_a_folder_without_init_only_the_module_is_sent(tmp_path: Path) -> None:
    make_files(tmp_path / "project", "pyproject.toml", "examples/big.mp4", "examples/mine/a.py")
    path = custom(tmp_path / "project", "examples.mine.a:Blocks")
    assert sent(path, tmp_path / "sent") == {"job.yaml", STARTER, "examples/mine/a.py"}


def test_the_module_that_python_would_import_is_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package comes before a folder without __init__.py, whatever their order on the path."""
    make_files(tmp_path, "later/both/__init__.py", "later/both/a.py", "first/both/a.py")
    for name in ("later", "first"):
        monkeypatch.syspath_prepend(tmp_path / name)
    path = custom(tmp_path / "project", "both.a:Blocks")
    wanted = {"job.yaml", STARTER, "both/__init__.py", "both/a.py"}
    assert sent(path, tmp_path / "sent") == wanted


@pytest.mark.parametrize("implementation", ["torch.nn:Identity", "json:X", "sys:X", "nowhere.a:X"])
def test_what_is_installed_or_missing_is_not_sent(implementation: str, tmp_path: Path) -> None:
    path = custom(tmp_path / "project", implementation)
    assert sent(path, tmp_path / "sent") == {"job.yaml", STARTER}


# --- the driver's side --------------------------------------------------------------------------


def start(folder: Path, *options: str, version: str = tokpipe.__version__) -> tuple[int, str]:
    """Run the command of a submitted job, with a Python whose options are given."""
    done = subprocess.run(
        [sys.executable, *options, STARTER, version, "job.yaml", "--dry-run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "" if options else str(Path(tokpipe.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_cluster_without_this_tokpipe_says_so(tmp_path: Path) -> None:
    path = write(tmp_path, sources=[{"kind": "files", "uri": "none/*.mp4"}])
    sent(path, tmp_path / "sent")
    code, printed = start(tmp_path / "sent", "-S")
    assert code == 7
    assert "cannot import tokpipe: No module named 'tokpipe'. Install \"tokpipe[run]==" in printed
    code, printed = start(tmp_path / "sent", version="99.0")
    assert code == 7
    assert f"has tokpipe {tokpipe.__version__}, but the job was checked" in printed
    code, printed = start(tmp_path / "sent")
    assert code == 2
    assert "nothing matches" in printed


def test_an_output_in_the_folder_that_ray_deletes_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session = tmp_path / "elsewhere/session_2026-01-31_10-11-12_345678_90/runtime_resources/x"
    session.mkdir(parents=True)
    (tmp_path / "link").symlink_to(session)
    monkeypatch.setenv("RAY_TMPDIR", f"{tmp_path}/scratch")

    def checked(uri: str, **runtime: str) -> None:
        monkeypatch.setenv("OUT", uri)
        submitted.check_output(load_job(write(tmp_path, runtime=runtime)))

    def rejected(
        uri: str, match: str = r"output\.uri: .* is in a folder of Ray", **log: str
    ) -> None:
        with pytest.raises(ConfigError, match=match):
            checked(uri, **log)

    for uri in ("out", "s3://bucket/out", f"{tmp_path}/scratch/out", "/tmp/rays/out", "ray/out"):
        checked(uri)
    for uri in (
        *(f"{session}/out", "link/out", f"file://{tmp_path}/link/out", "scratch/ray/out"),
        *("/tmp/ray/out", "/tmp/other/session_latest/runtime_resources/working_dir_files/a/out"),
    ):
        rejected(uri)
    rejected("s3://bucket/out", r"runtime\.log_path: .* is in a folder of Ray", log_path="link/log")
    checked("s3://bucket/out", log_path="log")
    monkeypatch.setenv(submitted.JOB_CONFIG, '{"runtime_env": {"working_dir": "gcs://a.zip"}}')
    rejected("out")
    rejected("s3://bucket/out", r"runtime\.log_path", log_path="log")
    for uri in ("s3://bucket/out", "/data/out"):
        checked(uri, log_path="-")
