"""Batches: crops of the videos in a job's sources."""

import itertools
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from examples.train_tokenizer.config import TrainConfig
from examples.train_tokenizer.data import TrainingData, random_crop
from tests.examples.train_tokenizer.conftest import Config, phase
from tests.videos import numbers_of, write_video
from tokpipe.errors import ConfigError


def ramp(frames: int = 12, height: int = 160, width: int = 300) -> np.ndarray:
    """Red is the frame's number, green grows to the right, blue downwards."""
    clip = np.zeros((frames, height, width, 3), np.uint8)
    clip[..., 0] = 10 * np.arange(frames)[:, None, None]
    clip[..., 1] = np.linspace(0, 250, width).round()
    clip[..., 2] = np.linspace(0, 250, height).round()[:, None]
    return clip


def batches(config: TrainConfig, first_step: int = 0, number: int = 6) -> list[Tensor]:
    with closing(TrainingData(config).batches(first_step)) as found:
        return list(itertools.islice(found, number))


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_crops_have_many_places_scales_speeds_and_directions() -> None:
    strides, scales, mirrored = set(), [], set()
    for seed in range(60):
        crop = random_crop(ramp(), np.random.default_rng(seed), frames=4, size=32)
        assert crop.shape == (4, 32, 32, 3)
        red = crop[..., 0].astype(int)
        assert (red == red[:, :1, :1]).all()
        strides.add(int(red[1, 0, 0] - red[0, 0, 0]))
        across = crop[0, 16, :, 1].astype(int)
        mirrored.add(across[-1] < across[0])
        scales.append(abs(across[-1] - across[0]))
        down = crop[0, :, 16, 2].astype(int)
        assert (np.diff(down) >= 0).all()
    assert strides == {10, -10, 20, -20, 30, -30}
    assert mirrored == {True, False}
    assert min(scales) < 40
    assert max(scales) > 100


def test_a_crop_can_be_as_long_and_as_large_as_its_clip() -> None:
    crop = random_crop(ramp(5, 32, 32), np.random.default_rng(0), frames=5, size=32)
    assert sorted(crop[:, 0, 0, 0]) == [0, 10, 20, 30, 40]
    assert crop[0, 0, :, 1].max() == 250
    for seed in range(20):  # played backwards, one whole frame is laid out as it was
        crop = random_crop(ramp(1, 33, 33), np.random.default_rng(seed), frames=1, size=32)
        assert crop.shape == (1, 32, 32, 3)


def test_a_batch_depends_only_on_seed_and_step(config: Config) -> None:
    whole = batches(config())
    assert {tuple(batch.shape) for batch in whole} == {(2, 1, 16, 16, 3), (1, 5, 16, 16, 3)}
    assert equal(batches(config(), first_step=4, number=2), whole[4:])
    assert not any(equal([a], [b]) for a, b in itertools.pairwise(whole))
    assert not any(map(torch.equal, whole, batches(config(seed=1))))


@pytest.mark.parametrize("fresh_clips", [0.3, 7])
def test_threads_change_no_batch(config: Config, fresh_clips: float) -> None:
    configs = (config(data_threads=threads, fresh_clips=fresh_clips) for threads in (2, 0))
    assert equal(*map(batches, configs))


def recorded(data: TrainingData, monkeypatch: pytest.MonkeyPatch) -> list[list[np.ndarray]]:
    """Take all batches; return the buffer of each step."""
    buffers: list[list[np.ndarray]] = []

    def taken(step: int, clips: list[np.ndarray]) -> Tensor:
        buffers.append(clips)
        return torch.zeros(step)

    monkeypatch.setattr(data, "_batch", taken)
    with closing(data.batches(0)) as found:
        list(found)
    return buffers


def test_clips_come_from_whole_videos_and_leave_the_buffer_in_order(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = TrainingData(config(phases=[phase(steps=40)], fresh_clips=1.5))
    buffers = recorded(data, monkeypatch)
    assert {len(buffer) for buffer in buffers} == {4}
    for step, (earlier, later) in enumerate(itertools.pairwise(buffers)):
        shift = 3 * (step + 1) // 2 - 3 * step // 2
        assert all(a is b for a, b in zip(earlier[shift:], later[: 4 - shift], strict=True))
    numbers = [tuple(numbers_of(clip)) for buffer in buffers for clip in buffer]
    assert set(numbers) == {
        tuple(range(first + start, first + min(start + 8, 20)))
        for first in (0, 100, 200)
        for start in (0, 8, 16)
    }


def table(folder: Path, rows: Sequence[str]) -> dict[str, Any]:
    (folder / "clips.csv").write_text("\n".join(["uri,start,end", *rows]))
    columns = {f"{name}_column": name for name in ("uri", "start", "end")}
    return {"kind": "table", "uri": str(folder / "clips.csv"), **columns}


def test_spans_shares_and_the_longest_batch_are_respected(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "a.mp4", 30)
    write_video(tmp_path / "b.mp4", 28, first_number=500)
    write_video(tmp_path / "short.mp4", 4, first_number=900)
    first = table(tmp_path, ["a.mp4,0.4,0.72", "short.mp4,,", "a.mp4,5,4"])
    second = {"kind": "files", "uri": str(tmp_path / "b.mp4")}
    phases = [phase(steps=150, batches=[{"frames": 5, "clips": 1}])]
    changes = {"sources": [first, second], "shares": [3, 1], "buffer_clips": 1}
    data = TrainingData(config(phases=phases, **changes))
    numbers = [numbers_of(clip)[0] for (clip,) in recorded(data, monkeypatch)]
    assert set(numbers) == {10, 500, 508, 516}  # the last 4 frames of b.mp4 are too few
    # Half of the first source's rows are too short, and then a source is drawn again.
    assert numbers.count(10) / len(numbers) == pytest.approx(0.6, abs=0.12)


def test_sources_without_usable_clips_are_an_error(config: Config, tmp_path: Path) -> None:
    write_video(tmp_path / "short.mp4", 4)
    source = {"kind": "files", "uri": str(tmp_path / "*.mp4")}
    with pytest.raises(ConfigError, match=r"32 clips in a row .*short.mp4: .*at least 5 frames"):
        batches(config(sources=[source]))
    with pytest.raises(ConfigError, match=r"sources\[0\] .*: none of its 1 rows can be used"):
        TrainingData(config(sources=[table(tmp_path, ["short.mp4,5,4"])]))


def test_the_digest_follows_the_rows(config: Config, tmp_path: Path) -> None:
    def digest(*rows: str) -> str:
        return TrainingData(config(sources=[table(tmp_path, rows)])).digest()

    one = digest("a.mp4,0,1", "b.mp4,,")
    assert one == digest("a.mp4,0,1", "b.mp4,,")
    assert one not in (digest("a.mp4,0,2", "b.mp4,,"), digest("a.mp4,0,1"))
