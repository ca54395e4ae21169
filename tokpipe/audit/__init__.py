"""Checks an output against what it promises: nothing lost, nothing doubled, every byte as listed.

An audit does not stop at the first defect. ``manifest`` compares the manifest with the stored plan,
``audit`` reads the listed objects and encodes some clips again, ``leftovers`` finds and removes
unlisted objects, and ``remove`` takes out clips.
"""

from tokpipe.audit.audit import Audit
from tokpipe.audit.leftovers import clean

__all__ = ["Audit", "clean"]
