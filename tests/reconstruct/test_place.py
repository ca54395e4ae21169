"""Codes located in their sources, and found again by decoding these without tokpipe."""

import json
import shutil
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import yaml

from tests.end_to_end.jobs import files, run_without_ray, write_job
from tests.reconstruct.places import Film, sampled, tokenizer
from tokpipe.cli import main
from tokpipe.config import load_job
from tokpipe.config.trust import Trust
from tokpipe.errors import NotFound, SourceError
from tokpipe.export import export_output
from tokpipe.reader import Output, open_output
from tokpipe.reconstruct.sources import Locator

FILMS = [
    Film((64, 96)),
    Film((64, 96), rotation=90, aspect=Fraction(4, 3)),
    Film((80, 64), rotation=180, edges=(4, 10, 2, 12)),
    Film((96, 80), rotation=270, aspect=Fraction(1, 2), edges=(0, 16, 6, 0)),
    Film((72, 100), fps=Fraction(30_000, 1001), edges=(6, 2, 8, 4), ending="mkv"),
    Film((240, 32)),
    Film((64, 64), pts=tuple(np.cumsum([40, 10, 90, 30] * 10).tolist())),
]
INDEPENDENT = {"policy": "independent", "chunk_frames": 9}
JOBS: dict[str, dict[str, Any]] = {
    "independent": {"chunking": INDEPENDENT},
    "overlap": {"chunking": {"policy": "overlap", "chunk_frames": 13, "overlap_latents": 1}},
    "streaming": {"chunking": {"policy": "streaming", "chunk_frames": 9}},
    "whole": {"chunking": {"policy": "whole"}},
    "grouped": {
        "chunking": {"policy": "independent", "chunk_frames": 8},
        "tokenizer": tokenizer(2, 2),
    },
    "images": {
        "chunking": {"policy": "independent", "chunk_frames": 5},
        "tokenizer": tokenizer(1, 1),
    },
    "fixed length": {
        "chunking": INDEPENDENT,
        "tokenizer": tokenizer(chunk_frames=9, why_not_streamable="fixed"),
    },
}


def made(
    folder: Path,
    films: list[Film],
    sampling: dict[str, Any],
    *,
    with_spans: bool = False,
    **changes: Any,
) -> Output:
    """The finished output of a job over films, which are ``videos/0.mp4`` and so on.

    Each is a row, and with spans there are two more, one to its end.
    """
    paths = [film.write(folder / f"videos/{at}.mp4") for at, film in enumerate(films)]
    spans = [f"{path},0.4,0.9\n{path},0.31,\n" for path in paths]
    (folder / "spans.csv").write_text("video,from,to\n" + "".join(spans))
    columns = {"uri_column": "video", "start_column": "from", "end_column": "to"}
    table = {"kind": "table", "uri": f"{folder}/spans.csv", **columns}
    sources = [{"kind": "files", "uri": f"{folder}/videos/*.{one}"} for one in ("mp4", "mkv")]
    changes = {"tokenizer": tokenizer(), "sampling": {"max_clip_frames": 19, **sampling}, **changes}
    sources = [one for one in sources if any(film.ending in one["uri"][-3:] for film in films)]
    sources += [table] * with_spans
    job = load_job(write_job(folder / "job.yaml", sources, str(folder / "out"), **changes))
    run_without_ray(job)
    return open_output(str(folder / "out"), trust=Trust(uris=True))


def check(output: Output, films: list[Film], random: Random) -> None:
    """Locate 40 random tokens, find them in their sources, and go back."""
    decoded: dict[Path, Any] = {}
    clips = list(output.clips())
    with Locator(output) as locator:
        for _ in range(40):
            clip = random.choice(clips)
            position = random.randrange(clip.codes.size)
            code = locator.code(clip.clip_id, position)
            path = Path(clip.source_uri)
            film = films[int(path.stem)]
            times_s, pictures = decoded[path] = decoded.get(path) or film.frames(path)
            check_one(output, locator, code, times_s, pictures)


