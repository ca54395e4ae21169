"""Writes an output in the formats of other loaders: ``tokpipe export``. Light to import."""

from tokpipe.export.command import FORMATS, Exported, export_output

__all__ = ["FORMATS", "Exported", "export_output"]
