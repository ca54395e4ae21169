from __future__ import annotations

import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tokpipe.train.film import read_film

from tokpipe.errors import ConfigError
from tokpipe.media.quality import psnr_db
from tokpipe.train.evaluate import (
    chunks_of,
    evaluate,
    main,
    open_checkpoint,
    scenes,
    side_by_side,
)

SAMPLE = Path(__file__).parents[2] / "examples" / "data" / "bigbuckbunny.mp4"
SHIPPED = "builtin://fsq-4x8x8"

FLOOR_DB = 22.0
"""Less than it has, more than a damaged one would have."""


def test_the_shipped_checkpoint_reconstructs_frames_that_it_was_not_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "side.png"
    film = ["--start", "92", "--end", "109", "--picture", str(picture)]
    assert main([SHIPPED, str(SAMPLE), *film]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_frames"] == 17
    assert report["codes"] == 5 * 16 * 16
    assert report["psnr_db"] > FLOOR_DB
    assert report["bfloat16_code_agreement"] > 0.95
    assert 1 < report["code_perplexity"] <= report["codes_used"] <= report["codes"]
    with av.open(str(picture)) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="rgb24")
    source = read_film(SAMPLE, 128, 128, 92, 109)
    assert shown.shape == (256, 512, 3)
    assert np.array_equal(shown[:128, :128], source[0])
    assert np.array_equal(shown[:128, 384:], source[16])
    assert psnr_db(source[:1], shown[None, 128:, :128])[0] > FLOOR_DB


def test_the_report_is_of_what_encode_and_decode_give() -> None:
    tokenizer = open_checkpoint(SHIPPED)
    clips = list(scenes(2, frames=5, size=32))
    report, shown = evaluate(tokenizer, iter(clips))
    codes = [tokenizer.encode(torch.from_numpy(clip)[None]) for clip in clips]
    restored = [tokenizer.decode(code)[0].numpy() for code in codes]
    measured = [psnr_db(clip, back) for clip, back in zip(clips, restored, strict=True)]
    assert report.quality.psnr_db == pytest.approx(np.mean(measured))
    assert report.usage.num_used == len(torch.cat(codes).unique())
    assert shown is not None
    assert np.array_equal(shown[0], clips[0])
    assert np.array_equal(shown[1], restored[0])


def test_scenes_are_the_same_every_time() -> None:
    first, again = list(scenes(2, 5, 16)), list(scenes(2, 5, 16))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], first[1])


def test_films_are_cut_into_whole_clips() -> None:
    film = np.arange(11, dtype=np.uint8)[:, None, None, None]
    assert [clip.ravel().tolist() for clip in chunks_of(film, 5)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
    ]
    with pytest.raises(ConfigError, match="11 frames do not fill a clip of 17"):
        next(chunks_of(film, 17))


def test_pictures_show_evenly_spaced_frames_above_their_reconstructions() -> None:
    source = np.arange(9, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    picture = side_by_side(source, source + 100, columns=3)
    assert picture[..., 0].tolist() == [[0, 4, 8], [100, 104, 108]]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["builtin://none"], "builtin://none.*cannot be read"),
        ([SHIPPED, str(SAMPLE), "--frames", "3", "--end", "3"], "3"),
        ([SHIPPED, str(SAMPLE), "--size", "12", "--end", "17"], "height 12 is no multiple"),
        ([SHIPPED, str(SAMPLE), "--end", "9"], "do not fill a clip"),
        ([SHIPPED, "no-such-film.mp4"], "no-such-film"),
    ],
)
def test_what_cannot_be_measured_exits_with_2(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert re.search(complaint, capsys.readouterr().err)