def check_one(
    output: Output, locator: Locator, code: dict[str, Any], times_s: Any, pictures: Any
) -> None:
    assert code["source_size"] == [*pictures.shape[1:3]]
    t, row, column, colour = code["index"]
    clip, spec = output.clip(code["clip_id"]), output.tokenizer
    cell = clip.codes[t, row, column].tolist()
    assert code["code"] == cell[colour]
    if code["source_box"] is None:  # a margin is black, which no film is
        assert cell == [0, 0, 0]
        return
    numbers = [int(np.abs(times_s - time_s).argmin()) for time_s in code["times_s"]]
    np.testing.assert_allclose(times_s[numbers], code["times_s"], atol=1e-6)
    latents = [(chunk, at) for chunk in clip.chunks for at in range(len(chunk.codes))]
    chunk, latent = latents[t]
    if not numbers:
        assert latent * spec.temporal_stride >= chunk.n_frames  # only padding
        return
    is_image = chunk.first_is_image and latent == 0
    numbers += numbers[-1:] * ((1 if is_image else spec.temporal_stride) - len(numbers))
    top, left, bottom, right = code["source_box"]
    y, x = (top + bottom) / 2, (left + right) / 2
    wanted = np.mean([sampled(pictures[number], y, x) for number in numbers], 0)
    if output.record.recorded_job("").frames.fit == "pad" and cell[2] < 0.98 * wanted[2]:
        # The rest of the cell is black.
        np.testing.assert_allclose(cell[:2], cell[2] / wanted[2] * wanted[:2], atol=2.5)
    else:  # a row or column is 2 levels or more (1 of the tall film), and a frame 3
        np.testing.assert_allclose(cell, wanted, atol=1.2)
    found = locator.codes_at(clip.source_uri, code["times_s"][0], x, y)
    assert code in found
    assert {(one["index"][1], one["index"][2]) for one in found} == {(row, column)}


BUCKETS = {"buckets": [[32, 48], [48, 32], [40, 40]]}


FITS = ["crop", "pad", "stretch"]


def check_random_job(name: str, fit: str, films: list[Film], folder: Path, random: Random) -> None:
    sampling = {"fps": random.choice([8, 12.5, None, 40])}
    changes = {"frames": {**BUCKETS, "fit": fit}, **JOBS[name]}
    check(made(folder, films, sampling, with_spans=True, **changes), films, random)


@pytest.mark.parametrize(("name", "fit"), [*zip(JOBS, FITS * 3, strict=False)])
def test_tokens_are_found_again_by_other_means(name: str, fit: str, tmp_path: Path) -> None:
    check_random_job(name, fit, FILMS, tmp_path, Random(name))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(250))
def test_many_tokens_are_found_again_by_other_means(seed: int, tmp_path: Path) -> None:
    random = Random(seed)
    films = [Film.drawn(random) for _ in range(5)]
    check_random_job(random.choice([*JOBS]), random.choice(FITS), films, tmp_path, random)


def test_a_point_leads_to_the_codes_that_show_it(tmp_path: Path) -> None:
    random, film = Random(0), FILMS[3]
    output = made(tmp_path, [film], {"fps": None}, frames={"size": [32, 48]})
    uri = str(tmp_path / "videos/0.mp4")
    times_s, pictures = film.frames(Path(uri))
    num_found = 0
    with Locator(output) as locator:
        for _ in range(60):
            time_s = random.uniform(0, times_s[-1])
            y, x = (random.uniform(0, side) for side in pictures.shape[1:3])
            codes = []
            with suppress(NotFound):
                codes = locator.codes_at("videos/0", time_s, x, y)
            if not codes:
                continue
            num_found += 1
            assert [one["index"][3] for one in codes] == [0, 1, 2]
            number = int(np.searchsorted(times_s, time_s, side="right")) - 1
            for code in codes:
                assert min(np.abs(times_s[number] - code["times_s"])) < 1e-6
                top, left, bottom, right = code["source_box"]
                assert top <= y < bottom
                assert left <= x < right
    # 96x64, of pixels half as wide as high, upright 70x90... the crop keeps less than all
    assert 0 < num_found < 60


def test_what_a_clip_repeats_is_found_in_both_segments(tmp_path: Path) -> None:
    sampling = {"fps": 40, "max_clip_frames": 9}
    output = made(tmp_path, [Film((64, 64), fps=8, num_frames=4)], sampling)
    with Locator(output) as locator:
        codes = locator.codes_at("0.mp4", 0.24, 20, 20)
    assert sorted({(one["segment"], one["index"][0]) for one in codes}) == [
        *((0, 2), (1, 0)),
    ]
    assert all(0.125 in one["times_s"] for one in codes)


