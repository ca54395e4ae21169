"""The stages of a job, as plain classes."""

from typing import Any


def encode_stage(*arguments: Any) -> Any:
    """Make an encode stage where this is called: its module imports torch."""
    from tokpipe.stages.encode import EncodeStage

    return EncodeStage(*arguments)
