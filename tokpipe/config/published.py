"""What is published of tokenizers: presets, and what the keys of weights prove."""

import tomllib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from tokpipe.errors import ConfigError, WeightsMismatch

# TOML, which is read in a tenth of the time of YAML, whenever settings are checked.
_PUBLISHED = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))
PRESETS: dict[str, dict[str, Any]] = {  # By name. The file leaves out the kind ``vqgan``
    name: {"kind": "vqgan", **one} for name, one in _PUBLISHED["presets"].items()
}
RENAMED: dict[str, dict[str, str]] = _PUBLISHED["renamed"]
"""For the keys of a package: regular expressions in keys of others, and what replaces them."""


def presets_of(kind: str) -> list[str]:
    """The names of the presets of a kind."""
    return [name for name, one in PRESETS.items() if one["kind"] == kind]


def with_preset(section: Any) -> Any:
    """A tokenizer section, and what its preset sets besides, with tuples in place of lists."""
    if not isinstance(section, dict):
        return section
    if section.get("kind") == "movqgan":
        section = {**PRESETS["movqgan-270m"], **section, "kind": "vqgan"}
    name = str(section.get("preset"))
    if name in presets_of(str(section.get("kind"))):
        section = {"name": name, **PRESETS[name], **section}
    # Strict models take a list for a tuple from JSON only.
    return {k: tuple(v) if isinstance(v, list) else v for k, v in section.items()}


def proved_settings(keys: Collection[str]) -> dict[str, tuple[tuple[str, ...], str]]:
    """Return, by setting, the values that keys of published weights allow, and a key that shows it.
    No key tells ``vq`` from ``ibq``."""
    proved: dict[str, tuple[tuple[str, ...], str]] = {}
    for part, setting, *values in _PUBLISHED["keys"]["signs"]:
        if (key := next((key for key in keys if part in key), None)) is not None:
            proved.setdefault(setting, (tuple(values), key))
    return proved


def tensors_of(
    config: Any,
    data: bytes,
    source: str,
    *,
    with_decoder: bool,
    parse: Callable[[bytes], Any] | None = None,
) -> dict[str, Any]:
    """Return the tensors of a tokenizer's safetensors file by key, as ``parse`` reads them.
    WeightsMismatch if keys, also those of a decoder that is left out, contradict settings."""
    import safetensors  # jobs are checked without it

    try:
        tensors = dict((parse or safetensors.deserialize)(data))
    except safetensors.SafetensorError as error:
        do = "The tokenizer needs it: run `tokpipe convert` on other formats, or copy it again"
        raise ConfigError(f"{source} is not a complete safetensors file ({error}). {do}") from error
    proved = proved_settings(tensors) if config.kind == "vqgan" else {}
    for setting, (values, key) in proved.items():
        if (own := getattr(config, setting)) not in values:
            raise WeightsMismatch(
                f"{source}: weights with the key {key} have {setting}: {' or '.join(values)}, but "
                f"the tokenizer {config.preset or config.name} has {setting}: {own}, and would "
                "make other codes than theirs. Name their preset, or correct the setting",
                unexpected=[key],
            )
    left_out = () if with_decoder else config.decoder_keys
    return {key: one for key, one in tensors.items() if not key.startswith(left_out)}
