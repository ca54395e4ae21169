"""``tokpipe verify``: real tokenizers pass, and each planted mistake is found and named."""

import json
import os
import re
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml

from tests.end_to_end.jobs import files, write_job, write_video
from tests.models.adapter_helpers import randomize, small_native
from tests.models.test_adapters_cosmos import Decoder, Encoder, program
from tests.pages import REPOSITORY, blocks_of
from tokpipe.cli import main
from tokpipe.config.explain import validate_settings
from tokpipe.config.native_parts import FSQConfig, LFQConfig, Movq3DConfig
from tokpipe.config.tokenizer import AnyTokenizer
from tokpipe.models import tokenizers
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.models.tokenizers.native import NativeTokenizer

PARTS = "tests.verbs.verify_parts"
GREY = REPOSITORY / "examples/custom_tokenizer/grey_blocks.yaml"
SMALL = ["--size", "48", "64", "--device", "cpu"]


@pytest.fixture
def verified(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the verb, checks its exit code, and returns its JSON, or its error if there is none."""

    def run(tokenizer: object, *options: str, exit_code: int = 0) -> Any:
        assert main(["verify", str(tokenizer), *SMALL, "--json", *options]) == exit_code
        printed = capsys.readouterr()
        return json.loads(printed.out) if printed.out else printed.err

    return run


def section(folder: Path, **changes: Any) -> Path:
    """A file with the tokenizer section of the example, changed."""
    declared = yaml.safe_load(GREY.read_text())
    declared["implementation"] = "examples.custom_tokenizer.grey_blocks:GreyBlocks"
    for key, value in changes.items():
        declared[key] = {**declared[key], **value} if isinstance(value, dict) else value
    path = folder / "section.yaml"
    path.write_text(yaml.safe_dump(declared))
    return path


def test_the_built_in_tokenizer_passes_and_the_figures_are_right(verified: Any) -> None:
    found = verified("builtin://fsq-4x8x8")
    assert found["failed"] == []
    assert found["tokenizer"] == "tokpipe-fsq-4x8x8 (native)"
    assert re.fullmatch("sha256 [0-9a-f]{64}", found["weights"])
    assert found["traits"]["codebook_size"] == 64_000
    assert found["pixels"] == [2, 17, 48, 64, 3]
    ways = ("again", "alone", "beside another clip", "in pieces")
    assert {way: found["same_codes"][way] for way in ways} == dict.fromkeys(ways, 1.0)
    assert 0.98 < found["same_codes"]["bfloat16"] <= 1
    for name in ("chart", "clip"):
        assert found[name]["codes"] == 5 * 6 * 8
        assert 30 < found[name]["distinct"] <= 240
        assert 4 < found[name]["entropy_bits"] < np.log2(240)
        assert 10 < found[name]["psnr_db"] < 35
    assert found["chart"] != found["clip"]


def test_a_clip_is_decoded_at_the_size_and_repeats_its_last_frame(
    verified: Any, tmp_path: Path
) -> None:
    write_video(tmp_path / "a.mp4", num_frames=5, size=(96, 128))
    found = verified(section(tmp_path), "--clip", str(tmp_path / "a.mp4"))
    assert found["pixels"] == [2, 17, 48, 64, 3]
    chart = verified(section(tmp_path))
    assert found["chart"] == chart["chart"]
    assert found["clip"] != chart["clip"]
    problem = verified(section(tmp_path), "--clip", str(tmp_path / "b.mp4"), exit_code=2)
    assert "b.mp4" in problem


def test_a_job_a_section_and_a_folder_name_the_same_tokenizer(
    verified: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_native(FSQConfig(kind="fsq"))
    tokenizer = build_tokenizer(config, None)
    data = config.model_dump(mode="json", exclude_unset=True)
    folder = tmp_path / "small"
    folder.mkdir()
    safetensors.torch.save_file(dict(tokenizer.state_dict()), folder / "model.safetensors")
    (folder / "config.yaml").write_text(yaml.safe_dump(data))
    weights = str(folder / "model.safetensors")
    job = write_job(
        tmp_path / "job.yaml", files(tmp_path), "out", tokenizer={**data, "weights": weights}
    )
    (tmp_path / "section.yaml").write_text(yaml.safe_dump({**data, "weights": weights}))
    monkeypatch.chdir(tmp_path)
    names = (job, "section.yaml", folder, "small", "small/config.yaml", folder.as_uri())
    found = [verified(named) for named in names]
    assert all(one == found[0] for one in found)
    assert found[0]["has_decoder"] is False
    assert "psnr_db" not in found[0]["clip"]
    assert "random, seed 0" not in found[0]["weights"]


SMALL_EMU3 = {
    "base_channels": 32,
    "channel_multiplier": [1, 1, 1, 2],
    "num_res_blocks": 1,
    "codebook_size": 50,
}


@pytest.mark.parametrize("with_decoder", [True, False])
@pytest.mark.parametrize(
    ("settings", "shape", "ways"),
    [
        (
            {"kind": "movqgan", "ch": 32, "ch_mult": [1, 1, 1, 2], "codebook_size": 50},
            [2, 17, 48, 64, 3],
            {"in pieces", "bfloat16"},
        ),
        ({"kind": "emu3", **SMALL_EMU3}, [2, 4, 48, 64, 3], {"bfloat16"}),
    ],
    ids=["movqgan", "emu3"],
)
def test_published_kinds_pass_with_and_without_their_decoder(
    with_decoder: bool,
    settings: dict[str, Any],
    shape: list[int],
    ways: set[str],
    verified: Any,
    tmp_path: Path,
) -> None:
    weights = str(tmp_path / "model.safetensors")
    config = validate_settings(AnyTokenizer, {**settings, "weights": weights}, name="test")
    model = tokenizers._KINDS[type(config)](config, with_decoder=with_decoder)
    randomize(model)
    safetensors.torch.save_file(dict(model.state_dict()), weights)
    path = tmp_path / "section.yaml"
    path.write_text(yaml.safe_dump({**settings, "weights": weights}))
    found = verified(path)
    assert found["failed"] == []
    assert found["pixels"] == shape
    assert found["has_decoder"] is with_decoder
    assert ("psnr_db" in found["chart"]) is with_decoder
    assert found["same_codes"].keys() == {"again", "alone", "beside another clip", *ways}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("with_decoder", [True, False])
def test_torchscript_passes(with_decoder: bool, verified: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    (tmp_path / "encoder.jit").write_bytes(program(Encoder()))
    (tmp_path / "decoder.jit").write_bytes(program(Decoder()))
    data = {"kind": "cosmos_dv", "variant": "4x8x8", "weights": "encoder.jit"}
    data |= {"decoder_weights": "decoder.jit"} if with_decoder else {}
    (tmp_path / "section.yaml").write_text(yaml.safe_dump(data))
    found = verified(tmp_path / "section.yaml")
    assert found["failed"] == []
    assert found["pixels"] == [2, 17, 48, 64, 3]
    assert found["has_decoder"] is with_decoder


def test_random_weights_are_called_random(verified: Any, tmp_path: Path) -> None:
    decoder = Movq3DConfig(kind="movq_3d", ch=32, ch_mult=(1, 1), num_res_blocks=1)
    config = small_native(LFQConfig(kind="lfq", dim=8), decoder=decoder)
    path = tmp_path / "section.yaml"
    path.write_text(config.model_dump_json(exclude_unset=True))
    found = verified(path, "--dtype", "bfloat16")
    assert found["weights"] == "random, seed 0"
    assert found["has_decoder"]
    assert found["computed"].startswith("bfloat16")
    assert set(found["same_codes"]) == {"again", "alone", "beside another clip", "float32"}
    assert found["parameters"] == sum(
        one.numel() for one in build_tokenizer(config, None, with_decoder=True).parameters()
    )


def test_the_example_equals_its_reference(verified: Any, tmp_path: Path) -> None:
    reference = "examples.custom_tokenizer.reference:codes_of"
    found = verified(section(tmp_path), "--reference", reference)
    assert found["failed"] == []
    assert found["same_codes"]["reference"] == 1
    assert "bfloat16" not in found["same_codes"]  # the class has no compute_in
    assert found["first_differences"] == []


@pytest.mark.parametrize("reference", ["reversed_bits", "columns_first", "other_range"])
def test_a_reference_that_differs_fails(reference: str, verified: Any, tmp_path: Path) -> None:
    found = verified(section(tmp_path), "--reference", f"{PARTS}:{reference}", exit_code=8)
    assert found["failed"] == [f"other codes than those of {PARTS}:{reference}"]
    assert found["same_codes"]["reference"] < 0.9
    assert len(found["first_differences"]) == 3


def test_a_few_codes_may_round_otherwise_and_are_shown(verified: Any, tmp_path: Path) -> None:
    found = verified(section(tmp_path), "--reference", f"{PARTS}:nearly")
    assert found["failed"] == []
    assert found["same_codes"]["reference"] == 1 - 1 / (2 * 17 * 6 * 8)
    assert found["first_differences"] == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("nowhere:f", "ModuleNotFoundError: No module named 'nowhere'"),
        (f"{PARTS}:nothing", "AttributeError"),
        (f"{PARTS}:too_few", r"takes uint8 \(2, 17, 48, 64, 3\) and returns 1632 codes"),
    ],
)
def test_a_reference_that_cannot_be_used_is_an_error(
    reference: str, problem: str, verified: Any, tmp_path: Path
) -> None:
    error = verified(section(tmp_path), "--reference", reference, exit_code=2)
    assert re.search(problem, error), error


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Leaks", "different codes for the second clip than alone"),
        ("Samples", "different codes the second time"),
        ("NotFinite", "codes from -1 to -1, but the codebook has 0 to 63"),
        ("Cuts", "in pieces, raised TypeError: different codes than whole"),
    ],
)
def test_what_the_probe_of_noise_does_not_show_fails_on_the_pictures(
    name: str, problem: str, verified: Any, tmp_path: Path
) -> None:
    path = section(tmp_path, implementation=f"{PARTS}:{name}", probe_size=[32, 40])
    found = verified(path, exit_code=8)
    assert re.search(problem, found["failed"][0]), found["failed"]
    assert found["tokenizer"] == "grey-blocks (custom)"
    assert "same_codes" not in found


def test_what_the_probe_of_noise_shows_is_an_error(verified: Any, tmp_path: Path) -> None:
    path = section(tmp_path, implementation=f"{PARTS}:Samples", probe_size=[48, 64])
    assert "different codes the second time" in verified(path, exit_code=2)


def test_native_networks_must_be_exact_in_calls_of_any_size(
    verified: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = NativeTokenizer._encode

    def depends_on_the_number_of_clips(self: NativeTokenizer, x: torch.Tensor) -> torch.Tensor:
        codes = encode(self, x)
        codes[:, 0, 0, 0] = len(x)
        return codes

    monkeypatch.setattr(NativeTokenizer, "_encode", depends_on_the_number_of_clips)
    found = verified("builtin://fsq-4x8x8", exit_code=8)
    assert found["failed"] == ["other codes alone", "other codes in pieces"]
    assert found["same_codes"]["alone"] == 1 - 1 / 240


def test_an_encoder_alone_passes_and_it_is_said(verified: Any, tmp_path: Path) -> None:
    found = verified(section(tmp_path, implementation=f"{PARTS}:EncodeOnly"))
    assert found["has_decoder"] is False
    assert found["failed"] == []
    assert "psnr_db" not in found["chart"]


@pytest.mark.parametrize(
    ("declares", "shape"),
    [
        ({"chunk_frames": 4, "why_not_streamable": "it is not"}, [2, 4, 256, 256, 3]),
        ({"size_multiple": 24}, [2, 17, 264, 264, 3]),
    ],
)
def test_frames_and_size_follow_the_traits(
    declares: dict[str, Any], shape: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = section(tmp_path, declares=declares)
    assert main(["verify", str(path), "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["pixels"] == shape


def test_a_size_that_does_not_fit_is_an_error(verified: Any, tmp_path: Path) -> None:
    problem = verified(section(tmp_path), "--size", "50", "64", exit_code=2)
    assert "--size: height 50 is not a multiple" in problem
    square = section(tmp_path, declares={"square_only": True})
    assert "frames of 48x64 are not square" in verified(square, exit_code=2)


def test_the_page_shows_what_is_printed(verified: Any) -> None:
    page = REPOSITORY / "docs/tokenizers.md"
    (shown,) = [block.code for block in blocks_of("docs/tokenizers.md") if block.language == "text"]
    found, printed = verified("builtin://fsq-4x8x8", "--size", "128", "128"), yaml.safe_load(shown)
    assert list(found) == list(printed)
    same = ("tokenizer", "weights", "parameters", "traits", "has_decoder", "pixels", "failed")
    assert {key: found[key] for key in same} == {key: printed[key] for key in same}
    for clip in ("chart", "clip"):
        assert found[clip].keys() == printed[clip].keys()
        assert abs(found[clip]["psnr_db"] - printed[clip]["psnr_db"]) < 0.1
    assert found["same_codes"].keys() == printed["same_codes"].keys()
    assert "`first_differences`" in page.read_text()


def test_the_text_names_neither_machine_nor_user_nor_paths(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = section(tmp_path)
    write_video(tmp_path / "a.mp4", num_frames=5)
    assert main(["verify", str(path), *SMALL, "--clip", str(tmp_path / "a.mp4")]) == 0
    text = capsys.readouterr().out
    for private in (str(tmp_path), socket.gethostname(), os.path.expanduser("~")):  # noqa: PTH111
        assert private not in text
    assert yaml.safe_load(text)["failed"] == []
