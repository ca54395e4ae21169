"""Job files that name repositories of the Hugging Face Hub, and what of them an output keeps."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from huggingface_hub import constants

from tests.end_to_end.jobs import (
    WITH_DECODER,
    codes_of,
    run_without_ray,
    write_job,
    write_videos,
)
from tests.hub_server import Hub
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.job import JobConfig
from tokpipe.errors import ConfigError, NotFound, PlanMismatch, StorageError
from tokpipe.formats.sealed_json import CHECKSUM, seal
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.reader import open_output
from tokpipe.runtime.assemble import JobOutput
from tokpipe.runtime.submit import Package
from tokpipe.storage import client
from tokpipe.verbs.locate import load_pinned

SET = "datasets/ann/set"


def weights_of(folder: Path, factor: float = 1.0) -> bytes:
    source = {"kind": "files", "uri": str(folder)}
    out = str(folder / "x")
    job = write_job(folder / "random.yaml", source, out, tokenizer=WITH_DECODER)
    state = build_tokenizer(load_job(job).tokenizer, None, with_decoder=True).state_dict()
    state["encoder.conv_in.conv.weight"] *= factor
    return safetensors.torch.save(state)


def make_job(hub: Hub, folder: Path, uri: str = f"hf://{SET}/*.mp4", **changes: Any) -> Path:
    source = {"kind": "files", "uri": uri} | changes.pop("source", {})
    tokenizer = {**WITH_DECODER, "weights": "hf://ann/tok/w.safetensors"}
    settings = {"tokenizer": tokenizer, "storage": hub.storage, **changes}
    return write_job(folder / "job.yaml", source, str(folder / "out"), **settings)


def fill(hub: Hub, folder: Path) -> tuple[str, str, dict[str, bytes]]:
    """Commit weights and two videos; return both commits, and the videos."""
    (folder / "made").mkdir()
    paths = write_videos(folder / "made", 2, num_frames=9)
    videos = {path.name: path.read_bytes() for path in paths}
    weights = hub.repository("ann/tok").commit({"w.safetensors": weights_of(folder)})
    return weights, hub.repository(SET).commit(videos), videos


def uris_of(job: JobConfig) -> tuple[str, str]:
    return str(job.tokenizer.weights), job.sources[0].uri


def test_branches_become_commits_and_a_started_output_keeps_them(hub: Hub, tmp_path: Path) -> None:
    weights, videos, files = fill(hub, tmp_path)
    path = make_job(hub, tmp_path)
    job = load_pinned(path)
    assert uris_of(job) == (
        f"hf://ann/tok@{weights}/w.safetensors",
        f"hf://{SET}@{videos}/*.mp4",
    )
    run_without_ray(job)
    assert json.loads((tmp_path / "out/job.json").read_text())["job"]["sources"][0]["uri"] == (
        f"hf://{SET}@{videos}/*.mp4"
    )
    plan = open_output(str(tmp_path / "out"))
    assert {clip.source_uri for clip in plan.clips()} == {
        f"hf://{SET}@{videos}/{name}" for name in files
    }
    moved = hub.repository(SET).commit({})
    changed = hub.repository("ann/tok").commit({"w.safetensors": weights_of(tmp_path, 2.0)})
    as_a_new_process()
    assert uris_of(load_pinned(path)) == uris_of(job)
    JobOutput(load_pinned(path))  # may be resumed

    # What the job file names by commit is meant so: other videos and other weights.
    with pytest.raises(PlanMismatch, match="sources: "):
        JobOutput(load_pinned(make_job(hub, tmp_path, f"hf://{SET}@{moved}/*.mp4")))
    named = {**WITH_DECODER, "weights": f"hf://ann/tok@{changed}/w.safetensors"}
    with pytest.raises(PlanMismatch, match="weights: 'sha256 "):
        JobOutput(load_pinned(make_job(hub, tmp_path, tokenizer=named)))
    # The hash of the weights decides, not where they are.
    same = hub.repository("ann/tok").commit({"copy.safetensors": weights_of(tmp_path)})
    named = {**WITH_DECODER, "weights": f"hf://ann/tok@{same}/copy.safetensors"}
    JobOutput(load_pinned(make_job(hub, tmp_path, tokenizer=named)))


def as_a_new_process() -> None:
    """Forget clients, which remember what branches named."""
    client._client.cache_clear()


def test_what_is_submitted_names_commits_and_holds_no_token(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_" + "s3cret" * 6
    weights, videos, _ = fill(hub, tmp_path)
    hub.repository(SET).is_private = hub.repository("ann/tok").is_private = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    path = make_job(hub, tmp_path)
    package = Package(path, load_pinned(path), [], ["HF_ENDPOINT=https://hub.example"])
    assert f"hf://ann/tok@{weights}/w.safetensors" in package.text
    assert f"hf://{SET}@{videos}/*.mp4" in package.text
    assert hub.token not in f"{package.text} {package.variables} {package.entrypoint}"
    with pytest.raises(ConfigError, match="HF_TOKEN is secret"):
        Package(path, load_pinned(path), [], ["HF_TOKEN"])


def test_two_commits_of_one_repository_are_looked_up_again(hub: Hub, tmp_path: Path) -> None:
    fill(hub, tmp_path)
    repository = hub.repository(SET)
    tags = {
        name: repository.commit(dict(repository.commits[repository.branches["main"]]), name)
        for name in ("v1", "v2")
    }
    sources = [{"kind": "files", "uri": f"hf://{SET}@{name}/*.mp4"} for name in tags]
    path = tmp_path / "job.yaml"
    write_job(path, sources, str(tmp_path / "out"), storage=hub.storage)
    job = load_pinned(path)
    assert [one.uri for one in job.sources] == [f"hf://{SET}@{sha}/*.mp4" for sha in tags.values()]
    run_without_ray(job)
    assert load_pinned(path) == job


def test_the_commit_of_a_program_is_not_taken_from_a_record(hub: Hub, tmp_path: Path) -> None:
    weights, videos, _ = fill(hub, tmp_path)
    path = make_job(hub, tmp_path)
    run_without_ray(load_pinned(path))
    evil = hub.repository("ann/tok").commit({"encoder.jit": b"evil"}, "refs/pr/1")
    record = tmp_path / "out/job.json"
    found = json.loads(record.read_text().replace(weights, evil))
    del found[CHECKSUM]
    record.write_text(json.dumps(seal(found)))
    program = {"kind": "cosmos_dv", "variant": "4x8x8", "weights": "hf://ann/tok/encoder.jit"}
    good = hub.repository("ann/tok").commit({"encoder.jit": b"good"})
    as_a_new_process()
    job = load_pinned(make_job(hub, tmp_path, tokenizer=program, chunking={"chunk_frames": 9}))
    assert uris_of(job) == (f"hf://ann/tok@{good}/encoder.jit", f"hf://{SET}@{videos}/*.mp4")
    # A safetensors file holds no program, so its commit is kept.
    assert uris_of(load_pinned(make_job(hub, tmp_path)))[0] == f"hf://ann/tok@{evil}/w.safetensors"


def test_what_a_job_names_is_looked_for_before_it_runs(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(hub, tmp_path)
    hub.repository("ann/gated").is_gated = True
    hub.repository("ann/gated").commit({"w.safetensors": weights_of(tmp_path)})

    def fails(error: type[Exception], weights: str = "ann/tok/w.safetensors", **job: Any) -> str:
        tokenizer = {**WITH_DECODER, "weights": f"hf://{weights}"}
        path = make_job(hub, tmp_path, tokenizer=tokenizer, **job)
        code = main(["check", str(path)])
        assert code == error.exit_code  # type: ignore[attr-defined]
        printed = "".join(capsys.readouterr())
        assert "Traceback" not in printed
        return printed

    assert "GatedRepoError" in fails(StorageError, "ann/gated/w.safetensors")
    assert "RepositoryNotFoundError" in fails(StorageError, "ann/none/w.safetensors")
    assert "RevisionNotFoundError" in fails(NotFound, "ann/tok@v9/w.safetensors")
    assert "tokenizer.weights: no file at hf://ann/tok@" in fails(ConfigError, "ann/tok/x")
    assert "nothing matches" in fails(ConfigError, uri=f"hf://{SET}/*.avi")
    assert "exclusive create" in fails(ConfigError, output={"uri": "hf://datasets/ann/out"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    as_a_new_process()
    assert "HF_HUB_OFFLINE is set" in fails(ConfigError)


def test_tables_and_tars_of_a_dataset_are_read_at_its_commit(hub: Hub, tmp_path: Path) -> None:
    _, _, files = fill(hub, tmp_path)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    rows = "".join(f'{{"file": "v/{name}", "n": 1}}\n' for name in files)
    commit = hub.repository(SET).commit(
        {
            "meta/train.jsonl": rows.encode(),
            "tars/000.tar": packed.getvalue(),
            **{f"meta/v/{name}": data for name, data in files.items()},
        }
    )
    table = {"kind": "table", "uri_column": "file"}
    made = []
    for number, (uri, source) in enumerate(
        [
            ("meta/train.jsonl", table),
            ("meta/*.jsonl", table),
            ("tars/{000..000}.tar", {"kind": "webdataset"}),
        ]
    ):
        folder = tmp_path / str(number)
        job = load_pinned(make_job(hub, folder, f"hf://{SET}/{uri}", source=source))
        run_without_ray(job)
        assert job.sources[0].uri == f"hf://{SET}@{commit}/{uri}"
        made.append(sorted(codes_of(job).values()))
        uris = {clip.source_uri for clip in open_output(str(folder / "out")).clips()}
        assert all(one.startswith(f"hf://{SET}@{commit}/") for one in uris), uris
    assert made[0] == made[1] == made[2]
    assert len(made[0]) == 2


def test_an_output_on_the_hub_is_read_audited_exported_and_decoded(
    hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(hub, tmp_path)
    job = load_pinned(make_job(hub, tmp_path))
    run_without_ray(job)
    out = tmp_path / "out"
    files = {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
    commit = hub.repository("datasets/ann/codes").commit({f"v1/{k}": v for k, v in files.items()})
    uri = "hf://datasets/ann/codes/v1"
    output = open_output(uri, job.storage)
    assert output.store.uri == f"hf://datasets/ann/codes@{commit}/v1"
    hub.repository("datasets/ann/codes").commit({})
    here = {clip.clip_id: clip.codes.tolist() for clip in open_output(str(out)).clips()}
    assert {clip.clip_id: clip.codes.tolist() for clip in output.clips()} == here
    storage = tmp_path / "storage.yaml"
    storage.write_text(json.dumps({"storage": hub.storage}))
    at = [f"hf://datasets/ann/codes@{commit}/v1", "--storage", str(storage)]
    assert main(["audit", *at]) == 0, capsys.readouterr()
    assert main(["export", *at, "--to", "huggingface", "-o", str(tmp_path / "hf")]) == 0
    assert list((tmp_path / "hf").rglob("*.parquet"))
    assert main(["decode", *at, "-o", str(tmp_path / "clip.mp4")]) == 2
    assert "--trust-uris" in capsys.readouterr().err
    assert main(["decode", *at, "--trust-uris", "-o", str(tmp_path / "clip.mp4")]) == 0
    assert (tmp_path / "clip.mp4").stat().st_size > 0


def test_convert_takes_a_checkpoint_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    commit = hub.repository("ann/tok").commit({"deep/w.safetensors": weights_of(tmp_path)})
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(WITH_DECODER))

    def convert(uri: str, folder: Path) -> tuple[int, str]:
        words = ["convert", uri, "--config", str(config), "-o", str(folder)]
        variables = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, "-m", "tokpipe.cli", *words],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    code, printed = convert(f"hf://ann/tok@{commit}/deep/w.safetensors", tmp_path / "made")
    assert code == 0, printed
    made = safetensors.torch.load_file(tmp_path / "made/model.safetensors")
    assert made.keys() == safetensors.torch.load(weights_of(tmp_path)).keys()
    code, printed = convert("hf://ann/tok/none.ckpt", tmp_path / "none")
    assert code == 2, printed
    assert "hf://ann/tok/none.ckpt: does not exist" in printed
