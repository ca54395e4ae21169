"""Turns training checkpoints into checkpoint folders: ``config.yaml``, ``model.safetensors``."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from itertools import compress, count, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tokpipe.config.checkpoint import CONFIG_NAME, WEIGHTS_NAME
from tokpipe.config.explain import in_yaml, validate_settings
from tokpipe.config.published import PRESETS, presets_of, proved_settings, tensors_of
from tokpipe.config.strict_yaml import read_mapping
from tokpipe.config.tokenizer import AnyTokenizer, TokenizerConfig
from tokpipe.errors import ConfigError
from tokpipe.storage.local_files import write_file
from tokpipe.weights.read import tensors_sha256

if TYPE_CHECKING:
    from torch import Tensor  # takes seconds: imported only when a conversion runs

STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Where training programs put the weights, in the order in which they are tried."""
_AVERAGES = re.compile(r"^(?:model_ema|ema_(\w+))\.")


@dataclass(frozen=True)
class Choices:
    """Which weights to take from a checkpoint, and under which names."""

    state: str | None = None  # The entry that holds the weights; None tries ``STATE_KEYS``
    ema: bool = False  # Take the moving averages of the weights instead of the weights
    strip: str | None = None  # Take only keys with this prefix, and remove it
    drop: tuple[str, ...] = ()  # Leave out keys with these prefixes


def convert(
    source: Path,
    folder: Path,
    *,
    kind: str | None = None,
    config: Path | None = None,
    choices: Choices = Choices(),
) -> Iterator[str]:
    """Convert a ``.ckpt``, ``.pt``, ``.pth`` or ``.safetensors`` file; yield lines that say how.

    Runs nothing in ``source``, which stays memory-mapped. Builds the tokenizer from the result
    before writing it, so a folder left behind is one that loads strictly. Settings are those of
    ``config``, a tokenizer section without ``weights``, or of ``kind``: a preset, or ``vqgan``,
    ``movqgan`` or ``emu3``, whose settings follow from the shapes of the weights.
    """
    import safetensors.torch

    from tokpipe.models.tokenizers import build_tokenizer

    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if (folder / name).exists():
            found = f"{folder / name} already exists, and outputs may depend on it"
            raise ConfigError(f"{found}. Choose another folder, or delete it")
    state = _read_state(source, choices)
    always_dropped = () if kind in (None, "emu3") else ("loss.",)  # the discriminator
    state = yield from _choose(state, choices, always_dropped, source)
    section = _read_config(config) if config is not None else _infer(str(kind), state, source)
    section.setdefault("name", source.stem)
    if section.get("kind") == "custom":
        section["weights"] = WEIGHTS_NAME  # implied for the other kinds
    parsed: TokenizerConfig = validate_settings(
        AnyTokenizer,
        {**section, "weights": str(source)},
        name=f"{config or source} does not describe a tokenizer",
    )
    if preset := PRESETS.get(section.get("preset", "")):
        yield f"{source}: preset {section['preset']}, quantizer {preset.get('quantizer', 'fsq')}"
    # safetensors takes neither strided views nor tensors that share memory, such as tied weights.
    copies = {key: one.detach().resolve_neg().contiguous().clone() for key, one in state.items()}
    data = safetensors.torch.save(copies)
    has_decoder = any(key.startswith("decoder.") for key in state)
    build_tokenizer(parsed, data, with_decoder=has_decoder and bool(parsed.decoder_keys))
    digest = tensors_sha256(tensors_of(parsed, data, str(source), with_decoder=False))
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / WEIGHTS_NAME, data)
    text = yaml.safe_dump(section, sort_keys=False)
    write_file(folder / CONFIG_NAME, f"# From {source.name}, by tokpipe convert.\n{text}".encode())
    traits = parsed.traits
    yield (
        f"{folder}: {parsed.kind}, {traits.temporal_stride}x{traits.spatial_stride}x"
        f"{traits.spatial_stride} pixels per code, {traits.codebook_size:,} codes, "
        f"{len(state):,} tensors of {sum(one.nbytes for one in state.values()):,} bytes, "
        f"{'' if has_decoder else 'none of a decoder, '}codes by sha256 {digest}"
    )


