"""Every chunk policy and quantizer, aspect buckets, films and spans, through a whole job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.end_to_end.jobs import (
    SAMPLE,
    assert_complete,
    codes_of,
    files,
    run,
    run_well,
    write_job,
    write_video,
)
from tokpipe.config import load_job
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.models.tokenizers.native import NativeTokenizer
from tokpipe.reader import Clip, open_output

ENCODER = {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 4}
QUANTIZERS: dict[str, dict[str, Any]] = {
    "vq": {"kind": "vq", "codebook_size": 70_000, "codebook_dim": 4},
    "lfq": {"kind": "lfq", "dim": 4},
    "fsq": {"kind": "fsq", "levels": [3, 3, 3, 3]},
}


def clips_of(job: Path) -> list[Clip]:
    return list(open_output(load_job(job).output.uri).clips())


@pytest.mark.ray
@pytest.mark.parametrize(
    ("policy", "quantizer", "dtype"),
    [("overlap", "vq", np.uint32), ("whole", "lfq", np.uint16), ("independent", "fsq", np.uint16)],
)
def test_policies_and_quantizers_give_codes_of_their_layout(
    tmp_path: Path, ray_address: str, policy: str, quantizer: str, dtype: type[np.generic]
) -> None:
    write_video(tmp_path / "videos/a.mp4", 33)
    write_video(tmp_path / "videos/b.mp4", 12, seed=1)
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        sampling={"fps": 8, "max_clip_frames": 64},
        chunking={"policy": policy, "chunk_frames": 17, "overlap_latents": 1},
        tokenizer={"encoder": ENCODER, "quantizer": QUANTIZERS[quantizer]},
    )
    run_well(job, ray_address)
    assert_complete(job)
    lengths = {len(clip.chunks): len(clip.codes) for clip in clips_of(job)}
    # 33 frames: 17 + 16 padded to 17; or 9 latents in a row. 12 frames: padded to 13.
    assert (
        lengths
        == {
            "independent": {2: 5 + 5, 1: 4},
            "overlap": {3: 9, 1: 4},
            "whole": {1: 9} if policy != "whole" else lengths,
        }[policy]
    )
    for clip in clips_of(job):
        assert clip.codes.dtype == dtype
        assert clip.codes.max() < load_job(job).tokenizer.traits.codebook_size
        assert sum(chunk.n_frames for chunk in clip.chunks) in (33, 12)
        images = [chunk.first_is_image for chunk in clip.chunks]
        assert images == [policy != "overlap" or index == 0 for index in range(len(images))]


@pytest.mark.ray
def test_weights_from_a_file_give_their_codes_and_cannot_be_swapped(
    tmp_path: Path, ray_address: str
) -> None:
    write_video(tmp_path / "videos/a.mp4", 9)
    source, path = files(tmp_path / "videos"), tmp_path / "weights.safetensors"
    random = {"encoder": ENCODER, "quantizer": QUANTIZERS["lfq"], "seed": 3}
    from_seed = write_job(tmp_path / "a.yaml", source, str(tmp_path / "a"), tokenizer=random)
    tokenizer = build_tokenizer(load_job(from_seed).tokenizer, None)
    path.write_bytes(safetensors.torch.save(tokenizer.state_dict()))
    stored = {**random, "seed": 0, "weights": str(path)}
    from_file = write_job(tmp_path / "b.yaml", source, str(tmp_path / "b"), tokenizer=stored)
    run_well(from_seed, ray_address)
    run_well(from_file, ray_address)
    assert codes_of(from_file) == codes_of(from_seed)

    assert isinstance(tokenizer, NativeTokenizer)
    tokenizer.encoder.conv_in.conv.weight.data *= 1.5
    path.write_bytes(safetensors.torch.save(tokenizer.state_dict()))
    code, printed = run(from_file, ray_address)
    assert code == 3, printed
    assert "weights: 'sha256 " in printed


@pytest.mark.ray
def test_weights_that_do_not_fit_end_the_job_with_the_keys(
    tmp_path: Path, ray_address: str
) -> None:
    write_video(tmp_path / "videos/a.mp4", 9)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save({"encoder.conv_in.bias": torch.zeros(3)}))
    stored = {"encoder": ENCODER, "quantizer": QUANTIZERS["lfq"], "weights": str(path)}
    source, out = files(tmp_path / "videos"), str(tmp_path / "out")
    code, printed = run(write_job(tmp_path / "a.yaml", source, out, tokenizer=stored), ray_address)
    assert code == 2, printed
    assert "unexpected encoder.conv_in.bias" in printed


@pytest.mark.ray
def test_clips_take_the_bucket_of_their_shape_and_shards_hold_one(
    tmp_path: Path, ray_address: str
) -> None:
    write_video(tmp_path / "videos/wide.mp4", 9, size=(32, 64))
    write_video(tmp_path / "videos/tall.mp4", 9, seed=1, size=(64, 32))
    write_video(tmp_path / "videos/square.mp4", 9, seed=2, size=(64, 64))
    job = write_job(
        tmp_path / "job.yaml",
        files(tmp_path / "videos"),
        str(tmp_path / "out"),
        frames={"buckets": [[32, 32], [16, 32], [32, 16]], "fit": "pad"},
        output={"uri": str(tmp_path / "out")},
    )
    run_well(job, ray_address)
    assert_complete(job)
    grids = {Path(clip.source_uri).stem: clip.codes.shape[1:] for clip in clips_of(job)}
    assert grids == {"wide": (4, 8), "tall": (8, 4), "square": (8, 8)}
    assert len(open_output(str(tmp_path / "out")).shards) == 3


@pytest.mark.ray
def test_spans_of_a_table_become_clips_and_bad_rows_are_rejected_alone(
    tmp_path: Path, ray_address: str
) -> None:
    rows: list[dict[str, Any]] = [
        {"path": str(SAMPLE), "from": 1.0, "to": 2.0, "caption": "one"},
        {"path": str(SAMPLE), "from": "00:00:03", "to": None, "caption": "two"},
        {"path": str(SAMPLE), "from": 3.0, "to": 2.0, "caption": "backwards"},
        {"path": str(SAMPLE), "from": 100.0, "to": 101.0, "caption": "beyond"},
        {"path": None, "from": None, "to": None, "caption": "nowhere"},
        {"path": "missing.mp4", "from": None, "to": None, "caption": "missing"},
        {"path": "/etc/passwd", "from": None, "to": None, "caption": "not allowed"},
    ]
    table = tmp_path / "table.jsonl"
    table.write_text("\n".join(map(json.dumps, rows)))
    source = {
        "kind": "table",
        "uri": str(table),
        "uri_column": "path",
        "start_column": "from",
        "end_column": "to",
        "allowed_prefixes": [str(SAMPLE.parent), str(tmp_path)],
    }
    job = write_job(
        tmp_path / "job.yaml",
        source,
        str(tmp_path / "out"),
        sampling={"fps": 8, "max_clip_frames": 64},
        max_rejected_fraction=1.0,
    )
    run_well(job, ray_address)
    assert_complete(job)
    clips = {clip.metadata["caption"]: clip for clip in clips_of(job)}
    assert clips.keys() == {"one", "two"}
    (one,) = clips["one"].chunks
    assert (one.n_frames, round(one.start_pts_s, 6), one.n_pad_frames) == (8, 1.0, 1)
    assert sum(chunk.n_frames for chunk in clips["two"].chunks) == 19  # 2.28 s at 8/s
    reasons = [rejected.reason for rejected in open_output(str(tmp_path / "out")).rejected()]
    assert sorted(reasons) == ["bad_row", "bad_row", "bad_row", "missing", "too_short"]
