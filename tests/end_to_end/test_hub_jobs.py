"""Jobs whose weights, settings and videos are on a stand-in for the Hugging Face Hub."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from tests.end_to_end.jobs import (
    RUNTIME,
    WITH_DECODER,
    assert_complete,
    codes_of,
    codes_without_ray,
    files,
    rejections_of,
    write_job,
    write_videos,
)
from tests.end_to_end.test_secrets import kept
from tests.hub_server import Failure, Hub, running_hub
from tokpipe.config import load_job
from tokpipe.models.tokenizers import build_tokenizer

TOKEN = "hf_pl4ntedT0ken" + "x9" * 12
Tokpipe = Callable[..., tuple[int, str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        hub.token = TOKEN
        yield hub


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="r-", dir="/tmp"))  # it begins the names of sockets
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def tokpipe(hub: Hub, tmp_path: Path, ray_folder: Path) -> Tokpipe:
    """Runs the command line in a process that has a token and a cache of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(tmp_path / "hf")}
    environment |= {"RAY_TMPDIR": str(ray_folder)}

    def run(*words: object, **variables: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "tokpipe.run" if words[0] == "run" else "tokpipe.cli"]
            + [str(word) for word in (words[1:] if words[0] == "run" else words)],
            env=environment | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        return done.returncode, done.stdout

    return run


def state_of(tokenizer: dict[str, Any], folder: Path, factor: float = 1.0) -> bytes:
    """safetensors of a tokenizer with random weights, its first bias changed by a factor."""
    job = write_job(folder / "random.yaml", files(folder), str(folder / "x"), tokenizer=tokenizer)
    state = build_tokenizer(load_job(job).tokenizer, None, with_decoder=True).state_dict()
    state["encoder.conv_in.conv.weight"] *= factor
    return safetensors.torch.save(state)


def local_twin(folder: Path, commit: dict[str, bytes], **tokenizer: Any) -> Path:
    """A job that reads the files of a commit, and weights, from local disk."""
    for name, data in commit.items():
        (folder / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "videos" / name).write_bytes(data)
    source = {"kind": "files", "uri": f"{folder}/videos/clips/*.mp4"}
    return write_job(folder / "job.yaml", source, f"{folder}/out", tokenizer=tokenizer)


def codes_alone(table: Any) -> list[Any]:
    """Codes without their clips' ids, which depend on where the videos are."""
    return sorted(table.values())


def with_secret(folder: Path) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and TOKEN.encode() in path.read_bytes()
    ]


