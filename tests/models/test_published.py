import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tokpipe.errors import ConfigError, WeightsMismatch
from tokpipe.models import LFQ
from tokpipe.models.published import load_published

MASK = "quantizer.mask"


class Small(nn.Module):
    """A convolution, a learned statistic, and constants that follow from the arguments."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 1)
        self.quantizer = LFQ(3)
        self.register_buffer("scale", torch.ones(2))


def weights(**changes: Any) -> dict[str, Any]:
    """Weights that fit ``Small``, with some keys changed or, with None, dropped."""
    torch.manual_seed(1)
    state = {**Small().state_dict(), "scale": torch.tensor([3.0, 4.0]), **changes}
    return {key: value for key, value in state.items() if value is not None}


def rejection(state: Any, **options: Any) -> WeightsMismatch:
    """The error, after checking that nothing was loaded."""
    module = Small()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(WeightsMismatch) as caught:
        load_published(module, state, **options)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    return caught.value


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_value_is_loaded_in_the_dtype_of_the_module(dtype: torch.dtype) -> None:
    given = {key: v.to(dtype) if v.is_floating_point() else v for key, v in weights().items()}
    module = Small()
    load_published(module, given)
    for key, value in module.state_dict().items():
        assert torch.equal(value, given[key].to(value.dtype))
    assert module.scale.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        ({"conv.bias": torch.zeros(4)}, "conv.bias", "is (4,), not (3,)"),
        ({"conv.bias": torch.zeros(3, 1)}, "conv.bias", "is (3, 1), not (3,)"),
        ({"conv.bias": torch.zeros(3).int()}, "conv.bias", "is torch.int32, not torch.float32"),
        ({"conv.bias": torch.zeros(3) * 1j}, "conv.bias", "is torch.complex64, not torch.float32"),
        ({MASK: torch.ones(3)}, MASK, "is torch.float32, not torch.int64"),
        ({MASK: torch.ones(3) > 0}, MASK, "is torch.bool, not torch.int64"),
        ({MASK: torch.tensor([1, 2, 4])}, MASK, "is [1, 2, 4], not [4, 2, 1]"),
        ({"scale": torch.tensor([1, torch.nan])}, "scale", "holds NaN or infinity"),
        ({"scale": torch.full((2,), 1e300, dtype=torch.float64)}, "scale", "holds NaN or infinity"),
        ({"scale": [1.0, 2.0]}, "scale", "is a list, not a tensor"),
        ({"scale": torch.ones(2, device="meta")}, "scale", "is a tensor without plain data"),
        ({"scale": torch.ones(2).to_sparse()}, "scale", "is a tensor without plain data"),
    ],
)
def test_a_misfit_is_named(changes: dict[str, Any], key: str, problem: str) -> None:
    error = rejection(weights(**changes))
    assert (error.missing, error.unexpected, list(error.misfits)) == ((), (), [key])
    assert error.misfits[key].startswith(problem)
    assert f"{key} {problem}" in str(error)


def test_every_missing_unexpected_and_misshapen_key_is_named_at_once() -> None:
    error = rejection(
        {**weights(**{"conv.weight": None, "scale": torch.ones(3)}), "b": 1, "a": torch.ones(1)}
    )
    assert error.missing == ("conv.weight",)
    assert error.unexpected == ("a", "b")
    assert error.misfits == {"scale": "is (3,), not (2,)"}
    assert "missing conv.weight; unexpected a; unexpected b; scale is (3,), not" in str(error)
    assert isinstance(error, ConfigError)


def test_the_message_names_some_keys_and_the_error_has_all() -> None:
    more = {f"more.{n:02}": torch.ones(1) for n in range(30)}
    error = rejection({**weights(), **more}, source="w")
    assert error.unexpected == tuple(more)
    assert str(error).startswith("w: the weights do not fit Small: unexpected")
    assert "unexpected more.07; 22 more such. Nothing was loaded" in str(error)


def test_the_error_survives_being_sent_between_processes() -> None:
    error = rejection(weights(scale=None))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is WeightsMismatch
    assert (str(again), again.missing) == (str(error), ("scale",))


def test_keys_are_renamed_by_the_longest_match() -> None:
    names = {"conv.weight": "conv_one.weight", "conv.bias": "conv_one.bias", MASK: "bits"}
    published = {f"model.{names.get(key, key)}": value for key, value in weights().items()}
    module = Small()
    table = {"model": "", "model.conv_one": "conv", "model.bits": MASK}
    load_published(module, published, rename=table)
    for key, value in module.state_dict().items():
        assert torch.equal(value, weights()[key])
    # A name does not match part of a word, and unexpected keys keep their published name.
    error = rejection({**published, "model.conv_ones": torch.ones(1)}, rename=table)
    assert error.unexpected == ("model.conv_ones",)
    assert error.misfits == {}


def test_an_empty_name_adds_a_prefix() -> None:
    module = nn.ModuleDict({"small": Small()})
    load_published(module, weights(), rename={"": "small"})
    assert torch.equal(module["small"].state_dict()["scale"], weights()["scale"])


def test_two_keys_renamed_to_one_are_rejected() -> None:
    error = rejection({**weights(), "kernel": weights()["scale"]}, rename={"kernel": "scale"})
    assert error.misfits == {"scale": "is the new name of both scale and kernel"}


@pytest.mark.parametrize("given", [{}, {"epoch": 3, "state_dict": weights()}])
def test_the_message_says_what_to_do(given: dict[str, Any]) -> None:
    error = rejection(given)
    assert error.missing == tuple(sorted(weights()))
    assert str(error).endswith(
        "Build the model with the settings of the weights, pass the entry of a checkpoint that "
        "holds them, or rename the keys"
    )


def test_batch_counters_are_not_constants() -> None:
    module, given = nn.BatchNorm2d(2), nn.BatchNorm2d(2).state_dict()
    given["num_batches_tracked"] = torch.tensor(7)
    load_published(module, given)
    assert module.state_dict()["num_batches_tracked"] == 7


def test_a_module_without_storage_is_rejected() -> None:
    with pytest.raises(ValueError, match=r"Small is on the meta device.*to_empty"):
        load_published(Small().to("meta"), weights())
