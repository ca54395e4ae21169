"""Job files as pydantic models. Imports nothing heavy, so that checking a job takes a moment."""

from tokpipe.config.job import JobConfig
from tokpipe.config.load import load_job, parse_job, project_root

__all__ = ["JobConfig", "load_job", "parse_job", "project_root"]
