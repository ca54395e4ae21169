"""Decoding in the process of a verb, without a cluster."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tokpipe.stages.decode import DecodeStage


@contextmanager
def set_up(stage: DecodeStage) -> Iterator[DecodeStage]:
    """Set a stage up with a scratch folder, and close it after the block."""
    with tempfile.TemporaryDirectory(prefix="tokpipe-scratch-") as folder:
        stage.setup(Path(folder))
        with closing(stage):
            yield stage
