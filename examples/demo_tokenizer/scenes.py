"""Procedural video: textures, shapes and text that move under a moving camera.

Scenes have what real videos have and a tokenizer must learn to keep: spectra that fall off as 1/f,
sharp and soft edges at every scale, occlusion, shadows, dull and bright colours, text, grain, pans,
zooms, rotations, changing light and cuts. Textures are drawn, or cut from photographs. Everything
depends on a seed (and on the photographs) alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from examples.demo_tokenizer.bitmap_font import CHARACTERS, draw_text

Floats = NDArray[np.float32]
Times = NDArray[np.floating[Any]]

TEXTURE_SIZE = 256
MASK_SIZE = 128
OVERSAMPLING = 2
"""Rows and columns drawn per row and column shown, to smooth edges."""


@dataclass(frozen=True)
class Palette:
    """Textures and shapes that scenes choose from."""

    textures: Tensor
    """(N, 3, 256, 256) float32 in [0, 1]."""
    masks: Tensor
    """(M, 1, 128, 128) float32 in [0, 1], 0 at the border."""
    keeps_colours: bool = False
    """Textures are shown in about the colours they have."""


def make_palette(
    seed: int, num_textures: int, num_masks: int, photos: Sequence[Path] = ()
) -> Palette:
    """Draw textures and shapes. Each depends only on the seed and its number.

    Args:
        photos: pictures to crop textures from, at random places and scales; by default they are
            drawn.
    """
    if photos:
        textures = _crops(photos, seed, num_textures)
    else:
        textures = [_texture(np.random.default_rng((seed, 1, i))) for i in range(num_textures)]
    masks = [_mask(np.random.default_rng((seed, 2, i))) for i in range(num_masks)]
    return Palette(
        textures=torch.from_numpy(np.stack(textures)),
        masks=torch.from_numpy(np.stack(masks)[:, None]),
        keeps_colours=bool(photos),
    )


# -- textures ---------------------------------------------------------------------------------


def _spectral_noise(rng: np.random.Generator, size: int, slope: float, stretch: float) -> Floats:
    """Noise with amplitude frequency**-slope (1 as in nature), mean 0 and deviation 1."""
    fy, fx = np.fft.fftfreq(size)[:, None] * stretch, np.fft.rfftfreq(size)[None] / stretch
    angle = rng.uniform(0, math.pi)
    along = fx * math.cos(angle) + fy * math.sin(angle)
    across = -fx * math.sin(angle) + fy * math.cos(angle)
    radius = np.hypot(along, across)
    radius[0, 0] = np.inf
    shape = radius.shape
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * radius**-slope
    noise = np.fft.irfft2(spectrum, (size, size))
    unit: Floats = (noise / (noise.std() + 1e-8)).astype(np.float32)
    return unit


def _colour(rng: np.random.Generator) -> Floats:
    """(3,) in [0, 1]: mostly dull, sometimes saturated."""
    grey = rng.beta(1.2, 1.2)
    return np.clip(grey + rng.normal(0, rng.choice([0.02, 0.06, 0.12, 0.3]), 3), 0, 1).astype(
        np.float32
    )


def _noise_texture(rng: np.random.Generator) -> Floats:
    slope = rng.uniform(0.6, 2.2)
    stretch = math.exp(rng.normal(0, 0.4)) if rng.random() < 0.5 else 1.0
    light = _spectral_noise(rng, TEXTURE_SIZE, slope, stretch)
    kind = rng.integers(4)
    if kind == 1:  # ridges, as of bark, cloth or hair
        light = 2 * np.abs(light) - 1
    elif kind == 2:  # patches with edges between them
        light = np.tanh(light * rng.uniform(2, 8))
    colour = _colour(rng)[:, None, None]
    tint = rng.normal(1, 0.15, (3, 1, 1)).astype(np.float32)
    texture = colour + tint * light * rng.uniform(0.04, 0.3)
    if rng.random() < 0.5:
        hue = _spectral_noise(rng, TEXTURE_SIZE, rng.uniform(1, 2.2), 1.0)
        texture = texture + rng.normal(0, 0.08, (3, 1, 1)).astype(np.float32) * hue
    return texture


def _gradient_texture(rng: np.random.Generator) -> Floats:
    y, x = np.mgrid[0 : 1 : TEXTURE_SIZE * 1j, 0 : 1 : TEXTURE_SIZE * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    if rng.random() < 0.3:
        ramp = np.hypot(x - rng.random(), y - rng.random())
    else:
        ramp = x * math.cos(angle) + y * math.sin(angle)
    ramp = (ramp - ramp.min()) / (np.ptp(ramp) + 1e-8)
    first, last = _colour(rng)[:, None, None], _colour(rng)[:, None, None]
    texture = first + (last - first) * ramp ** rng.uniform(0.5, 2)
    texture = texture + rng.uniform(0, 0.03) * _spectral_noise(rng, TEXTURE_SIZE, 1.2, 1.0)
    return np.asarray(texture, np.float32)


def _stripes_texture(rng: np.random.Generator) -> Floats:
    y, x = np.mgrid[0 : 1 : TEXTURE_SIZE * 1j, 0 : 1 : TEXTURE_SIZE * 1j].astype(np.float32)
    bend = _spectral_noise(rng, TEXTURE_SIZE, 2, 1.0) * rng.choice([0.0, 0.02, 0.1])
    angle, count = rng.uniform(0, math.pi), math.exp(rng.uniform(math.log(4), math.log(60)))
    wave = np.sin(2 * math.pi * count * (x * math.cos(angle) + y * math.sin(angle) + bend))
    if rng.random() < 0.3:  # checks and lattices
        other = np.sin(2 * math.pi * count * (y * math.cos(angle) - x * math.sin(angle) + bend))
        wave = wave * other if rng.random() < 0.5 else np.maximum(wave, other)
    wave = np.tanh(wave * rng.choice([0.7, 3.0, 12.0])) / 2 + 0.5
    first, last = _colour(rng)[:, None, None], _colour(rng)[:, None, None]
    return np.asarray(first + (last - first) * wave, np.float32)


def _leaves_texture(rng: np.random.Generator) -> Floats:
    """Overlapping shapes of power-law sizes: the "dead leaves" model of natural images."""
    size = TEXTURE_SIZE
    texture = np.broadcast_to(_colour(rng)[:, None, None], (3, size, size)).copy()
    shading = _spectral_noise(rng, size, rng.uniform(0.8, 1.6), 1.0) * rng.uniform(0.01, 0.08)
    for _ in range(rng.integers(40, 250)):
        radius = min(3 * rng.random() ** -0.6, 80.0)
        cy, cx = rng.uniform(-10, size + 10, 2)
        top, bottom = max(0, int(cy - radius)), min(size, int(cy + radius) + 1)
        left, right = max(0, int(cx - radius)), min(size, int(cx + radius) + 1)
        if top >= bottom or left >= right:
            continue
        y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
        angle, flat = rng.uniform(0, math.pi), rng.uniform(0.3, 1)
        u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
        v = ((y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)) / flat
        distance = np.maximum(abs(u), abs(v)) * 1.4 if rng.random() < 0.3 else np.hypot(u, v)
        inside = np.clip(radius - distance, 0, 1)
        slope = u * rng.normal(0, 0.15) / radius
        new = _colour(rng)[:, None, None] + slope
        here = texture[:, top:bottom, left:right]
        here += (new - here) * inside
    return np.asarray(texture + shading, np.float32)


def _text_texture(rng: np.random.Generator) -> Floats:
    page = draw_text(_words(rng, lines=14, width=21))
    scale = 2
    page = np.kron(page, np.ones((scale, scale), np.float32))
    canvas = np.zeros((TEXTURE_SIZE, TEXTURE_SIZE), np.float32)
    height, width = min(page.shape[0], TEXTURE_SIZE), min(page.shape[1], TEXTURE_SIZE)
    canvas[:height, :width] = page[:height, :width]
    paper, ink = _colour(rng)[:, None, None], _colour(rng)[:, None, None]
    light = 1 + rng.uniform(0, 0.1) * _spectral_noise(rng, TEXTURE_SIZE, 1.5, 1.0)
    return np.asarray((paper + (ink - paper) * canvas) * light, np.float32)


def _words(rng: np.random.Generator, lines: int, width: int) -> list[str]:
    letters = np.array(list(CHARACTERS))
    return ["".join(rng.choice(letters, width)) for _ in range(lines)]


_TEXTURES: tuple[Callable[[np.random.Generator], Floats], ...] = (
    _noise_texture,
    _gradient_texture,
    _stripes_texture,
    _leaves_texture,
    _text_texture,
)
_TEXTURE_SHARES = (0.38, 0.14, 0.1, 0.32, 0.06)


def _texture(rng: np.random.Generator) -> Floats:
    """(3, 256, 256) in [0, 1]."""
    draw = _TEXTURES[rng.choice(len(_TEXTURES), p=_TEXTURE_SHARES)]
    return np.clip(draw(rng), 0, 1).astype(np.float32)


def _crops(photos: Sequence[Path], seed: int, count: int) -> list[Floats]:
    """Return textures in [0, 1]: as many of each photo, from its finest detail to all of it."""
    crops = []
    for number, path in enumerate(photos):
        rng = np.random.default_rng((seed, 3, number))
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        short = min(photo.size)
        for _ in range(number, count, len(photos)):
            # Photos are sharper when halved: cameras interpolate colours, JPEG blurs.
            largest = math.log(short / TEXTURE_SIZE)
            side = round(TEXTURE_SIZE * math.exp(rng.uniform(min(0.5, largest / 2), largest)))
            left, top = (int(rng.integers(room - side + 1)) for room in photo.size)
            box = (left, top, left + side, top + side)
            size = (TEXTURE_SIZE, TEXTURE_SIZE)
            crop = photo.resize(size, Image.Resampling.LANCZOS, box)
            crops.append(np.asarray(crop, np.float32).transpose(2, 0, 1) / np.float32(255))
    return crops


# -- shapes -----------------------------------------------------------------------------------


def _mask(rng: np.random.Generator) -> Floats:
    """(128, 128) in [0, 1]: a shape in the middle, with a hard or soft edge."""
    size = MASK_SIZE
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    kind = rng.integers(5)
    if kind == 0:  # ellipse
        depth = 0.85 - np.hypot(x, y / rng.uniform(0.3, 1))
    elif kind == 1:  # polygon
        corners = rng.integers(3, 8)
        angles = np.sort(rng.uniform(0, 2 * math.pi, corners))
        depth = np.min(
            [rng.uniform(0.3, 0.8) - (x * math.cos(a) + y * math.sin(a)) for a in angles], 0
        )
        depth = np.minimum(depth, 0.85 - np.maximum(abs(x), abs(y)))
    elif kind == 2:  # blob
        depth = (
            0.55 - np.hypot(x, y) + 0.15 * _spectral_noise(rng, size, rng.uniform(1.5, 2.5), 1.0)
        )
    elif kind == 3:  # bar
        depth = np.minimum(rng.uniform(0.03, 0.3) - abs(y), 0.85 - abs(x))
    else:  # a word
        page = draw_text(_words(rng, lines=int(rng.integers(1, 3)), width=int(rng.integers(1, 7))))
        scale = max(1, int(0.85 * size / max(page.shape)))
        page = np.kron(page, np.ones((scale, scale), np.float32))
        canvas = np.zeros((size, size), np.float32)
        top, left = (size - page.shape[0]) // 2, (size - page.shape[1]) // 2
        canvas[top : top + page.shape[0], left : left + page.shape[1]] = page
        return canvas
    edge = rng.choice([0.02, 0.02, 0.05, 0.2])
    inside = np.clip(depth / edge + 0.5, 0, 1) * (np.maximum(abs(x), abs(y)) < 0.95)
    mask: Floats = inside.astype(np.float32)
    return mask


# -- scenes -----------------------------------------------------------------------------------


def render_scene(
    palette: Palette, rng: np.random.Generator, *, frames: int, height: int, width: int
) -> NDArray[np.uint8]:
    """Render one scene, sometimes with a cut: (frames, height, width, 3) uint8 RGB."""
    if frames >= 5 and rng.random() < 0.08:
        first = int(rng.integers(1, frames))
        parts = [_shot(palette, rng, n, height, width) for n in (first, frames - first)]
        video = torch.cat(parts)
    else:
        video = _shot(palette, rng, frames, height, width)
    pixels: NDArray[np.uint8] = (
        video.mul_(255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    )
    return pixels


def _shot(
    palette: Palette, rng: np.random.Generator, frames: int, height: int, width: int
) -> Tensor:
    """(frames, 3, height, width) float32, about [0, 1]."""
    tall, wide = height * OVERSAMPLING, width * OVERSAMPLING
    time = np.arange(frames) - rng.uniform(0, frames)
    # Speed in shown pixels per frame: still, slow and fast cameras.
    camera = _Motion(rng, rng.choice([0.0, 0.6, 2.0]), shown=min(height, width))
    shake = rng.choice([0.0, 0.0, 0.15, 0.5])
    jitter = rng.normal(0, shake, (frames, 2)).cumsum(0) * 0.7 if shake else np.zeros((frames, 2))

    ground = _recoloured(palette, rng)
    # Texture pixels per drawn pixel: rarely above 1, so that sampling does not alias.
    scale = math.exp(rng.uniform(math.log(0.2), math.log(1.1)))
    start = rng.uniform(-1, 1, 2)
    video = _sampled(
        ground, camera.at(time, jitter), tall, wide, scale, TEXTURE_SIZE, start, "reflection"
    )
    for _ in range(int(rng.choice([0, 1, 2, 3, 5, 8], p=[0.15, 0.2, 0.2, 0.2, 0.15, 0.1]))):
        motion = camera.followed_by(
            _Motion(rng, rng.choice([0.0, 0.5, 2.5]), shown=min(height, width))
        )
        matrices = motion.at(time, jitter)
        size = math.exp(rng.uniform(math.log(0.15), math.log(1.3)))  # of the frame
        mask_scale = MASK_SIZE / (size * min(tall, wide))
        mask = palette.masks[int(rng.integers(len(palette.masks)))]
        matrices[:, :, 2] += rng.uniform(-0.6, 0.6, 2) * (height, width)[::-1]
        alpha = _sampled(mask, matrices, tall, wide, mask_scale, MASK_SIZE, np.zeros(2), "zeros")
        paint = _recoloured(palette, rng)
        scale = math.exp(rng.uniform(math.log(0.2), math.log(1.1)))
        colour = _sampled(
            paint, matrices, tall, wide, scale, TEXTURE_SIZE, rng.uniform(-1, 1, 2), "reflection"
        )
        if rng.random() < 0.3:
            shade = torch.roll(alpha, tuple(int(s) for s in rng.integers(1, 9, 2)), (2, 3))
            shade = F.avg_pool2d(shade, 5, stride=1, padding=2)
            video = video * (1 - float(rng.uniform(0.2, 0.7)) * shade)
        if rng.random() < 0.15:
            alpha = alpha * float(rng.uniform(0.3, 0.9))
        video = torch.lerp(video, colour, alpha)
    if rng.random() < 0.2:
        video = F.avg_pool2d(video, 3, stride=1, padding=1, count_include_pad=False)
    video = F.avg_pool2d(video, OVERSAMPLING)
    return _lit(video, rng, time)


def _lit(video: Tensor, rng: np.random.Generator, time: Times) -> Tensor:
    """Add motion blur, grain, and light that changes over time and across the frame."""
    frames, _, height, width = video.shape
    if frames > 1 and rng.random() < 0.15:
        video = torch.cat([video[:1], (video[1:] + video[:-1]) / 2])
    gain = np.exp(rng.normal(0, rng.choice([0.0, 0.01, 0.05])) * time + rng.normal(0, 0.15))
    video = video * torch.from_numpy(np.clip(gain, 0.2, 2)).float()[:, None, None, None]
    if rng.random() < 0.3:
        slope = torch.from_numpy(rng.normal(0, 0.25, 2)).float()
        across = torch.linspace(-1, 1, width) * slope[0]
        down = torch.linspace(-1, 1, height) * slope[1]
        video = video * (1 + across + down[:, None])
    if rng.random() < 0.2:
        video = video.clamp(0, 1) ** float(rng.uniform(0.6, 1.6))
    if rng.random() < 0.4:
        grain = rng.standard_normal(video.shape, np.float32) * np.float32(rng.uniform(0.002, 0.025))
        video = video + torch.from_numpy(grain)
    return video


class _Motion:
    """A movement with some acceleration: shift, zoom and rotation as functions of time."""

    def __init__(self, rng: np.random.Generator, speed: float, shown: int) -> None:
        self.velocity = rng.normal(0, 1, 2) * speed
        self.acceleration = rng.normal(0, 0.03, 2) * speed
        self.zoom = rng.normal(0, 0.006) * speed * (rng.random() < 0.5)
        self.turn = rng.normal(0, 0.01) * speed * (rng.random() < 0.4)
        self.angle = rng.uniform(0, 2 * math.pi) if rng.random() < 0.7 else 0.0

    def followed_by(self, other: "_Motion") -> "_Motion":
        """Return the other motion as seen by this camera."""
        other.velocity = other.velocity + self.velocity
        other.zoom += self.zoom
        other.turn += self.turn
        return other

    def at(self, time: Times, jitter: Times) -> NDArray[np.float64]:
        """(T, 2, 3): the affine map of each frame, from shown pixels around the middle."""
        angle = self.angle + self.turn * time
        scale = np.exp(np.clip(self.zoom * time, -0.7, 0.7))
        c, s = np.cos(angle) * scale, np.sin(angle) * scale
        shift = self.velocity * time[:, None] + self.acceleration * time[:, None] ** 2 + jitter
        return np.stack([np.stack([c, -s, shift[:, 0]], -1), np.stack([s, c, shift[:, 1]], -1)], 1)


def _sampled(
    image: Tensor,
    matrices: NDArray[np.float64],
    tall: int,
    wide: int,
    scale: float,
    size: int,
    start: NDArray[np.float64],
    outside: str,
) -> Tensor:
    """Sample an image (C, S, S) through each matrix: (T, C, tall, wide).

    Args:
        scale: image pixels per drawn pixel.
        start: the point of the image in the middle of the frame, in [-1, 1].
    """
    theta = matrices.copy()
    theta[:, :, 0] *= wide * scale / size
    theta[:, :, 1] *= tall * scale / size
    theta[:, :, 2] = theta[:, :, 2] * (2 * OVERSAMPLING * scale / size) + start
    grid = F.affine_grid(
        torch.from_numpy(theta).float(), [len(theta), 1, tall, wide], align_corners=False
    )
    return F.grid_sample(
        image.expand(len(theta), -1, -1, -1), grid, padding_mode=outside, align_corners=False
    )


def _recoloured(palette: Palette, rng: np.random.Generator) -> Tensor:
    """Return a random texture (3, S, S) with its channels, contrast and brightness changed."""
    texture = palette.textures[int(rng.integers(len(palette.textures)))]
    if palette.keeps_colours:
        return texture * torch.from_numpy(rng.normal(1, 0.08, 3)).float()[:, None, None]
    texture = texture[torch.from_numpy(rng.permutation(3))]
    gain = rng.uniform(0.5, 1.2) * (-1 if rng.random() < 0.25 else 1)
    offset = rng.normal(0, 0.04, 3) + rng.normal(0, 0.12) + (0.5 - 0.5 * gain)
    return texture * float(gain) + torch.from_numpy(offset).float()[:, None, None]
