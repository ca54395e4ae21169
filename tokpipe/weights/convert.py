"""Training checkpoints to checkpoint folders: ``config.yaml`` and ``model.safetensors``."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from tokpipe.config.checkpoint import CONFIG_NAME, WEIGHTS_NAME
from tokpipe.config.strict_yaml import StrictLoader
from tokpipe.config.tokenizer import AnyTokenizer, TokenizerConfig
from tokpipe.errors import ConfigError
from tokpipe.formats.tensor_file import TensorFile, TensorInfo, write_tensor_file
from tokpipe.formats.torch_file import Placeholder, StoredTensor, TorchFile

KINDS = ("movqgan", "emu3")
"""Kinds whose settings follow from the shapes of their weights."""
ALWAYS_DROPPED = {"movqgan": ("loss.",)}
"""Beginnings of keys that are part of every checkpoint of a kind, and of no tokenizer."""
STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Where training programs put the weights, in the order in which they are looked for."""
_AVERAGES = re.compile(r"^(?:model_ema|ema_(\w+))\.")
MOST_NAMED = 5


@dataclass(frozen=True)
class Choices:
    """What to take from a checkpoint, under which names."""

    state: str | None = None
    """Entry that holds the weights; looked for when None."""
    ema: bool = False
    """Take the moving averages of the weights in place of the weights."""
    strip: str | None = None
    """Take only keys that begin so, without that beginning."""
    drop: tuple[str, ...] = ()
    """Leave out keys that begin so."""


@dataclass(frozen=True)
class _Weights:
    """Tensors by name, still in their file."""

    infos: dict[str, TensorInfo]
    data_of: Callable[[str], Iterable[Any]]


def convert(
    source: Path,
    folder: Path,
    *,
    kind: str | None = None,
    config: Path | None = None,
    choices: Choices | None = None,
) -> Iterator[str]:
    """Make a checkpoint folder of a ``.ckpt``, ``.pt``, ``.pth`` or ``.safetensors``; say how.

    Nothing in ``source`` is run. Memory stays at about that of its largest tensor until the end,
    when the tokenizer is built from the new folder: only what loads strictly is left behind.

    Args:
        source: the checkpoint.
        folder: where ``config.yaml`` and ``model.safetensors`` go; neither may be there.
        kind: one of ``KINDS``, whose config is worked out from the weights.
        config: or a file with a tokenizer section, without ``weights``.
        choices: what to take.

    Raises:
        ConfigError: no weights are found, they do not fit the config, or files would be replaced.
    """
    choices = choices or Choices()
    if (kind is None) == (config is None):
        raise ConfigError(
            "convert: give either --kind, for weights whose settings follow from their shapes "
            f"({', '.join(KINDS)}), or --config with a tokenizer section: without settings weights "
            "are no tokenizer"
        )
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} is there already, and outputs may have been made with it: give "
                "another folder, or delete it"
            )
    with contextlib.ExitStack() as stack:
        weights = _open(source, choices, stack)
        notes: list[str] = []
        weights = _chosen(weights, choices, ALWAYS_DROPPED.get(kind or "", ()), source, notes)
        yield from notes
        section = _given(config) if config is not None else _inferred(str(kind), weights, source)
        section.setdefault("name", source.stem)
        if section.get("kind") == "custom":
            section["weights"] = WEIGHTS_NAME  # others have it understood
        parsed = _parsed({**section, "weights": str(source)}, config or source)
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that a conversion that fails leaves nothing half-written there.
        partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        stack.callback(shutil.rmtree, partial, ignore_errors=True)
        write_tensor_file(partial / WEIGHTS_NAME, weights.infos, weights.data_of)
        text = yaml.safe_dump(section, sort_keys=False)
        (partial / CONFIG_NAME).write_text(f"# Made of {source.name} by tokpipe convert.\n{text}")
        digest = _verified(parsed, partial / WEIGHTS_NAME)
        folder.mkdir(exist_ok=True)
        for name in (WEIGHTS_NAME, CONFIG_NAME):
            (partial / name).replace(folder / name)
    traits = parsed.traits
    yield (
        f"{folder}: {parsed.kind}, {traits.temporal_stride}x{traits.spatial_stride}x"
        f"{traits.spatial_stride} pixels per code, {traits.codebook_size:,} codes, "
        f"{len(weights.infos):,} tensors of {_size(weights):,} bytes, codes by sha256 {digest}"
    )


# --- what there is --------------------------------------------------------------------------------


