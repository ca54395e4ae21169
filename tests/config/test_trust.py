"""What a caller lets an output name decides which job its codes are decoded by."""

from pathlib import Path
from typing import Any

import pytest

from tokpipe.config import JobConfig, parse_job
from tokpipe.config.base import RECORDED
from tokpipe.config.job import StoreOptions
from tokpipe.config.tokenizer import CosmosDVConfig, VQGANConfig
from tokpipe.config.trust import Trust
from tokpipe.errors import ConfigError

JOB = (Path(__file__).parent / "native_job.yaml").read_text()
DECLARES = {"temporal_stride": 4, "spatial_stride": 8, "codebook_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "builtin": {"kind": "movqgan", "weights": "builtin://m/model.safetensors"},
    "elsewhere": {"kind": "movqgan", "weights": "s3://theirs/m"},
    "TorchScript": {
        "kind": "cosmos_dv",
        "variant": "4x8x8",
        "weights": "builtin://m/e",
        "decoder_weights": "https://theirs/d",
    },
    "class": {"kind": "custom", "implementation": "a:B", "declares": DECLARES},
}
OPTIONS = StoreOptions(options={"s3": {"endpoint_url": "http://mine"}})
OWN = VQGANConfig.model_validate({"kind": "movqgan", "weights": "s3://mine/m"})
OWN_PROGRAM = CosmosDVConfig(kind="cosmos_dv", variant="4x8x8", weights="/mine/e")


def recorded(kind: str) -> JobConfig:
    job = parse_job(JOB, name="job.yaml", root=Path("/project"), environ={})
    data = {**job.model_dump(mode="python"), "tokenizer": KINDS[kind]}
    return JobConfig.model_validate(data, context=RECORDED, strict=False)


@pytest.mark.parametrize(
    ("kind", "trust", "found"),
    [
        ("builtin", Trust(), ["builtin://m/model.safetensors"]),
        ("elsewhere", Trust(), "s3://theirs/m, were not opened.*pass --trust-uris, or --weights"),
        ("elsewhere", Trust(code=True), "--trust-uris"),
        ("elsewhere", Trust(uris=True), ["s3://theirs/m"]),
        ("elsewhere", Trust(weights="/mine/m"), ["/mine/m"]),
        ("elsewhere", Trust(tokenizer=OWN), ["s3://mine/m"]),
        ("elsewhere", Trust(weights="/mine/m", tokenizer=OWN), ["/mine/m"]),
        ("TorchScript", Trust(uris=True), "kind cosmos_dv is a program.*pass --trust-code"),
        ("TorchScript", Trust(weights="/mine/e"), "--trust-code"),
        ("TorchScript", Trust(code=True), "https://theirs/d, were not opened"),
        ("TorchScript", Trust(code=True, weights="/m/e"), ["/m/e", "/m/decoder.jit"]),
        ("TorchScript", Trust(code=True, weights="e.jit"), ["e.jit", "decoder.jit"]),
        ("TorchScript", Trust(tokenizer=OWN_PROGRAM), ["/mine/e", None]),
        ("class", Trust(uris=True, weights="/mine/w"), "--trust-code"),
        ("class", Trust(code=True), [None]),
        ("class", Trust(tokenizer=OWN), ["s3://mine/m"]),
    ],
)
def test_a_job_is_run_as_far_as_it_is_trusted(kind: str, trust: Trust, found: Any) -> None:
    if isinstance(found, str):
        with pytest.raises(ConfigError, match=f"^s3://theirs/out: .*{found}.*name its job file"):
            trust.job_of(recorded(kind), "s3://theirs/out")
        return
    job = Trust(**{**vars(trust), "storage": OPTIONS}).job_of(recorded(kind), "s3://theirs/out")
    names = ("weights", "decoder_weights")
    has = [getattr(job.tokenizer, name) for name in names if hasattr(job.tokenizer, name)]
    assert has == found
    assert job.storage == OPTIONS


def test_sources_are_opened_if_uris_are_trusted() -> None:
    Trust(uris=True).check_sources("s3://theirs/out")
    with pytest.raises(ConfigError, match="sources that it names were not opened"):
        Trust(weights="/mine/m", code=True).check_sources("s3://theirs/out")


def test_recorded_text_is_not_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CANARY", "secret")
    changed = recorded("builtin").model_dump(mode="json")
    names = ["${CANARY}", "~/x", "$CANARY/x", "relative", "${CANARY:-other}"]
    changed["sources"] = [{"kind": "files", "uri": name} for name in names]
    changed["sources"] += [
        {"kind": "table", "uri": name, "uri_template": name, "allowed_prefixes": [name]}
        for name in names
    ]
    job = JobConfig.model_validate(changed, context=RECORDED, strict=False)
    assert [one.uri for one in job.sources] == [*names, *names]
    assert "secret" not in job.model_dump_json()
