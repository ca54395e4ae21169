"""``tokpipe report``: an output as one self-contained HTML file."""

from tokpipe.report.write import WrittenReport

__all__ = ["WrittenReport"]