def _read_state(source: Path, choices: Choices) -> dict[str, Tensor]:
    import safetensors.torch

    from tokpipe.weights.checkpoint import load_checkpoint, not_plain

    if source.suffix == ".safetensors":
        try:
            return dict(safetensors.torch.load_file(source))
        except (OSError, KeyError, safetensors.SafetensorError) as error:
            raise ConfigError(f"{source} cannot be read as safetensors: {error}") from error
    content = load_checkpoint(source)
    entries = content if isinstance(content, Mapping) else {}
    if choices.state is not None:
        found = entries.get(choices.state)
    elif any(not_plain(value) is None for value in entries.values()):
        found = entries
    else:
        found = next((entries[key] for key in STATE_KEYS if key in entries), None)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        where = f"in the entry {choices.state!r}" if choices.state else "that can be found"
        named = [f"{key} ({not_plain(value) or 'a tensor'})" for key, value in entries.items()]
        raise ConfigError(
            f"{source} has no weights {where}; it is {not_plain(content) or 'a tensor'} with "
            f"{', '.join(named) or 'no entries'}. Select the entry that maps names to tensors "
            "with --state; if a whole model was pickled, save its state_dict"
        )
    problems = {key: not_plain(value) for key, value in found.items()}
    rejected = [
        f"{key} is {problem}"
        for key, problem in problems.items()
        if problem is not None and not key.startswith(choices.drop)
    ]
    if rejected:
        raise ConfigError(
            f"{source}: among its weights, {', '.join(rejected)}. Only dense tensors can be "
            "converted. Leave it out with --drop, or select another entry with --state"
        )
    return {key: value for key, value in found.items() if problems[key] is None}


def _choose(
    state: Mapping[str, Tensor], choices: Choices, always_dropped: tuple[str, ...], source: Path
) -> Generator[str, None, dict[str, Tensor]]:
    """Set averages aside, drop keys, strip the prefix, and put averages in place if asked to. Keys
    to drop may be named with or without the prefix that is stripped."""
    averages = {  # LitEma's: below ``model_ema.``, or a part's below ``ema_<part>.``
        key
        for key in state
        if (match := _AVERAGES.match(key))
        and (not match[1] or any(other.startswith(f"{match[1]}.") for other in state))
    }
    table = {key: key for key in state if key not in averages}  # new key -> key in the file
    for prefix in (*always_dropped, *choices.drop):
        below = (prefix, f"{choices.strip or ''}{prefix}")
        kept = {new: key for new, key in table.items() if not key.startswith(below)}
        if prefix in choices.drop or len(kept) < len(table):
            yield f"{source}: left out {len(table) - len(kept):,} keys below {prefix!r}"
        table = kept
    if (strip := choices.strip) is not None:
        kept = {key.removeprefix(strip): key for key in table if key.startswith(strip)}
        yield f"{source}: took the {len(kept):,} of {len(table):,} keys below {strip!r}"
        table = kept
    if choices.ema:
        table = yield from _averaged(table, averages, source)
    elif averages:
        yield f"{source}: left out {len(averages):,} moving averages; --ema takes them instead"
    return {new: state[key] for new, key in table.items()}


