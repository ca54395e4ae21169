"""Jobs that name a converted checkpoint folder, or a class from outside the package."""

from pathlib import Path

import pytest
import torch

from tests.end_to_end.jobs import (
    assert_complete,
    codes_of,
    files,
    run_well,
    run_without_ray,
    slow_tokenizer,
    write_job,
    write_video,
)
from tests.models.adapter_helpers import randomize
from tokpipe.config import load_job
from tokpipe.config.tokenizer import VQGANConfig
from tokpipe.formats import job_record
from tokpipe.models.tokenizers.vqgan import VQGANTokenizer
from tokpipe.storage import Store
from tokpipe.weights.convert import convert


@pytest.mark.ray
def test_a_converted_checkpoint_is_named_by_its_folder(tmp_path: Path, ray_address: str) -> None:
    tiny = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1, "codebook_size": 50}
    small = VQGANConfig.model_validate({"kind": "movqgan", "weights": "-", **tiny})
    model = VQGANTokenizer(small, with_decoder=True)
    randomize(model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "m.ckpt")
    list(convert(tmp_path / "m.ckpt", tmp_path / "movqgan", kind="movqgan"))
    write_video(tmp_path / "videos/a.mp4", 5)
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        tokenizer={"checkpoint": str(tmp_path / "movqgan")},
    )
    run_well(job, ray_address)
    assert_complete(job)
    ((shape, codes),) = codes_of(job).values()
    assert shape == (5, 4, 4)
    assert len(set(codes)) > 3
    record = job_record.read(Store(str(tmp_path / "out"), load_job(job).storage))
    assert record.job["tokenizer"]["weights"] == f"{tmp_path}/movqgan/model.safetensors"
    assert record.settings["weights"].startswith("sha256 ")

    # With another decoder the codes are the same: the output is resumed, and is done.
    torch.nn.init.zeros_(model.get_parameter("decoder.conv_in.weight"))
    torch.save({"state_dict": model.state_dict()}, tmp_path / "m.ckpt")
    for name in ("config.yaml", "model.safetensors"):
        (tmp_path / "movqgan" / name).unlink()
    list(convert(tmp_path / "m.ckpt", tmp_path / "movqgan", kind="movqgan"))
    assert "done" in run_well(job)


def test_an_output_keeps_what_a_custom_tokenizer_declares(tmp_path: Path) -> None:
    write_video(tmp_path / "videos/a.mp4", 5)
    tokenizer = slow_tokenizer(until=tmp_path)
    tokenizer["declares"] |= {"bit_order": "big", "licence": "MIT"}
    source, out = files(tmp_path / "videos"), str(tmp_path / "out")
    config = load_job(write_job(tmp_path / "job.yaml", source, out, tokenizer=tokenizer))
    run_without_ray(config)
    spec = job_record.read(Store(out, config.storage)).tokenizer
    assert (spec.bit_order, spec.licence, spec.first_frames) == ("big", "MIT", 1)
