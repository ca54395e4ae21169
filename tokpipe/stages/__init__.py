"""The stages of a job, as plain classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokpipe.stages.encode import EncodeStage


def encode_stage(*arguments: Any) -> EncodeStage:
    """Make an encode stage where that is called: its module imports torch."""
    from tokpipe.stages.encode import EncodeStage

    return EncodeStage(*arguments)