@pytest.mark.ray
def test_a_job_that_is_resumed_reads_the_commits_that_it_started_with(
    hub: Hub, tokpipe: Tokpipe, tmp_path: Path, ray_folder: Path
) -> None:
    (tmp_path / "made").mkdir()
    paths = write_videos(tmp_path / "made", 6, num_frames=9)
    videos = [path.read_bytes() for path in paths]
    weights = state_of(WITH_DECODER, tmp_path, 1.5)
    folder = {"config.yaml": json.dumps(WITH_DECODER).encode(), "model.safetensors": weights}
    tokenizers, dataset = hub.repository("ann/tok"), hub.repository("datasets/ann/set")
    tokenizers.is_private = dataset.is_private = True
    first = tokenizers.commit({f"small/{name}": data for name, data in folder.items()})
    clips = {f"clips/{index}.mp4": data for index, data in enumerate(videos[:4])}
    first_set = dataset.commit({**clips, "README.md": b"videos"})

    source = {"kind": "files", "uri": "hf://datasets/ann/set/clips/*.mp4"}
    job = write_job(
        tmp_path / "job.yaml",
        source,
        str(tmp_path / "out"),
        tokenizer={"checkpoint": "hf://ann/tok/small"},
        max_rejected_fraction=1.0,
        runtime={**RUNTIME, "max_attempts": 1, "log_path": str(tmp_path / "log.jsonl")},
    )
    code, printed = tokpipe("check", job)
    assert code == 0, printed
    assert f"weights hf://ann/tok@{first}/small/model.safetensors: " in printed
    assert f"hf://datasets/ann/set@{first_set}/clips/*.mp4): 4 rows" in printed
    assert "opened 4 videos: all fine" in printed
    code, printed = tokpipe("plan", job)
    assert code == 0, printed
    assert "4 plan rows" in printed
    assert hub.count("^GET /cdn/.*") >= 1

    # One video cannot be read; then the branches move on, and the job is resumed.
    denied = hashlib.sha256(videos[2]).hexdigest()
    hub.failures.append(Failure(f"/cdn/{denied}", 403, 10**6))
    with kept(ray_folder) as seen:
        code, printed = tokpipe("run", job)
        assert code == 0, printed
        assert not with_secret(seen)
    record = json.loads((tmp_path / "out/job.json").read_text())["job"]
    assert record["tokenizer"]["weights"] == f"hf://ann/tok@{first}/small/model.safetensors"
    assert record["sources"][0]["uri"] == f"hf://datasets/ann/set@{first_set}/clips/*.mp4"
    recorded = job_as_recorded(tmp_path, record)
    assert list(rejections_of(recorded).values()) == ["access_denied"], printed
    hub.failures.clear()
    other = {"quantizer": {"kind": "fsq", "levels": [3, 3, 3, 3]}, "norm": "frame"}
    moved = json.dumps({**WITH_DECODER, **other}).encode()
    tokenizers.commit({"small/config.yaml": moved, "small/model.safetensors": b"other"})
    dataset.commit({f"clips/{index}.mp4": videos[5] for index in range(3)})
    downloads = hub.count("^GET /cdn/")
    code, printed = tokpipe("run", job, "--retry-rejected")
    assert code == 0, printed
    assert hub.count("^GET /cdn/") > downloads
    assert_complete(recorded)
    assert not rejections_of(recorded)

    (tmp_path / "w.safetensors").write_bytes(weights)
    stored = {**WITH_DECODER, "weights": str(tmp_path / "w.safetensors")}
    twin = local_twin(tmp_path / "twin", clips, **stored)
    assert codes_alone(codes_of(recorded)) == codes_alone(codes_without_ray(twin))
    assert hub.leaks == []
    assert not with_secret(tmp_path)
    assert not with_secret(ray_folder)
    assert TOKEN not in printed


@pytest.mark.ray
def test_a_job_runs_offline_with_a_tokenizer_from_the_cache(
    hub: Hub, tokpipe: Tokpipe, tmp_path: Path
) -> None:
    (tmp_path / "videos").mkdir()
    write_videos(tmp_path / "videos", 2, num_frames=9)
    weights = state_of(WITH_DECODER, tmp_path)
    folder = {"config.yaml": json.dumps(WITH_DECODER).encode(), "model.safetensors": weights}
    commit = hub.repository("ann/tok").commit(folder)
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        tokenizer={"checkpoint": "hf://ann/tok"},
    )
    code, printed = tokpipe("run", job, HF_HUB_OFFLINE="1")
    assert code == 2, printed
    assert "hf://ann/tok/config.yaml: is not in this machine's cache" in printed
    assert not hub.requests
    code, printed = tokpipe("check", job)
    assert code == 0, printed
    hub.requests.clear()
    code, printed = tokpipe("run", job, HF_HUB_OFFLINE="1")
    assert code == 0, printed
    assert not hub.requests
    record = json.loads((tmp_path / "out/job.json").read_text())["job"]
    assert record["tokenizer"]["weights"] == f"hf://ann/tok@{commit}/model.safetensors"
    assert_complete(job_as_recorded(tmp_path, record))


def job_as_recorded(folder: Path, record: dict[str, Any]) -> Path:
    path = folder / "recorded.yaml"
    path.write_text(json.dumps(record))
    return path
