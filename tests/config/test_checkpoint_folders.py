"""``tokenizer: {checkpoint: URI}`` is replaced by the section in that folder, with full URIs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tokpipe.config import JobConfig, parse_job
from tokpipe.config.checkpoint import builtin_path, read_local
from tokpipe.config.job import StoreOptions
from tokpipe.config.tokenizer import CosmosDVConfig, NativeConfig
from tokpipe.errors import ConfigError, NotFound

REPOSITORY = Path(__file__).parents[2]
DEMO = yaml.safe_load((REPOSITORY / "jobs/demo.yaml").read_text())
NATIVE = {
    "name": "small",
    "encoder": {"ch": 32, "z_channels": 6},
    "quantizer": {"kind": "fsq", "levels": [8, 8, 8, 5, 5, 5]},
}


def job_with(tokenizer: object, root: Path, read: Any = read_local, **environ: str) -> JobConfig:
    text = yaml.safe_dump({**DEMO, "tokenizer": tokenizer, "storage": {"deadline_s": 7.0}})
    return parse_job(text, name="job.yaml", root=root, environ=environ, read=read)


def folder(path: Path, section: object) -> Path:
    path.mkdir(parents=True)
    text = section if isinstance(section, str) else yaml.safe_dump(section)
    (path / "config.yaml").write_text(text)
    return path


def test_a_checkpoint_is_replaced_by_its_section_and_weights(tmp_path: Path) -> None:
    folder(tmp_path / "tokenizers/small", NATIVE)
    for uri in ("tokenizers/small", "tokenizers/small/", f"{tmp_path}/tokenizers/${{WHICH}}"):
        job = job_with({"checkpoint": uri}, tmp_path, WHICH="small")
        assert isinstance(job.tokenizer, NativeConfig)
        assert job.tokenizer.name == "small"
        assert job.tokenizer.weights == f"{tmp_path}/tokenizers/small/model.safetensors"
    assert JobConfig.model_validate_json(job.model_dump_json()) == job


def test_weights_are_next_to_the_config_and_the_job_chooses_programs(tmp_path: Path) -> None:
    files = {"weights": "encoder.jit", "decoder_weights": "parts/decoder.jit"}
    path = folder(tmp_path / "cosmos", {"kind": "cosmos_dv", "variant": "4x8x8", **files})
    tokenizer = job_with({"checkpoint": "cosmos", "kind": "cosmos_dv"}, tmp_path).tokenizer
    assert isinstance(tokenizer, CosmosDVConfig)
    assert tokenizer.weights == f"{path}/encoder.jit"
    assert tokenizer.decoder_weights == f"{path}/parts/decoder.jit"


@pytest.mark.parametrize(
    ("section", "kind", "problem"),
    [
        ({"kind": "cosmos_dv", "variant": "4x8x8"}, None, "kind is 'cosmos_dv'.*are programs"),
        ({"kind": "custom", "implementation": "a:B"}, None, "kind is 'custom', but the job's is"),
        ({"kind": "movqgan"}, "custom", "kind is 'movqgan', but the job's is 'custom'"),
        *(
            ({**NATIVE, "weights": weights}, None, "must be a file in this folder")
            for weights in (
                *(
                    "s3://models/m.safetensors",
                    "builtin://a/w",
                    "/etc/passwd",
                    "../up",
                    "a/../../up",
                ),
                *("file:///etc/passwd", "a\\..\\up", "%2e%2e/up", "~/w", "out", "away/w", ""),
            )
        ),
    ],
)
def test_a_folder_chooses_no_program_and_no_file_elsewhere(
    section: dict[str, Any], kind: str | None, problem: str, tmp_path: Path
) -> None:
    path = folder(tmp_path / "theirs", section)
    (tmp_path / "up").write_bytes(b"secret")
    (path / "out").symlink_to(tmp_path / "up")
    (path / "away").symlink_to(tmp_path)
    for uri in ("theirs", f"file://{path}"):
        with pytest.raises(ConfigError, match=f"(?s)^job.yaml: .*/config.yaml: .*{problem}"):
            job_with({"checkpoint": uri} | ({"kind": kind} if kind else {}), tmp_path)


def test_a_folder_in_a_store_is_read_by_the_callers_function(tmp_path: Path) -> None:
    seen = []

    def read(uri: str, options: StoreOptions) -> bytes:
        seen.append((uri, options.deadline_s))
        return yaml.safe_dump(NATIVE).encode()

    job = job_with({"checkpoint": "s3://models/small"}, tmp_path, read)
    assert seen == [("s3://models/small/config.yaml", 7.0)]
    assert job.tokenizer.weights == "s3://models/small/model.safetensors"
    with pytest.raises(ConfigError, match=r"s3://models/small/config.yaml is in a store"):
        job_with({"checkpoint": "s3://models/small"}, tmp_path)

    def fail(uri: str, options: StoreOptions) -> bytes:
        raise NotFound(f"nothing at {uri}")

    message = "^job.yaml: tokenizer.checkpoint: nothing at s3://m/x/config.yaml.*tokpipe convert"
    with pytest.raises(ConfigError, match=message):
        job_with({"checkpoint": "s3://m/x"}, tmp_path, fail)


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({**NATIVE, "encodr": {}}, r"tokenizer \(in .*/config.yaml\): unknown key 'encodr'"),
        ({**NATIVE, "encoder": {"chh": 3}}, r"tokenizer.encoder \(in .*\): unknown key 'chh'"),
        ({"kind": "movqgna"}, r"tokenizer.kind \(in .*\): found movqgna; write native, vqgan"),
        ({"checkpoint": "other"}, "names another checkpoint, but must hold its own settings"),
        (["encoder"], "config.yaml: is not a file of settings: it holds no keys"),
        ("a: [", "config.yaml: is not valid YAML"),
        (
            "name: a\nname: b",
            "is not valid YAML, near line 2: key 'name' appears twice",
        ),
        ({**NATIVE, "weights": "${HOME}/w"}, "'.{HOME}/w', but must be a file in this folder"),
    ],
)
def test_an_unusable_config_is_named(tmp_path: Path, section: object, problem: str) -> None:
    folder(tmp_path / "small", section)
    with pytest.raises(ConfigError, match=rf"(?s)^job.yaml: .*{problem}"):
        job_with({"checkpoint": "small"}, tmp_path, HOME="/root")


@pytest.mark.parametrize(
    ("tokenizer", "problem"),
    [
        ({"checkpoint": "nowhere"}, r"nowhere/config.yaml cannot be read: No such file"),
        ({"checkpoint": "fsq-4x8x8"}, "A checkpoint is a folder with config.yaml"),
        ({"checkpoint": "small", "name": "mine"}, "name next to it could contradict"),
        ({"checkpoint": 3}, "tokenizer.checkpoint: 3 must be the path or URI of a checkpoint"),
        ({"checkpoint": "${NOWHERE}"}, "environment variable NOWHERE is not set"),
        ({"checkpoint": "builtin://other"}, "builtin://other/config.yaml cannot be read"),
        ({"checkpoint": "builtin://../../config"}, "does not name a built-in checkpoint"),
        ("small", "found small; write a section with kind: native, "),
        ({"kind": 3}, "kind: found 3; write native, vqgan"),
    ],
)
def test_an_unusable_checkpoint_is_named(tmp_path: Path, tokenizer: object, problem: str) -> None:
    folder(tmp_path / "small", NATIVE)
    with pytest.raises(ConfigError, match=rf"^job.yaml: .*{problem}"):
        job_with(tokenizer, tmp_path)


def test_names_of_builtin_checkpoints_cannot_leave_the_package() -> None:
    path = builtin_path("builtin://one/model.safetensors")
    assert path == REPOSITORY / "tokpipe/models/pretrained/one/model.safetensors"
    for name in ("", "..", "a/../b", "/etc", "a//b", "a\n"):
        with pytest.raises(ConfigError, match="does not name a built-in checkpoint"):
            builtin_path(f"builtin://{name}")
