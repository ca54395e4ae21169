"""A training run small enough for a test: one level after the other, 16 pixels, some steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokpipe.train.config import TrainConfig, parse_training


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """What a training file holds."""
    return {
        "output": str(folder),
        "tokenizer": {
            "patch_size": 2,
            "norm": "frame",
            "encoder": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1, "z_channels": 4},
            "quantizer": {"kind": "fsq", "levels": [8, 5, 5, 5]},
            "decoder": {"ch": 32, "ch_mult": [1, 1, 1], "num_res_blocks": 1},
        },
        "scenes": {"textures": 4, "shapes": 4},
        "phases": [
            {
                "steps": 6,
                "size": 16,
                "batches": [{"frames": 1, "clips": 2}, {"frames": 5, "clips": 1}],
                "learning_rate": [0.001, 0.001],
            }
        ],
        "threads": 1,
        "log_every_steps": 1,
        **changes,
    }


def config(folder: Path, **changes: Any) -> TrainConfig:
    return parse_training(settings(folder, **changes), name="test.yaml", root=folder)