def _averaged(
    table: Mapping[str, str], averages: set[str], source: Path
) -> Generator[str, None, dict[str, str]]:
    """Point every key at its average, which is named after the key without its dots. LitEma leaves
    out the name of the model if it was given only that, as in ``LitEma(self.model)``."""
    owners: dict[str, str] = {}  # new key by average
    for new, key in table.items():
        part, _, rest = key.partition(".")
        names = {f"model_ema.{name.replace('.', '')}" for name in (key, new)}
        for name in averages & {*names, f"ema_{part}.{rest.replace('.', '')}"}:
            if name in owners or new in owners.values():
                other = table[owners[name]] if name in owners else name
                found = f"{source}: {key} and {other} share one moving average"
                raise ConfigError(f"{found}, so its owner is unknown. Convert without --ema")
            owners[name] = new
    if not owners:
        found = f"{source} has no moving averages below model_ema. or ema_<part>"
        raise ConfigError(f"{found}. Convert without --ema")
    yield f"{source}: took {len(owners):,} moving averages instead of the weights"
    if without := [key for new, key in table.items() if new not in owners.values()]:
        yield f"{source}: {len(without):,} keys have no average, such as {without[0]}"
    return {**table, **{new: name for name, new in owners.items()}}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        section = read_mapping(path.read_bytes(), str(path), "tokenizer section")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read as a tokenizer section: {error}") from error
    if section.keys() & {"weights", "checkpoint"}:
        raise ConfigError(f"{path} must hold a tokenizer section without weights: those are added")
    return section


def _infer(kind: str, state: Mapping[str, Tensor], source: Path) -> dict[str, Any]:
    from tokpipe.models.tokenizers.vqgan import Emu3Tokenizer, VQGANTokenizer

    if kind in PRESETS:
        return {"kind": PRESETS[kind]["kind"], "preset": kind}
    is_emu3 = kind == "emu3"
    renamed = (Emu3Tokenizer if is_emu3 else VQGANTokenizer).renamed(state)
    if any(".conv_1." in key for key in state):  # Open-MAGVIT2's of video
        renamed = {key.replace(".conv.", "."): one for key, one in renamed.items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in renamed.items()}
    try:
        down = "encoder.down_block.down" if is_emu3 else "encoder.down"
        ch, mult, blocks, attention = _levels(shapes, down)
        z = shapes["encoder.conv_out.weight"][0]
        codebooks = [key for key in shapes if re.fullmatch(r"quantize\.embed\w*\.weight", key)]
        size, dim = shapes[codebooks[0]] if codebooks else (2**z, z)
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"{source} is not a checkpoint of kind {kind}: it has no {error} of the right shape; "
            f"its keys are {', '.join(shapes):.200}. Select the entry with --state and remove a "
            "key prefix with --strip, or pass its settings with --config"
        ) from error
    section = {"num_res_blocks": blocks, "embed_dim": dim, "codebook_size": size}
    if is_emu3:
        names = {"kind": kind, "base_channels": ch, "channel_multiplier": mult}
        return {**section, **names, "attn_resolutions": attention}
    section |= {"ch": ch, "ch_mult": mult, "z_channels": z}
    section["attn_resolutions"] = [256 >> level for level in attention]
    proved = {name: values for name, (values, _) in proved_settings(state).items()}
    if kind == "movqgan":
        proved |= {"decoder": ("movq",), "quantizer": ("vq",)}
    for preset in presets_of("vqgan"):
        published = PRESETS[preset]
        agrees = all(published.get(name) in values for name, values in proved.items())
        if agrees and {**published, **section} == published:
            return {"kind": "vqgan", "preset": preset}
    section |= {name: " or ".join(values) for name, values in proved.items()}
    if len(proved.get("quantizer", ())) != 1:
        raise ConfigError(
            f"{source}: these weights are of no preset, and their keys do not show how a code is "
            f"found: codes may be wrong. Pass --config with {in_yaml({'kind': 'vqgan', **section})}"
        )
    return {"kind": "vqgan", **section}


def _levels(shapes: dict[str, tuple[int, ...]], down: str) -> tuple[int, list[int], int, list[int]]:
    """Return channels, their multiples by level, blocks per level, and levels with attention."""
    ch = shapes["encoder.conv_in.weight"][0]
    first = f"{down}.{{}}.block.{{}}.conv1.weight".format
    levels = list(takewhile(lambda level: first(level, 0) in shapes, count()))
    if not levels:
        raise KeyError(first(0, 0))
    mult = [shapes[first(level, 0)][0] // ch for level in levels]
    blocks = next(block for block in count() if first(0, block) not in shapes)
    attends = [any(key.startswith(f"{down}.{level}.attn.") for key in shapes) for level in levels]
    return ch, mult, blocks, list(compress(levels, attends))
