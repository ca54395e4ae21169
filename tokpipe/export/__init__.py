"""An output in the formats of other loaders: ``tokpipe export``. Light to import."""

from tokpipe.export.catalogue import FORMATS
from tokpipe.export.command import Exported, export_output

__all__ = ["FORMATS", "Exported", "export_output"]
