"""Small networks for the tests of models."""

from typing import Any

import torch

from tokpipe.models import UNet

SMALL: dict[str, Any] = {"ch": 32, "in_channels": 3, "out_ch": 3, "num_res_blocks": 1}
IMAGES: dict[str, Any] = {"ch_mult": (1, 2), "attn_resolutions": (8,), "resolution": 16}
CLIPS: dict[str, Any] = {"ch_mult": (1, 1, 2), "attn_resolutions": (), "resolution": 32}
LATENT: dict[str, Any] = {"z_channels": 4, "double_z": False}


def small(cls: type[Any], **changes: Any) -> Any:
    """Two levels for images, three for clips; the same weights every time."""
    settings = SMALL | (CLIPS if "3D" in cls.__name__ else IMAGES)
    torch.manual_seed(0)
    return cls(**(settings | ({} if cls is UNet else LATENT) | changes)).eval()
