"""Published configs give one mapping of arguments to both ends of an autoencoder."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from tokpipe.models import (
    AutoencoderDecoder,
    AutoencoderEncoder,
    Decoder,
    Encoder,
    Encoder3D,
    MOVQDecoder,
    MOVQDecoder3D,
)

SHARED: dict[str, Any] = {
    "double_z": False,
    "z_channels": 4,
    "resolution": 16,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "dropout": 0.0,
}
ENDS = [
    (Encoder, {}),
    (Decoder, {}),
    (MOVQDecoder, {"zq_ch": 4}),
    (Encoder3D, {"temporal_compress_times": 2}),
    (MOVQDecoder3D, {"temporal_compress_times": 2}),
    (AutoencoderEncoder, {}),
    (AutoencoderDecoder, {}),
]


@pytest.mark.parametrize(("cls", "own"), ENDS)
def test_both_ends_take_the_arguments_they_share(cls: type[nn.Module], own: dict[str, Any]) -> None:
    assert sum(parameter.numel() for parameter in cls(**SHARED, **own).parameters())


@pytest.mark.parametrize(("cls", "own"), ENDS)
def test_arguments_that_nobody_published_are_errors(
    cls: type[nn.Module], own: dict[str, Any]
) -> None:
    with pytest.raises(TypeError, match="num_res_block'"):
        cls(**SHARED, **own, num_res_block=2)
