"""``tokpipe report``: all that an output tells about itself, as one page of HTML."""

from tokpipe.report.write import Written, write_report

__all__ = ["Written", "write_report"]
