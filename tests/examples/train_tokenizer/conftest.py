"""A training run small enough for a test: one level of features, 16 pixels, six steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.train_tokenizer.config import TrainConfig
from tests.videos import write_video
from tokpipe.config.explain import validate_settings

Settings = Callable[..., dict[str, Any]]
Config = Callable[..., TrainConfig]

SETTINGS = """
output: "{output}"
tokenizer:
  patch_size: 2
  norm: frame
  encoder: {{ch: 32, ch_mult: [1, 1, 1], num_res_blocks: 1, z_channels: 4}}
  quantizer: {{kind: fsq, levels: [8, 5, 5, 5]}}
  decoder: {{ch: 32, ch_mult: [1, 1, 1], num_res_blocks: 1}}
sources: [{{kind: files, uri: "{videos}/*.mp4"}}]
sampling: {{fps: null, max_clip_frames: 8}}
frames: {{size: [24, 32]}}
buffer_clips: 4
phases:
- steps: 6
  size: 16
  batches: [{{frames: 1, clips: 2}}, {{frames: 5, clips: 1}}]
  learning_rate: [0.001, 0.001]
threads: 1
log_every_steps: 1
"""


def phase(**changes: Any) -> dict[str, Any]:
    batch = {"frames": 1, "clips": 1}
    return {"steps": 4, "size": 16, "batches": [batch], "learning_rate": [0.1, 0.1], **changes}


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three videos of 20 frames, numbered from 0, 100 and 200."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(3):
        write_video(folder / f"{index}.mp4", 20, first_number=100 * index)
    return folder


@pytest.fixture
def settings(tmp_path: Path, videos: Path) -> Settings:
    """What a training file holds, with changes."""
    text = SETTINGS.format(output=tmp_path / "run", videos=videos)
    return lambda **changes: yaml.safe_load(text) | changes


@pytest.fixture
def config(settings: Settings, tmp_path: Path) -> Config:
    return lambda **changes: validate_settings(
        TrainConfig, settings(**changes), name="test.yaml", context={"root": tmp_path}
    )
