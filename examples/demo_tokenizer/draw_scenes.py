"""Renders drawn scenes to videos, to train or measure a tokenizer on::

python -m examples.demo_tokenizer.draw_scenes out/scenes
"""

import argparse
from pathlib import Path

import numpy as np

from examples.demo_tokenizer.scenes import make_palette, render_scene
from tokpipe.media.writing import write_video

FPS = 25


def draw_scenes(
    folder: Path,
    *,
    count: int,
    seed: int,
    frames: int,
    size: int,
    textures: int,
    shapes: int,
    photos: Path | None = None,
) -> None:
    """Write ``count`` square videos, ``folder/00000.mp4`` and so on. The seed decides each."""
    folder.mkdir(parents=True, exist_ok=True)
    palette = make_palette(seed, textures, shapes, sorted(photos.iterdir()) if photos else ())
    for number in range(count):
        rng = np.random.default_rng((seed, 0, number))
        scene = render_scene(palette, rng, frames=frames, height=size, width=size)
        write_video(folder / f"{number:05d}.mp4", FPS, [scene])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Render drawn scenes to videos.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=500, help="videos (500)")
    parser.add_argument("--seed", type=int, default=0, help="decides what is drawn (0)")
    parser.add_argument("--frames", type=int, default=23, help="frames of each video (23)")
    parser.add_argument("--size", type=int, default=256, help="rows and columns (256)")
    parser.add_argument("--textures", type=int, default=400, help="to choose from (400)")
    parser.add_argument("--shapes", type=int, default=200, help="to choose from (200)")
    parser.add_argument("--photos", type=Path, help="folder of pictures to cut textures from")
    draw_scenes(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    main()
