"""An output in the formats of other loaders: ``tokpipe export``."""

from tokpipe.export.command import FORMATS, Exported, export_output

__all__ = ["FORMATS", "Exported", "export_output"]