def test_a_token_of_a_flat_export_has_a_place(tmp_path: Path) -> None:
    output = made(tmp_path, FILMS[:3], {"fps": 8}, frames={"size": [32, 48]})
    export_output(output, "memmap", tmp_path / "flat")
    tokens = np.fromfile(tmp_path / "flat/video.bin", output.tokenizer.code_dtype)
    clips = list(map(json.loads, (tmp_path / "flat/clips.jsonl").read_text().splitlines()))
    per_image = 4 * 6 * 3
    with Locator(output) as locator:
        for n in Random(0).sample(range(len(tokens)), 20):
            clip = [one for one in clips if one["first_image"] <= n // per_image][-1]
            code = locator.code(clip["clip_id"], n - clip["first_image"] * per_image)
            assert code["code"] == tokens[n]


def test_clips_of_outputs_that_changed_are_located(tmp_path: Path) -> None:
    """Added with a source of their own, taken from another output, and removed."""
    changes = {"tokenizer": tokenizer(), "sampling": {"fps": 8}}
    uris = [str(tmp_path / name) for name in ("out", "other")]

    def run(uri: str, *folders: str, extend: bool = False, **more: Any) -> Output:
        sources = [files(tmp_path / folder) for folder in folders]
        job = load_job(write_job(tmp_path / "job.yaml", sources, uri, **changes, **more))
        run_without_ray(job, extend=extend)
        return open_output(uri, trust=Trust(uris=True))

    first = FILMS[0].write(tmp_path / "a/first.mp4")
    run(uris[0], "a")
    second = FILMS[1].write(tmp_path / "b/second.mp4")
    (tmp_path / "c").mkdir()
    same = Path(shutil.copy(second, tmp_path / "c/same.mp4"))
    grown = run(uris[0], "a", "b", extend=True)
    other = run(uris[1], "c", reuse=uris[:1])
    for output, path, film in [(grown, first, 0), (grown, second, 1), (other, same, 1)]:
        clip = next(clip for clip in output.clips() if clip.source_uri == str(path))
        with Locator(output) as locator:
            check_one(output, locator, locator.code(clip.clip_id, 100), *FILMS[film].frames(path))
    assert main(["remove", uris[0], "--source", "second"]) == 0
    with Locator(open_output(uris[0], trust=Trust(uris=True))) as locator:
        with pytest.raises(NotFound, match=r"no tokenized clip .* rejected or removed"):
            locator.code(
                next(row.clip_id for row in grown.clips() if "second" in row.source_uri), 0
            )
        with pytest.raises(NotFound, match="0 sources with clips match 'second'"):
            locator.codes_at("second", 0, 9, 9)


def locate(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    assert main(["locate", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_opens_sources_only_if_they_are_trusted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path, FILMS[:1], {"fps": 8})
    (clip,) = open_output(str(tmp_path / "out")).clips()
    token = "--clip", clip.clip_id, "--position", "100"
    (seen,) = locate(capsys, tmp_path / "job.yaml", *token)["codes"]
    assert (seen["box"], seen["size"]) == ([0, 8, 8, 16], [32, 32])
    assert locate(capsys, tmp_path / "out", *token, "--trust-uris")["codes"] == [seen]
    assert main(["locate", str(tmp_path / "job.yaml"), *token]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == {"codes": [seen]}
    place = ["--source", "0.mp4", "--time", "0.2", "--x", "40", "--y", "9"]
    for words in (token, place):
        assert main(["locate", str(tmp_path / "out"), *words]) == 2
        assert "pass --trust-uris" in capsys.readouterr().err
    assert len(locate(capsys, tmp_path / "job.yaml", *place)["codes"]) == 3


def test_a_source_that_was_replaced_is_not_measured(tmp_path: Path) -> None:
    output = made(tmp_path, FILMS[:1], {"fps": 8})
    (clip,) = output.clips()
    path = replace(FILMS[0], fps=30).write(tmp_path / "videos/0.mp4")
    with Locator(output) as locator:
        with pytest.raises(SourceError, match=f"{path}: "):
            locator.code(clip.clip_id, 0)
        with pytest.raises(SourceError, match=f"{path}: "):
            locator.codes_at("0.mp4", 0.2, 9, 9)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--clip CLIP --position 999999", "has no code at position 999999: it has positions 0 to"),
        ("--clip nobody --position 0", "no tokenized clip 'nobody'"),
        ("--source nowhere --time 0 --x 1 --y 1", "0 sources with clips match 'nowhere'"),
        ("--source mp4 --time 0 --x 1 --y 1", "2 sources with clips match 'mp4'. Name one"),
        ("--source 0.mp4 --time 99 --x 1 --y 1", "no code shows column 1, row 1 of 0.mp4 at 99 s"),
        ("--source 0.mp4 --time nan --x 1 --y 1", "no code shows"),
        ("--source 0.mp4 --time 0 --x nan --y inf", "no code shows"),
    ],
)
def test_what_cannot_be_located_is_explained(
    words: str, complaint: str, two: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = next(open_output(str(two / "out")).clips())
    words = words.replace("CLIP", clip.clip_id)
    assert main(["locate", str(two / "job.yaml"), *words.split()]) == 2
    assert complaint in capsys.readouterr().err


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    made(folder, FILMS[:2], {"fps": 8})
    return folder
