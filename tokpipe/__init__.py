"""Pre-tokenize video datasets into discrete codes: distributed, resumable, exact."""

__version__ = "0.1.0"
