"""Checks an output against what it promises: nothing lost, nothing doubled, every byte as listed.

An audit does not stop at the first defect. ``manifest`` compares the manifest with the stored plan,
``audit`` reads the listed objects and encodes some clips again, ``leftovers`` finds and removes
unlisted objects, and ``report`` presents the result.
"""

from tokpipe.audit.audit import audit
from tokpipe.audit.leftovers import clean
from tokpipe.audit.report import AuditReport

__all__ = ["AuditReport", "audit", "clean"]