def _open(source: Path, choices: Choices, stack: contextlib.ExitStack) -> _Weights:
    if source.suffix == ".safetensors":
        try:
            tensors = TensorFile.parse(str(source), source.read_bytes()).tensors
        except OSError as error:
            raise ConfigError(f"{source} cannot be read: {error.strerror}") from error
        return _Weights({k: i for k, (i, _) in tensors.items()}, lambda k: (tensors[k][1],))
    file = stack.enter_context(TorchFile(source))
    state = _state(file.content, choices.state, source)
    strange = {key: value for key, value in state.items() if not isinstance(value, StoredTensor)}
    for prefix in choices.drop:
        strange = {key: value for key, value in strange.items() if not key.startswith(prefix)}
    if strange:
        named = ", ".join(f"{key} is {_described(value)}" for key, value in strange.items())
        raise ConfigError(
            f"{source}: among its weights {named}, where only tensors can be taken: leave it out "
            "by --drop, or name another entry by --state"
        )
    stored = {key: value for key, value in state.items() if isinstance(value, StoredTensor)}
    return _Weights(
        {key: tensor.info for key, tensor in stored.items()},
        lambda key: file.data_of(stored[key]),
    )


def _state(content: Any, wanted: str | None, source: Path) -> dict[str, Any]:
    """The mapping of names to tensors that a checkpoint holds."""
    entries = content if isinstance(content, Mapping) else {}
    if wanted is not None:
        found = entries.get(wanted)
    elif any(isinstance(value, StoredTensor) for value in entries.values()):
        found = entries
    else:
        found = next((entries[key] for key in STATE_KEYS if key in entries), None)
    if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
        named = ", ".join(f"{key} ({_described(value)})" for key, value in entries.items())
        raise ConfigError(
            f"{source}: has no weights "
            + (f"in the entry {wanted!r}" if wanted is not None else "that can be found")
            + f"; it is {_described(content)}, of {named or 'no entries'}. Name the entry that "
            "maps names to tensors by --state; of a whole pickled model, save its state_dict"
        )
    return dict(found)


def _described(value: Any) -> str:
    if isinstance(value, Placeholder):
        return value.described
    if isinstance(value, Mapping):
        return f"a mapping of {len(value)}"
    return f"a {type(value).__name__}"


# --- what is taken --------------------------------------------------------------------------------


def _chosen(
    weights: _Weights, choices: Choices, always: tuple[str, ...], source: Path, notes: list[str]
) -> _Weights:
    """Apply the choices in turn: averages, beginning, what is left out."""
    keys = dict.fromkeys(weights.infos)
    table = {key: key for key in keys}  # new key -> key in the file
    averages = [key for key in keys if _is_average(key, keys)]
    for key in averages:
        del table[key]
    if choices.strip is not None:
        prefix = choices.strip
        kept = {new[len(prefix) :]: key for new, key in table.items() if new.startswith(prefix)}
        if not kept:
            raise ConfigError(
                f"{source}: no key begins with {prefix!r}, so --strip leaves nothing; the keys "
                f"are {_some(table)}"
            )
        notes.append(f"{source}: took the {len(kept):,} of {len(table):,} keys below {prefix!r}")
        table = kept
    for prefix in (*always, *choices.drop):
        kept = {new: key for new, key in table.items() if not new.startswith(prefix)}
        if len(kept) == len(table) and prefix in choices.drop:
            raise ConfigError(
                f"{source}: no key begins with {prefix!r}, so --drop leaves nothing out; the keys "
                f"are {_some(table)}"
            )
        if len(kept) < len(table):
            notes.append(f"{source}: left {len(table) - len(kept):,} keys below {prefix!r} out")
        table = kept
    if choices.ema:
        table = _averaged(table, set(averages), source, notes)
    elif averages:
        notes.append(
            f"{source}: left {len(averages):,} moving averages out; --ema takes them in place of "
            "the weights"
        )
    return _Weights(
        {new: weights.infos[key] for new, key in table.items()},
        lambda new: weights.data_of(table[new]),
    )


def _is_average(key: str, keys: Iterable[str]) -> bool:
    """Whether a key is one of the moving averages that Lightning's LitEma keeps.

    They stand below ``model_ema.`` or, for each part of a model, below ``ema_<part>.``.
    """
    match = _AVERAGES.match(key)
    if match is None:
        return False
    part = match.group(1)
    return part is None or any(other.startswith(f"{part}.") for other in keys)


def _averaged(
    table: dict[str, str], averages: set[str], source: Path, notes: list[str]
) -> dict[str, str]:
    """Point every key at its average, whose name is the key's without its dots."""
    result: dict[str, str] = {}
    used: dict[str, str] = {}
    without = []
    for new, key in table.items():
        part, _, rest = key.partition(".")
        names = {"model_ema." + key.replace(".", ""), f"ema_{part}.{rest.replace('.', '')}"}
        found = sorted(names & averages)
        if not found:
            without.append(key)
        elif len(found) > 1 or found[0] in used:
            raise ConfigError(
                f"{source}: {key} and {used.get(found[0], found[-1])} have one and the same moving "
                "average, so it cannot be told whose it is: convert without --ema"
            )
        else:
            used[found[0]] = key
        result[new] = found[0] if found else key
    if not used:
        raise ConfigError(
            f"{source}: has no moving averages below model_ema. or ema_<part>., which --ema would "
            "take: convert without it"
        )
    notes.append(f"{source}: took {len(used):,} moving averages in place of the weights")
    if without:
        notes.append(f"{source}: {len(without):,} keys have no average: {_some(without)}")
    return result


