import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from examples.demo_tokenizer.evaluate import (
    evaluate,
    main,
    open_checkpoint,
    read_clips,
    side_by_side,
)
from tests.videos import numbers_of, write_video
from tokpipe.media.quality import psnr_db

SAMPLE = Path(__file__).parents[2] / "examples" / "data" / "bigbuckbunny.mp4"
BUILT_IN = "builtin://fsq-4x8x8"

Capture = pytest.CaptureFixture[str]

FLOOR_DB = 22.0
"""Between the quality of the built-in checkpoint and that of a damaged one."""


def test_the_built_in_checkpoint_restores_held_out_frames(tmp_path: Path, capsys: Capture) -> None:
    picture = tmp_path / "side.png"
    frames = ["--start", "92", "--end", "109", "--picture", str(picture)]
    assert main([BUILT_IN, str(SAMPLE), *frames]) == 0
    measures = json.loads(capsys.readouterr().out)
    assert measures["num_frames"] == 17
    assert measures["codes"] == 5 * 16 * 16
    assert measures["psnr_db"] > FLOOR_DB
    assert measures["bfloat16_code_agreement"] > 0.95
    assert 1 < measures["code_perplexity"] <= measures["codes_used"] <= measures["codes"]
    with av.open(str(picture)) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    (source,) = read_clips(SAMPLE, 128, 17, 92, 109)
    assert shown.shape == (256, 512, 3)
    assert np.array_equal(shown[:128, :128], source[0])
    assert np.array_equal(shown[:128, 384:], source[16])
    assert psnr_db(source[:1], shown[None, 128:, :128])[0] > FLOOR_DB


def test_measures_are_of_what_encode_and_decode_return() -> None:
    tokenizer = open_checkpoint(BUILT_IN)
    clips = list(read_clips(SAMPLE, 32, 5, 92, 102))
    measures, shown = evaluate(tokenizer, clips)
    codes = [tokenizer.encode(torch.from_numpy(clip)[None]) for clip in clips]
    restored = [tokenizer.decode(code)[0].numpy() for code in codes]
    psnr = [psnr_db(clip, back) for clip, back in zip(clips, restored, strict=True)]
    assert measures["psnr_db"] == pytest.approx(np.mean(psnr), abs=1e-3)
    assert measures["codes_used"] == len(torch.cat(codes).unique())
    assert shown is not None
    assert np.array_equal(shown[0], clips[0])
    assert np.array_equal(shown[1], restored[0])


def test_each_video_is_cut_into_whole_clips(tmp_path: Path, capsys: Capture) -> None:
    paths = [write_video(tmp_path / f"{frames}.mp4", frames) for frames in (11, 6)]
    clips = [numbers_of(clip) for clip in read_clips(paths[0], 16, 5)]
    assert clips == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert main([BUILT_IN, *map(str, paths), "--frames", "5", "--size", "16"]) == 0
    assert json.loads(capsys.readouterr().out)["num_frames"] == 15


def test_pictures_show_evenly_spaced_frames_above_their_reconstructions() -> None:
    source = np.arange(9, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    picture = side_by_side(source, source + 100, columns=3)
    assert picture[..., 0].tolist() == [[0, 4, 8], [100, 104, 108]]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["builtin://none", str(SAMPLE)], "builtin://none.*cannot be read"),
        ([BUILT_IN, str(SAMPLE), "--frames", "3", "--end", "3"], "3"),
        ([BUILT_IN, str(SAMPLE), "--size", "12", "--end", "17"], "height 12 is not a multiple"),
        ([BUILT_IN, str(SAMPLE), "--start", "140"], "frames 140 to 132 do not exist"),
        ([BUILT_IN, str(SAMPLE), "--end", "9"], "9 frames do not fill a clip of 17"),
        ([BUILT_IN, "missing.mp4"], "missing.mp4"),
    ],
)
def test_unusable_input_exits_with_2(arguments: list[str], complaint: str, capsys: Capture) -> None:
    assert main(arguments) == 2
    assert re.search(complaint, capsys.readouterr().err)
