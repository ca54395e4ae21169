"""Holds an output against what it promises: nothing lost, nothing doubled, every byte as listed.

Nothing here stops at the first defect. ``planned`` and ``manifest`` count clips off the stored
plan, ``objects`` reads what is listed, ``leftovers`` finds (and removes) what is not, ``report``
says what was found.
"""

from tokpipe.audit.audit import audit
from tokpipe.audit.leftovers import clean
from tokpipe.audit.report import AuditReport

__all__ = ["AuditReport", "audit", "clean"]
