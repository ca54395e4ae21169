"""``tokpipe verify``: what a tokenizer computes with its weights, measured on two short clips."""

import pkgutil
from collections.abc import Sequence
from contextlib import closing, suppress
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

import tokpipe
from tokpipe.config.job import DecodeConfig, FramesConfig, SamplingConfig
from tokpipe.config.load import load_tokenizer
from tokpipe.config.tokenizer import TokenizerConfig
from tokpipe.errors import ConfigError
from tokpipe.media.decoder import VideoDecoder
from tokpipe.media.quality import psnr_db
from tokpipe.models.process import encoder_class, make_repeatable, usable_device
from tokpipe.models.tokenizers import VideoTokenizer, build_tokenizer
from tokpipe.models.tokenizers.custom import CustomTokenizer
from tokpipe.models.tokenizers.native import NativeTokenizer
from tokpipe.models.tokenizers.probe import FLOAT32_CHANGES, equal_share, moving_picture, probe
from tokpipe.telemetry.usage import CodeUsage
from tokpipe.weights.read import read_object, read_weights


def verify(
    named: str, *, device: str, dtype: str, size: Sequence[int], clip: str, reference: str
) -> dict[str, Any]:
    """Load a tokenizer strictly, encode and decode two clips, and return what is measured.

    ``failed`` lists what must hold and does not. Arguments may be empty: ``size`` (height, width),
    ``clip``, a video for the chart in motion, and ``reference``, see docs/tokenizers.md.
    """
    config, storage = load_tokenizer(named, read=read_object)
    on, traits = usable_device(device), config.traits
    pixels = _pictures(config, size, clip).to(on)
    weights = read_weights(config, storage, with_decoder=True)
    keys: Any = config.decoder_keys
    if keys and weights.encoding is not None:  # a conversion may have left the decoder out
        keys = safetensors.torch.load(weights.encoding)
    has_decoder = any(key.startswith(config.decoder_keys) for key in keys)
    has_decoder |= weights.decoding is not None
    decoding: Any = {"with_decoder": has_decoder, "decoder_weights": weights.decoding}
    make_repeatable()

    def built(dtype: str) -> VideoTokenizer:
        tokenizer = build_tokenizer(config, weights.encoding, **decoding).to(on)
        tokenizer.compute_in(getattr(torch, dtype))
        return tokenizer

    tokenizer, failed = built(dtype), list[str]()
    if isinstance(tokenizer, CustomTokenizer):
        has_decoder = callable(getattr(tokenizer.model, "decode", None))
    found: dict[str, Any] = {
        "tokenizer": f"{config.name} ({config.kind})",
        "weights": weights.hash,
        "parameters": sum(one.numel() for one in tokenizer.parameters()),
        "traits": traits.model_dump(mode="json", exclude={"licence"}),
        "has_decoder": has_decoder,
        "computed": f"{dtype}, {torch.get_num_threads()} threads, {encoder_class(on)}",
        "versions": f"tokpipe {tokpipe.__version__}, torch {torch.__version__}",
        "pixels": list(pixels.shape),
        "failed": failed,
    }
    try:
        same = probe(tokenizer, "the tokenizer", with_decoder=has_decoder, pixels=pixels)
    except ConfigError as error:
        failed.append(str(error))
        return found
    if isinstance(tokenizer, NativeTokenizer) and on.type == "cpu":  # others may round otherwise
        failed += [f"other codes {way}" for way, share in same.items() if share < 1]
    codes = tokenizer.encode(pixels)
    theirs = _called(reference, pixels, codes) if reference else codes
    for index, name in enumerate(("chart", "clip")):
        usage = CodeUsage(traits.codebook_size)
        usage.update(codes[index])
        found[name] = {"codes": usage.num_codes, "distinct": usage.num_used}
        found[name]["entropy_bits"] = round(usage.entropy_bits, 2)
        if has_decoder:
            (decoded,) = tokenizer.decode(codes[index : index + 1])
            mean = float(psnr_db(pixels[index].cpu().numpy(), decoded.cpu().numpy()).mean())
            found[name]["psnr_db"] = round(mean, 2) if isfinite(mean) else None
    types = {"float32", "bfloat16", "float16" if on.type == "cuda" else dtype}
    for other in sorted(types - {dtype}):
        with suppress(ConfigError, RuntimeError):  # not every tokenizer computes in every type
            same[other] = equal_share(built(other).encode(pixels), codes)
    found["same_codes"] = same
    if reference:
        same["reference"] = equal_share(theirs, codes)
        found["first_differences"] = (theirs != codes).nonzero()[:3].tolist()
        if same["reference"] < 1 - FLOAT32_CHANGES:
            failed.append(f"other codes than those of {reference}")
    return found


def _pictures(config: TokenizerConfig, size: Sequence[int], clip: str) -> Tensor:
    """(2, T, H, W, 3) uint8: a chart that stands still, and a clip or the chart in motion."""
    traits, side = config.traits, config.traits.side_multiple
    frames = traits.chunk_frames or traits.num_frames(1 + max(1, 16 // traits.temporal_stride))
    usual = getattr(config, "probe_size", None) or traits.frame_size
    height, width = size or usual or [side * -(-256 // side)] * 2
    try:
        traits.check_size(height, width)
    except ValueError as error:
        raise ConfigError(f"--size: {error}") from error
    moving = chart = moving_picture(traits, (frames, height, width))
    edges = chart[:, :, height // 2 :]
    edges[:] = edges // 64 * 85
    rows, columns = torch.arange(height // 8)[:, None], torch.arange(width)
    small_print = ((rows // 3 * 7 ^ columns // 3 * 13) % 5 < 2).unsqueeze(2) * 255
    chart[:, :, -len(rows) :] = small_print
    if clip:
        settings = SamplingConfig(max_clip_frames=frames), FramesConfig(size=(height, width))
        with closing(VideoDecoder(DecodeConfig(), *settings)) as decoder:
            shown = decoder.decode(Path(clip)).frames
        moving = torch.from_numpy(shown[np.arange(frames).clip(max=len(shown) - 1)])[None]
    return torch.cat([chart[:, :1].expand_as(chart), moving])


def _called(reference: str, pixels: Tensor, codes: Tensor) -> Tensor:
    """The codes of a reference, in the shape of the tokenizer's."""
    try:
        with torch.inference_mode():
            theirs = pkgutil.resolve_name(reference)(pixels.clone())
        return torch.as_tensor(theirs, device=codes.device).long().reshape(codes.shape)
    except (Exception, SystemExit) as error:  # user code may raise anything
        do = f"Name a function that can be imported, takes uint8 {tuple(pixels.shape)}"
        problem = f"{type(error).__name__}: {error}. {do} and returns {codes.numel()} codes"
        raise ConfigError(f"--reference {reference}: {problem}") from error
