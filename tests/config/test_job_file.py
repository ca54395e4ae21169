"""Job files: what is rejected and how; relative paths and variables."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tokpipe.config import JobConfig, load_job, parse_job, project_root
from tokpipe.config.sources import FilesSource
from tokpipe.errors import ConfigError
from tokpipe.identity import fingerprint_settings

REPOSITORY = Path(__file__).parents[2]
JOB = (Path(__file__).parent / "native_job.yaml").read_text()
WEBVID_VARIABLES = {
    "WEBVID_TABLE": "s3://b/t.csv",
    "WEBVID_VIDEOS": "s3://b/v",
    "TOKENIZER_WEIGHTS": "s3://b/w.safetensors",
    "OUTPUT": "s3://b/out",
}


def parse(text: str, environ: dict[str, str] | None = None) -> JobConfig:
    return parse_job(text, name="job.yaml", root=Path("/project"), environ=environ or {})


def hashed(job: JobConfig) -> dict[str, Any]:
    """The settings in the fingerprint of a job."""
    return fingerprint_settings(job, weights_hash="w", device="cpu", decoders={"av": "18.1.0"})


def test_the_example_jobs_are_valid() -> None:
    assert load_job(REPOSITORY / "jobs/demo.yaml").dataset == "demo"
    webvid = load_job(REPOSITORY / "jobs/webvid.yaml", environ=WEBVID_VARIABLES)
    assert webvid.output.uri == "s3://b/out"
    assert webvid.sources[0].uri == "s3://b/t.csv"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("dataset:", "datset:", r"unknown key 'datset'; did you mean 'dataset'\?"),
        ("    ch:", "    chh:", r"tokenizer\.encoder: unknown key 'chh'; did you mean 'ch'\?"),
        ("levels:", "level:", r"unknown key 'level'; did you mean 'levels'\?"),
        ("  fps: 8", "  zzzzzzz: 8", r"sampling: unknown key 'zzzzzzz'; the keys here are: fps"),
        ("fps: 8", 'fps: "8"', r"sampling\.fps: found '8'; write 8\.0$"),
        (
            "kind: fsq",
            "kind: fsqq",
            r"tokenizer\.quantizer\.kind: found fsqq; write vq, ema_vq, fsq,",
        ),
        ("chunk_frames: 17", "chunk_frames: 18", r"chunk_frames=18 .* stride 4: use 17 or 21"),
        ("[128, 128]", "[100, 128]", r"height 100 is not a multiple .* stride 8: use 96 or 104"),
        ("z_channels: 6", "z_channels: 5", r"quantizer takes 6 channels but .*z_channels=5"),
        ("ch: 32", "ch: 33", r"ch=33 .* not a multiple of 32"),
        ("max_clip_frames: 17", "max_clip_frames: 99999", r"more than 128 MiB: use 2730 or fewer"),
        ("dataset: demo", "dataset: demo\ndataset: demo", r"key 'dataset' appears twice"),
        ("dataset: demo", "dataset: [", r"not valid YAML"),
        ("uri: out/demo", "uri: ''", r"output\.uri: is empty"),
        ("uri: out/demo", "uri: out/${NOWHERE}", r"output\.uri: .* NOWHERE is not set"),
        ("uri: out/demo", "uri: s3:/b/x", r"output\.uri: .* looks like a variable or a URI"),
        ("uri: out/demo", "uri: $OUT/x", r"output\.uri: .* looks like a variable or a URI"),
    ],
)
def test_an_error_names_the_key_and_the_fix(old: str, new: str, message: str) -> None:
    assert old in JOB
    with pytest.raises(ConfigError, match=message):
        parse(JOB.replace(old, new, 1))


def test_relative_paths_start_at_the_project(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "jobs" / "deep").mkdir(parents=True)
    job_path = tmp_path / "jobs" / "deep" / "job.yaml"
    job_path.write_text(JOB)
    assert project_root(job_path) == tmp_path
    job = load_job(job_path)
    assert job.output.uri == str(tmp_path / "out/demo")
    assert job.sources[0].uri == str(tmp_path / "examples/data/*.mp4")


def test_without_a_project_paths_start_next_to_the_jobs_folder(tmp_path: Path) -> None:
    for place in ("jobs/job.yaml", "job.yaml"):
        assert project_root(tmp_path / place) == tmp_path


def test_variables_are_expanded_and_uris_and_absolute_paths_are_kept_as_written() -> None:
    text = JOB.replace("uri: out/demo", "uri: ${BUCKET}/${RUN:-first}")
    assert parse(text, {"BUCKET": "s3://b"}).output.uri == "s3://b/first"
    assert parse(text, {"BUCKET": "s3://b", "RUN": "2"}).output.uri == "s3://b/2"
    for uri in ("s3://bucket/a*b", "memory://x", "/abs/**/*.mp4"):
        job = parse(JOB.replace("examples/data/*.mp4", uri))
        assert isinstance(job.sources[0], FilesSource)
        assert job.sources[0].uri == uri


def test_checking_a_job_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tokpipe.config import load_job; load_job('jobs/demo.yaml'); "
        "import tokpipe.cli, tokpipe.run; "
        "sys.exit(str([m for m in ('torch', 'ray', 'pyarrow', 'av') if m in sys.modules] or ''))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""


def test_streamed_clips_cannot_continue_from_a_damaged_piece() -> None:
    settings = parse(JOB).model_dump()
    settings["decode"]["on_damage"] = "mark"
    JobConfig.model_validate(settings)
    settings["chunking"]["policy"] = "streaming"
    settings["tokenizer"]["norm"] = "frame"
    with pytest.raises(ValueError, match=r"on_damage=mark does not work with .*streaming"):
        JobConfig.model_validate(settings)


def test_the_rule_for_damage_is_part_of_the_fingerprint() -> None:
    rule = {"backends": ["pyav"], "libraries": {"av": "18.1"}, "on_damage": "reject"}
    assert hashed(parse(JOB))["decode"] == rule
    marked = parse(f"{JOB}\ndecode:\n  on_damage: mark\n")
    assert hashed(marked)["decode"] == {**rule, "on_damage": "mark"}


def test_the_rule_for_decoders_is_part_of_the_fingerprint_and_patch_releases_are_not() -> None:
    jobs = {name: parse(f"{JOB}\ndecode:\n  backend: {name}\n") for name in ("pyav", "decord")}
    assert hashed(jobs["pyav"]) == hashed(parse(JOB))
    assert hashed(jobs["decord"])["decode"]["backends"] == ["decord", "pyav"]
    for version, is_same in (("18.1.7", True), ("18.2.0", False), ("19.0", False)):
        found = fingerprint_settings(
            parse(JOB), weights_hash="w", device="cpu", decoders={"av": version}
        )
        assert (found == hashed(parse(JOB))) == is_same


def test_the_two_names_of_zeros_before_the_first_frame_are_one_in_the_fingerprint() -> None:
    """Outputs of earlier versions, which only knew ``constant``, can be continued."""
    jobs = {
        name: parse(JOB.replace("    ch: 32", f"    ch: 32\n    pad_mode: {name}"))
        for name in ("first", "constant", "constant_causal", "constant_published")
    }
    found = {name: hashed(job)["tokenizer"]["encoder"]["pad_mode"] for name, job in jobs.items()}
    assert found == {name: name for name in jobs} | {"constant_causal": "constant"}
    assert hashed(jobs["first"]) == hashed(parse(JOB))
    assert set(hashed(parse(JOB))["tokenizer"]["encoder"]) == {
        *("kind", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution"),
        *("pad_mode", "z_channels", "temporal_compress_times"),
    }


def test_settings_that_earlier_outputs_do_not_have_are_hashed_where_they_were_set() -> None:
    plain = hashed(parse(JOB))["tokenizer"]
    assert set(plain) == {"kind", "encoder", "quantizer", "patch_size", "norm"}
    assert set(plain["quantizer"]) == {"kind", "levels"}
    for old, new, (section, name) in (
        ("    ch: 32", "    ch: 32\n    resamp_with_conv: false", ("encoder", "resamp_with_conv")),
        ("    kind: fsq", "    kind: fsq\n    num_codebooks: 1\n    dim: 6", ("quantizer", "dim")),
    ):
        found = hashed(parse(JOB.replace(old, new)))["tokenizer"]
        assert set(found[section]) == {*plain[section], name}
    with_conv = hashed(parse(JOB.replace("  encoder:", "  quant_conv: true\n  encoder:")))
    assert with_conv["tokenizer"] == {**plain, "quant_conv": True}


def test_logs_are_local_and_do_not_change_the_fingerprint() -> None:
    for written, meant in (
        ("logs/run.jsonl", "/project/logs/run.jsonl"),
        ("${LOGS}/run.jsonl", "/logs/run.jsonl"),
        *(("/tmp/run.jsonl", "/tmp/run.jsonl"), ("'-'", "-")),
        *(("null", None), ("${TOKPIPE_LOG:-}", None)),
    ):
        job = parse(f"{JOB}\nruntime:\n  log_path: {written}\n", {"LOGS": "/logs"})
        assert job.runtime.log_path == meant
        assert hashed(job) == hashed(parse(JOB))
    with pytest.raises(ConfigError, match=r"runtime\.log_path: is a URI, and stores cannot append"):
        parse(f"{JOB}\nruntime:\n  log_path: s3://b/run.jsonl\n")
