"""``tokpipe report``: an output as one self-contained HTML file."""

from tokpipe.report.write import WrittenReport, write_report

__all__ = ["WrittenReport", "write_report"]
