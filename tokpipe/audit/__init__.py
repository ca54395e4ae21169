"""Checks an output against what it promises: nothing lost, nothing doubled, every byte as listed.

An audit does not stop at the first defect. ``planned`` and ``manifest`` compare the manifest with
the stored plan, ``objects`` reads the listed objects, ``leftovers`` finds and removes unlisted
ones, ``sample`` encodes clips again, and ``report`` presents the result.
"""

from tokpipe.audit.audit import audit
from tokpipe.audit.leftovers import clean
from tokpipe.audit.report import AuditReport

__all__ = ["AuditReport", "audit", "clean"]
