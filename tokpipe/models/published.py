"""The published interface: strict loading of weights, and what quantizers return."""

import reprlib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokpipe.errors import ConfigError, WeightsMismatch
from tokpipe.models.causal_conv import CausalConv3d
from tokpipe.models.quantizers.base import Quantized

_CODES_IN_LOG = {
    "VectorQuantizer": "min_encoding_indices",
    "EMAVectorQuantizer": "encoding_indices",
    "GumbelQuantizer": "indices",
}

MAX_NAMED = 8
"""Keys of each kind of problem in a message; the attributes of the error have all of them."""


def load_published(
    module: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    rename: Mapping[str, str] | None = None,
    source: str = "state_dict",
) -> None:
    """Fill every parameter and persistent buffer of ``module``, or none of them.

    Values of any floating dtype and device are converted to those of the module. Integer buffers,
    which follow from the constructor's arguments, must have the same values.

    ``rename`` maps published names to those of the module. A name is a whole key, or its beginning
    up to a dot, and the longest match is replaced: ``{"quantize": "quantizer"}`` moves
    ``quantize.embedding.weight``. An empty name adds a prefix to every other key, or removes one.
    Messages call the weights ``source``, for example their URI.

    Raises WeightsMismatch if a key is missing, unexpected, of another shape or kind of number, not
    finite in the module's dtype, or a constant of another value; ConfigError for a convolution with
    ``pad_mode="constant"``, which has two meanings; ValueError on the meta device, without memory.
    """
    for name, part in module.named_modules():
        if isinstance(part, CausalConv3d) and part.is_ambiguous:
            raise ConfigError(
                f"{source}: {name or 'the convolution'} has pad_mode='constant', which published "
                "code mistakes. Choose pad_mode (for add_conv: add_conv_pad_mode) "
                "'constant_published' for weights that it trained, 'constant_causal' for others"
            )
    wanted = module.state_dict()
    if any(value.is_meta for value in wanted.values()):
        found = f"{type(module).__name__} is on the meta device, which silently drops weights"
        raise ValueError(f"{found}: move it with to_empty(device=...) first")
    given: dict[str, tuple[str, Tensor]] = {}  # published key and value, by the module's key
    misfits: dict[str, str] = {}
    for published, value in state_dict.items():
        key = _renamed(str(published), rename or {})
        if key in given:
            misfits[key] = f"is the new name of both {given[key][0]} and {published}"
        given[key] = (str(published), value)
    constants = {
        key
        for key, buffer in module.named_buffers()
        if not buffer.is_floating_point() and not key.endswith("num_batches_tracked")
    }
    for key in sorted(wanted.keys() & given.keys()):
        if misfit := _misfit(given[key][1], wanted[key], constant=key in constants):
            misfits.setdefault(key, misfit)
    missing = sorted(wanted.keys() - given.keys())
    unexpected = sorted(given[key][0] for key in given.keys() - wanted.keys())
    if missing or unexpected or misfits:
        problems = [
            *_some(f"missing {key}" for key in missing),
            *_some(f"unexpected {key}" for key in unexpected),
            *_some(f"{key} {misfit}" for key, misfit in misfits.items()),
        ]
        raise WeightsMismatch(
            f"{source}: the weights do not fit {type(module).__name__}: {'; '.join(problems)}. "
            "Nothing was loaded: half a model returns noise. Build the model with the settings of "
            "the weights, pass the entry of a checkpoint that holds them, or rename the keys",
            missing=missing,
            unexpected=unexpected,
            misfits=misfits,
        )
    module.load_state_dict({key: value for key, (_, value) in given.items()})


def as_published(
    result: Quantized, name: str = "VectorQuantizer2", *, loss_key: str = "loss/vq"
) -> tuple[Any, ...]:
    """What the published class ``name`` returns, in its order, from what a quantizer returned.

    - ``VectorQuantizer2``, ``GumbelQuantize``: (vectors, loss, (None, None, codes)).
    - ``VectorQuantizer``, ``EMAVectorQuantizer``, ``GumbelQuantizer``: (vectors, log). The log has
      the loss, the codes by their published key, and the ``perplexity`` and number of distinct
      codes, ``cluster_usage``, of the batch. EMA's one-hot ``encodings`` are left out.
    - ``FSQ``: (vectors, codes), the codes int32. ``LFQ``: (vectors, codes, loss).
    """
    vectors, codes, loss = result
    if name in ("VectorQuantizer2", "GumbelQuantize"):
        return vectors, loss, (None, None, codes)
    if name in ("FSQ", "LFQ"):
        return result if name == "LFQ" else (vectors, codes.int())
    if name not in _CODES_IN_LOG:
        raise ValueError(f"{name=}: use the name of a published quantizer, as listed in the docs")
    shares = codes.unique(return_counts=True)[1] / codes.numel()
    usage = {"perplexity": shares.pow(-shares).prod(), "cluster_usage": torch.tensor(len(shares))}
    return vectors, {loss_key: loss, _CODES_IN_LOG[name]: codes, **usage}


def _renamed(key: str, table: Mapping[str, str]) -> str:
    for name in sorted(table, key=len, reverse=True):
        if name == "" or key == name or key.startswith(f"{name}."):
            rest = key[len(name) :].removeprefix(".")
            return ".".join(part for part in (table[name], rest) if part)
    return key


def _misfit(given: object, wanted: Tensor, *, constant: bool) -> str | None:
    if not isinstance(given, Tensor):
        return f"is a {type(given).__name__}, not a tensor"
    if given.is_meta or given.layout != torch.strided:
        return "is a tensor without plain data (meta or sparse)"
    if given.shape != wanted.shape:
        return f"is {tuple(given.shape)}, not {tuple(wanted.shape)}"
    dtypes = given.dtype, wanted.dtype
    if not torch.can_cast(*dtypes) or not torch.can_cast(*dtypes[::-1]):
        return f"is {given.dtype}, not {wanted.dtype}"
    if constant and not bool((given.to(wanted.device) == wanted).all()):
        return f"is {reprlib.repr(given.tolist())}, not {reprlib.repr(wanted.tolist())}"
    if not bool(given.to(wanted.dtype).isfinite().all()):
        return f"holds NaN or infinity as {wanted.dtype}"
    return None


def _some(problems: Iterable[str]) -> list[str]:
    """Shorten a list, so that a message has room for every kind of problem."""
    named = list(problems)
    more = [f"{len(named) - MAX_NAMED} more such"] if len(named) > MAX_NAMED else []
    return named[:MAX_NAMED] + more
