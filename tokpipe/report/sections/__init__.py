"""What a report says, section by section: each is a function from the facts to markup."""

from tokpipe.report.sections.codes import codes
from tokpipe.report.sections.headline import headline, state_line
from tokpipe.report.sections.lengths import lengths
from tokpipe.report.sections.pictures import pictures
from tokpipe.report.sections.provenance import provenance
from tokpipe.report.sections.rejected import rejected
from tokpipe.report.sections.throughput import throughput

__all__ = [
    "codes",
    "headline",
    "lengths",
    "pictures",
    "provenance",
    "rejected",
    "state_line",
    "throughput",
]
