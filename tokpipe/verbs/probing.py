"""Decoding in the process of a verb, without a cluster."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tokpipe.config import JobConfig
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import Cut


@contextmanager
def decoding(job: JobConfig, pieces: Cut | None = None) -> Iterator[DecodeStage]:
    """Set the decode stage of a job up within the block, with a scratch folder."""
    stage = DecodeStage(job.sampling, job.frames, job.decode, job.storage, pieces)
    with tempfile.TemporaryDirectory(prefix="tokpipe-scratch-") as folder:
        stage.setup(Path(folder))
        with closing(stage):
            yield stage
