"""``tokpipe report``: an output as one HTML file that needs nothing else to be looked at."""

from tokpipe.report.write import Report, write_report

__all__ = ["Report", "write_report"]