def _some(keys: Iterable[str]) -> str:
    named = list(keys)
    more = f" and {len(named) - MOST_NAMED:,} more" if len(named) > MOST_NAMED else ""
    return ", ".join(named[:MOST_NAMED]) + more


def _size(weights: _Weights) -> int:
    return sum(info.size_bytes for info in weights.infos.values())


# --- its settings ---------------------------------------------------------------------------------


def _given(path: Path) -> dict[str, Any]:
    try:
        section = yaml.load(path.read_text(encoding="utf-8"), Loader=StrictLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as a tokenizer section: {error}") from error
    if not isinstance(section, dict) or section.keys() & {"weights", "checkpoint"}:
        raise ConfigError(
            f"{path}: must hold a tokenizer section without weights, which the new folder brings"
        )
    return section


def _inferred(kind: str, weights: _Weights, source: Path) -> dict[str, Any]:
    """Settings of a published kind, read off the shapes of its weights."""
    shapes = {key: info.shape for key, info in weights.infos.items()}
    try:
        if kind == "movqgan":
            return _movqgan(shapes)
        if kind == "emu3":
            return _emu3(shapes)
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(
            f"{source}: is no checkpoint of kind {kind}: it has no {error} of the right shape, but "
            f"{_some(shapes)}. Name the entry of its weights by --state, their beginning by "
            "--strip, or give its settings by --config"
        ) from error
    raise ConfigError(f"convert: kind {kind!r} is none of {', '.join(KINDS)}: give --config")


def _movqgan(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    ch, mult, blocks, attention = _levels(shapes, "encoder.down")
    size, dim = shapes["quantize.embedding.weight"]
    return {
        "kind": "movqgan",
        "ch": ch,
        "ch_mult": mult,
        "num_res_blocks": blocks,
        "attn_resolutions": [256 >> level for level in attention],
        "z_channels": shapes["encoder.conv_out.weight"][0],
        "embed_dim": dim,
        "codebook_size": size,
    }


def _emu3(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    published = any(key.startswith("encoder.down.") for key in shapes)
    down = "encoder.down" if published else "encoder.down_block.down"
    ch, mult, blocks, attention = _levels(shapes, down)
    size, dim = shapes["quantize.embedding.weight"]
    return {
        "kind": "emu3",
        "base_channels": ch,
        "channel_multiplier": mult,
        "num_res_blocks": blocks,
        "attn_resolutions": attention,
        "embed_dim": dim,
        "codebook_size": size,
    }


def _levels(shapes: dict[str, tuple[int, ...]], down: str) -> tuple[int, list[int], int, list[int]]:
    """Channels, their multiples by level, blocks per level, and levels with attention."""
    ch = shapes["encoder.conv_in.weight"][0]
    mult: list[int] = []
    attention = []
    while f"{down}.{len(mult)}.block.0.conv1.weight" in shapes:
        level = len(mult)
        mult.append(shapes[f"{down}.{level}.block.0.conv1.weight"][0] // ch)
        if any(key.startswith(f"{down}.{level}.attn.") for key in shapes):
            attention.append(level)
    blocks = 0
    while f"{down}.0.block.{blocks}.conv1.weight" in shapes:
        blocks += 1
    if not mult:
        raise KeyError(f"{down}.0.block.0.conv1.weight")
    return ch, mult, blocks, attention


def _parsed(section: dict[str, Any], source: Path) -> TokenizerConfig:
    try:
        adapter: TypeAdapter[TokenizerConfig] = TypeAdapter(AnyTokenizer)
        return adapter.validate_json(json.dumps(section))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, detail['loc'][1:]))}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        )
        raise ConfigError(f"{source}: does not make a tokenizer: {problems}") from error


def _verified(config: TokenizerConfig, weights: Path) -> str:
    """Build the tokenizer, decoder and all, and return the hash of what its codes depend on."""
    from tokpipe.models.tokenizers import build_tokenizer  # torch: not to ask for help

    data = weights.read_bytes()
    has_decoder = bool(config.decoder_keys)
    build_tokenizer(config, data, with_decoder=has_decoder)
    return TensorFile.parse(str(weights), data).without(config.decoder_keys).sha256()
