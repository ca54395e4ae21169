"""Decoding in the process of a verb, without a cluster."""

from collections.abc import Iterator
from contextlib import closing, contextmanager

from tokpipe.config import JobConfig
from tokpipe.stages.decode import DecodeStage
from tokpipe.types import Cut


@contextmanager
def decoding(job: JobConfig, pieces: Cut | None = None) -> Iterator[DecodeStage]:
    """Set the decode stage of a job up within the block."""
    stage = DecodeStage(job.sampling, job.frames, job.decode, job.storage, pieces)
    stage.setup()
    with closing(stage):
        yield stage
