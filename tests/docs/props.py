"""What single pages need in their scene besides the files that every page finds there."""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests.docs.scene import Scene
from tests.models.adapter_helpers import noise, randomize, small_native
from tests.pages import REPOSITORY
from tokpipe.config.native_parts import FSQConfig
from tokpipe.config.tokenizer import VQGANConfig
from tokpipe.models.tokenizers import build_tokenizer
from tokpipe.models.tokenizers.vqgan import VQGANTokenizer


def checkpoints(scene: Scene) -> None:
    """Training checkpoints as PyTorch Lightning saves them; the first is small for its name."""
    small: dict[str, Any] = {"ch": 32, "num_res_blocks": 1, "codebook_size": 50}
    config = VQGANConfig(kind="movqgan", weights="s3://m", ch_mult=(1, 1, 1, 2), **small)
    published = VQGANTokenizer(config, with_decoder=True)
    randomize(published)
    discriminator = {"loss.discriminator.main.0.weight": torch.zeros(3)}
    _save(scene.clone / "movqgan_270M.ckpt", {**published.state_dict(), **discriminator})

    settings = small_native(FSQConfig(kind="fsq"))
    own = dict(build_tokenizer(settings, None).state_dict())
    averages = {f"model_ema.{key.replace('.', '')}": value for key, value in own.items()}
    weights = {f"model.{key}": value for key, value in own.items()}
    _save(scene.clone / "mine.ckpt", {**weights, **averages, **discriminator})
    (scene.clone / "mine.yaml").write_text(settings.model_dump_json(exclude_unset=True))


def _save(path: Path, state: dict[str, torch.Tensor]) -> None:
    torch.save({"state_dict": state, "hyper_parameters": argparse.Namespace(lr=0.1)}, path)


def trained_tokenizer(scene: Scene) -> None:
    """The output of a training, and a video."""
    built_in = REPOSITORY / "tokpipe/models/pretrained/fsq-4x8x8"
    shutil.copytree(built_in, scene.clone / "OUTPUT/tokenizer")
    shutil.copy(scene.clone / "examples/data/bigbuckbunny.mp4", scene.clone / "clip.mp4")


def quickstart(scene: Scene) -> None:
    """No damaged video, and what `make demo`, which another test runs, leaves there."""
    whole_videos(scene)
    shutil.copytree(scene.folder / "template/out/demo", scene.clone / "out/demo")


def whole_videos(scene: Scene) -> None:
    """No damaged video among those of a newcomer: their first job would have exit code 4."""
    (scene.clone / "videos/cut.mp4").unlink()


def past_run(scene: Scene) -> None:
    """A log, and an output that records how long encoding took."""
    scene.bash("rm -r out/mine; tokpipe run jobs/mine.yaml")


def material(scene: Scene) -> None:
    """A photograph and footage, in place of those that the built-in tokenizer was trained on."""
    (scene.clone / "out/material").mkdir(parents=True)
    pixels = noise(1, 1, 600, 800, 3)[0, 0].numpy()
    Image.fromarray(pixels).save(scene.clone / "out/material/photo.jpg")
    for name in ("tears-of-steel", "various", "gestures"):
        (scene.clone / "out/footage" / name).mkdir(parents=True)
        shutil.copy(scene.clone / "videos/dog.mp4", scene.clone / "out/footage" / name)


PROPS: dict[str, Callable[[Scene], None]] = {
    "examples/demo_tokenizer/README.md": material,
    "README.md": whole_videos,
    "docs/clusters.md": past_run,
    "docs/monitoring.md": past_run,
    "docs/quickstart.md": quickstart,
    "tokpipe/cli/plan.py": past_run,
    "tokpipe/cli/jobs.py": checkpoints,
    "docs/tokenizers.md": checkpoints,
    "docs/training.md": trained_tokenizer,
}
