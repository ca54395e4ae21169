"""Chunk policies, quantizers, aspect buckets, spans and weights, through whole jobs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from tests.end_to_end.jobs import (
    NETWORK,
    SAMPLE,
    assert_complete,
    codes_of,
    codes_without_ray,
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

ENCODER = {**NETWORK, "z_channels": 4}
LFQ = {"kind": "lfq", "dim": 4}


def clips_of(job: Path) -> list[Clip]:
    return list(open_output(load_job(job).output.uri).clips())


@pytest.mark.ray
def test_clips_take_the_bucket_of_their_shape_and_chunks_overlap(
    tmp_path: Path, ray_address: str
) -> None:
    folder = tmp_path / "videos"
    write_video(folder / "wide.mp4", 33, size=(32, 64))
    write_video(folder / "tall.mp4", 12, seed=1, size=(64, 32))
    write_video(folder / "square.mp4", 9, seed=2, size=(64, 64))
    job = write_job(
        tmp_path / "job.yaml",
        files(folder),
        str(tmp_path / "out"),
        sampling={"fps": 8, "max_clip_frames": 64},
        frames={"buckets": [[32, 32], [16, 32], [32, 16]], "fit": "pad"},
        chunking={"policy": "overlap", "chunk_frames": 17, "overlap_latents": 1},
        tokenizer={
            "encoder": ENCODER,
            "quantizer": {"kind": "vq", "codebook_size": 70_000, "codebook_dim": 4},
        },
        output={"uri": str(tmp_path / "out")},
    )
    run_well(job, ray_address)
    assert_complete(job)
    assert codes_of(job) == codes_without_ray(job)
    clips = {Path(clip.source_uri).stem: clip for clip in clips_of(job)}
    # 33 frames are nine latents in three chunks; 12 frames are padded to 13.
    assert {name: (len(clip.chunks), *clip.codes.shape) for name, clip in clips.items()} == {
        "wide": (3, 9, 4, 8),
        "tall": (1, 4, 8, 4),
        "square": (1, 3, 8, 8),
    }
    for clip in clips.values():
        assert clip.codes.dtype == np.uint32
        assert clip.codes.max() < 70_000
        assert [chunk.first_is_image for chunk in clip.chunks] == [
            index == 0 for index in range(len(clip.chunks))
        ]
    assert len(open_output(str(tmp_path / "out")).shards) == 3  # one grid in each


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
        tokenizer={"encoder": ENCODER, "quantizer": LFQ},
        chunking={"policy": "whole"},
        max_rejected_fraction=1.0,
    )
    run_well(job, ray_address)
    assert_complete(job)
    clips = {clip.metadata["caption"]: clip for clip in clips_of(job)}
    assert clips.keys() == {"one", "two"}
    (one,) = clips["one"].chunks
    assert (one.n_frames, round(one.start_pts_s, 6), one.n_pad_frames) == (8, 1.0, 1)
    (two,) = clips["two"].chunks
    assert two.n_frames == 19  # 2.28 s at 8/s
    assert {(clip.codes.dtype, int(clip.codes.max()) < 16) for clip in clips.values()} == {
        (np.dtype(np.uint16), True)
    }
    reasons = [rejected.reason for rejected in open_output(str(tmp_path / "out")).rejected()]
    assert sorted(reasons) == ["bad_row", "bad_row", "bad_row", "missing", "too_short"]


@pytest.mark.ray
def test_weights_from_a_file_produce_their_codes_and_cannot_be_replaced(
    tmp_path: Path, ray_address: str
) -> None:
    write_video(tmp_path / "videos/a.mp4", 9)
    source, path = files(tmp_path / "videos"), tmp_path / "weights.safetensors"
    random = {"encoder": ENCODER, "quantizer": LFQ, "seed": 3}
    from_seed = write_job(tmp_path / "a.yaml", source, str(tmp_path / "a"), tokenizer=random)
    tokenizer = build_tokenizer(load_job(from_seed).tokenizer, None)
    path.write_bytes(safetensors.torch.save(tokenizer.state_dict()))
    stored = {**random, "seed": 0, "weights": str(path)}
    from_file = write_job(tmp_path / "b.yaml", source, str(tmp_path / "b"), tokenizer=stored)
    run_well(from_file, ray_address)
    assert codes_of(from_file) == codes_without_ray(from_seed)

    assert isinstance(tokenizer, NativeTokenizer)
    tokenizer.encoder.conv_in.conv.weight.data *= 1.5
    path.write_bytes(safetensors.torch.save(tokenizer.state_dict()))
    code, printed = run(from_file)
    assert code == 3, printed
    assert "weights: 'sha256 " in printed


@pytest.mark.ray
def test_weights_that_do_not_fit_end_the_job_with_their_keys(
    tmp_path: Path, ray_address: str
) -> None:
    write_video(tmp_path / "videos/a.mp4", 9)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save({"encoder.conv_in.bias": torch.zeros(3)}))
    stored = {"encoder": ENCODER, "quantizer": LFQ, "weights": str(path)}
    source, out = files(tmp_path / "videos"), str(tmp_path / "out")
    code, printed = run(write_job(tmp_path / "a.yaml", source, out, tokenizer=stored), ray_address)
    assert code == 2, printed
    assert "unexpected encoder.conv_in.bias" in printed
