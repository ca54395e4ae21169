"""Builds the published module of a golden fixture and feeds it the fixture's inputs."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

FOLDER = Path(__file__).parent.parent / "golden"

OUR_NAMES = {
    "Model": "UNet",
    "NewDecoder3D": "MOVQDecoder3D",
    "diffusion Decoder": "Decoder",
    "diffusion Encoder": "Encoder",
}
"""Classes with another name here than where they were published."""


def parameter(key: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The float32 array for state_dict ``key``, from a generator seeded by it."""
    rng = np.random.RandomState(zlib.crc32(key.encode()))
    noise = rng.standard_normal(shape)
    if len(shape) >= 2:
        noise = noise / math.sqrt(math.prod(shape[1:]))
    elif key.endswith("weight"):
        noise = 1.0 + 0.1 * noise
    else:
        noise = 0.1 * noise
    return noise.astype(np.float32)


def tensor_input(case: str, name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The float32 input ``name`` of ``case``, uniform in [-1, 1)."""
    rng = np.random.RandomState(zlib.crc32(f"{case}/{name}".encode()))
    return rng.uniform(-1.0, 1.0, shape).astype(np.float32)


def fill(module: nn.Module) -> None:
    """Set every floating-point entry to its golden parameter; keep constants."""
    state = module.state_dict()
    floats = (key for key, value in state.items() if value.is_floating_point())
    filled = {key: torch.from_numpy(parameter(key, tuple(state[key].shape))) for key in floats}
    module.load_state_dict({**state, **filled})


def spec(case: str) -> dict[str, Any]:
    """The fixture's JSON."""
    loaded: dict[str, Any] = json.loads((FOLDER / f"{case}.json").read_text())
    return loaded


def inputs(case: str) -> list[Tensor]:
    """The inputs of the module, in order."""
    return [
        torch.from_numpy(tensor_input(case, name, tuple(shape)))
        for name, shape in spec(case)["inputs"].items()
    ]


def weights(case: str) -> dict[str, Tensor]:
    """The published state_dict of the fixture."""
    shapes = spec(case)["state_dict"].items()
    return {key: torch.from_numpy(parameter(key, tuple(shape))) for key, shape in shapes}


def pixels(case: str) -> Tensor:
    """The input of a tokenizer: (B, T, H, W, 3) uint8."""
    (x,) = inputs(case)
    return ((x + 1) * 127.5).to(torch.uint8)


def outputs(case: str) -> dict[str, Tensor]:
    """The expected outputs, by name."""
    with np.load(FOLDER / f"{case}.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def build(case: str, cls: type[nn.Module]) -> nn.Module:
    """The module of the fixture in eval mode, its keys checked and its parameters filled."""
    described = spec(case)
    published = described["module"]
    assert cls.__name__ == OUR_NAMES.get(published, published)
    module = cls(**described["kwargs"]).eval()
    shapes = {key: list(value.shape) for key, value in module.state_dict().items()}
    assert shapes == described["state_dict"]
    fill(module)
    return module


def assert_agree(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)
